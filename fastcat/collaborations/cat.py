"""CAT: each peer is taught, on its own adversary, by every other peer.

    total_k = alpha * L_k + (1 - alpha) * sum_{j != k} mean KL(p_j(x_k) || p_k(x_k)), p_j constant

Source: Liu et al. 2023 (arXiv 2303.14922), Eqs. 4-6 and the public code, alpha = 1/20. The paper
writes the KL the other way round; the code, which made its tables, is followed, and with own_first
the paper: KL(p_k(x_k) || p_j(x_k)), p_j constant again. A peer without an attack is taught on the
clean images. One peer alone has no teacher and descends its plain L. With --teachers the sum is
over the peer's own teachers. A peer with several adversaries is taught on the mean of them.
"""

from collections.abc import Sequence

from fastcat.collaboration import Collaboration, Student, Teachers, weighted
from fastcat.terms import Sum, kl


def cat(
    students: Sequence[Student],
    teachers: Teachers,
    *,
    alpha: float = 0.05,
    own_first: bool = False,
) -> Collaboration:
    def taught_by(j: int, k: int, view: str) -> Sum:
        if own_first:
            return kl((k, view), (j, view), constant="student")
        return kl((j, view), (k, view), constant="teacher")

    guidance = [
        sum((taught_by(j, k, view) for view in student.views for j in teachers[k]), Sum())
        for k, student in enumerate(students)
    ]
    return weighted(
        [
            ((1 - alpha) / len(student.views)) * taught
            for taught, student in zip(guidance, students, strict=True)
        ],
        alpha,
    )
