"""MAT-MP: specialists of M threat models and a generalist of all of them teach one another.

    specialist m   (1 - alpha) L_m + alpha / M * sum_{n != m} mean KL(p_n(x) || p_m(x_m))
    avg            (1 - alpha) L_0 + alpha / M * sum_m mean KL(p_m(x) || p_0(x_m^0))
    max            (1 - alpha) L_0 + alpha * mean KL(p_k(x) || p_0(x_k^0)),  k of each image alone
    msd            (1 - alpha) L_0 + alpha / M * sum_m mean KL(p_m(x) || p_0(x_msd))

n: the generalist and the other specialists; x_m^0: the generalist's adversary under threat model m.

Source: Mutual Adversarial Training, Liu et al. 2021 (arXiv 2112.05005), multiple perturbations,
without public code; L is `boosted`. The paper does not say whether k is chosen for each image or
for the batch: each image, as Maini et al.'s code for MAX does; nor alpha, which is MAT's 0.6. What
`mat` decides, is decided so here. Several generalists may take part.
"""

from collections.abc import Sequence
from dataclasses import replace

from fastcat.collaboration import (
    Collaboration,
    Student,
    Teachers,
    taught_by,
    weighted,
)
from fastcat.collaborations.mat import soft_labels
from fastcat.errors import InputError
from fastcat.terms import Sum


def mat_mp(students: Sequence[Student], teachers: Teachers, *, alpha: float = 0.6) -> Collaboration:
    guidance = []
    for n, student in enumerate(students):
        if student.way in ("avg", "max") and teachers[n]:
            guidance.append(alpha * _by_specialists(n, students, teachers[n]))
        else:
            guidance.append(alpha * soft_labels(n, student, teachers[n]))
    return weighted(guidance, 1 - alpha)


def _by_specialists(n: int, students: Sequence[Student], teachers: Sequence[int]) -> Sum:
    """Each image is taught by who specialises in the threat model of its view.

    Raises InputError where nobody does.
    """
    total, student = Sum(), students[n]
    for number, norm in enumerate(student.norms):
        specialists = [
            (m, "clean")
            for m in teachers
            if students[m].norms == (norm,) and students[m].views != ("clean",)
        ]
        if not specialists:
            raise InputError(
                f"nobody who teaches peer {n} specialises in {norm}: add a peer like "
                f"boosted:threat={norm}, or type --collab mat"
            )
        share = 1 / len(specialists)
        if student.way == "avg":
            taught = taught_by(specialists, n, student.views[number])
            total += (share / len(student.norms)) * taught
        else:
            taught = share * taught_by(specialists, n, student.views[0])
            total += Sum(tuple(replace(term, only=number) for term in taught.terms))
    return total
