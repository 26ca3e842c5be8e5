"""MAT: each peer is taught, on its own adversary, by the others' predictions on clean images.

    total_n = (1 - alpha) * L_n + alpha / (N - 1) * sum_{m != n} mean KL(p_m(x) || p_n(x_n))

Source: Mutual Adversarial Training, Liu et al. 2021 (arXiv 2112.05005), without public code; L is
its boosted cross-entropy (`boosted`), alpha = 0.6, for CIFAR-100 0.45. Here alpha weighs the
guidance, in CAT the objective. The paper prints M - 1 for N - 1; with --teachers it is the number
of the peer's own teachers. What it leaves open: p_m(x) is constant, as soft labels are; by the
letter of its Algorithm 1 peer m descends the total of all, so that p_m(x) gets gradient too, which
is detach=false. p_m(x) comes from a train-mode forward, which is added after the others where the
peer's objective does not view the clean images anyway. A peer without an attack is taught on those.
"""

from collections.abc import Sequence

from fastcat.collaboration.collaboration import Collaboration, Teachers, weighted
from fastcat.terms import Side, Sum, kl


def mat(
    taught_on: Sequence[str],
    teachers: Teachers,
    *,
    alpha: float = 0.6,
    detach: bool = True,
) -> Collaboration:
    constant: Side | None = "teacher" if detach else None
    guidance = [
        sum((kl((m, "clean"), (n, view), constant=constant) for m in teachers[n]), Sum())
        for n, view in enumerate(taught_on)
    ]
    return weighted(
        [
            (alpha / max(len(of_n), 1)) * taught
            for taught, of_n in zip(guidance, teachers, strict=True)
        ],
        1 - alpha,
    )
