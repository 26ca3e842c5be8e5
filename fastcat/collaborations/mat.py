"""MAT: each peer is taught, on its own adversary, by the others' predictions on clean images.

    total_n = (1 - alpha) * L_n + alpha / (N - 1) * sum_{m != n} mean KL(p_m(x) || p_n(x_n))

Source: Mutual Adversarial Training, Liu et al. 2021 (arXiv 2112.05005), without public code; L is
its boosted cross-entropy (`boosted`), alpha = 0.6, for CIFAR-100 0.45. Here alpha weighs the
guidance, in CAT the objective. The paper prints M - 1 for N - 1; with --teachers it is the number
of the peer's own teachers. What it leaves open: p_m(x) is constant, as soft labels are; by the
letter of its Algorithm 1 peer m descends the total of all, so that p_m(x) gets gradient too, which
is detach=false. p_m(x) comes from a train-mode forward, which is added after the others where the
peer's objective does not view the clean images anyway. A peer without an attack is taught on those,
one with several adversaries on the mean of them.
"""

from collections.abc import Sequence

from fastcat.collaboration import (
    Collaboration,
    Student,
    Teachers,
    taught_by,
    weighted,
)
from fastcat.terms import Side, Sum


def mat(
    students: Sequence[Student],
    teachers: Teachers,
    *,
    alpha: float = 0.6,
    detach: bool = True,
) -> Collaboration:
    constant: Side | None = "teacher" if detach else None
    return weighted(
        [
            alpha * soft_labels(n, student, teachers[n], constant)
            for n, student in enumerate(students)
        ],
        1 - alpha,
    )


def soft_labels(
    n: int, student: Student, teachers: Sequence[int], constant: Side | None = "teacher"
) -> Sum:
    """The mean over student n's views and teachers of mean KL(p_m(x) || p_n(view))."""
    pairs = max(len(teachers), 1) * len(student.views)
    clean = [(m, "clean") for m in teachers]
    return (1 / pairs) * sum((taught_by(clean, n, view, constant) for view in student.views), Sum())
