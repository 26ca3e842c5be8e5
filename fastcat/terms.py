"""The vocabulary of losses: `ce("clean") + 6.0 * kl("clean", "adv")` is TRADES.

A Sum is data, so that one kernel can compute the losses of all peers at once, and a function from
logits and labels to weighted scalars. Cells are what it is said of: an objective speaks of its own
views ("clean", "adv"), a collaboration of (peer, view). The formulas stand in kernels/losses.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastcat.kernels.multi_peer_loss import KINDS, multi_peer_loss

# "clean" and "adv" in an objective, (peer, view) in a collaboration
CellName = Any


@dataclass(frozen=True)
class Term:
    """weight * mean over the batch of `loss`; constant: no gradient into the teacher's logits;
    only: counts images alone whose view is of the student's threat model of this number.
    """

    name: str
    loss: str
    student: CellName
    teacher: CellName = None
    weight: float = 1.0
    constant: bool = False
    only: int | None = None

    @property
    def cells(self) -> tuple[CellName, ...]:
        return (self.student,) if self.teacher is None else (self.teacher, self.student)


@dataclass(frozen=True)
class Sum:
    """Terms that add up; `a + b`, `2.0 * a` and `a.named("pairing")` make new ones."""

    terms: tuple[Term, ...] = ()

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.terms + other.terms)

    def __rmul__(self, factor: float) -> "Sum":
        return Sum(tuple(replace(term, weight=factor * term.weight) for term in self.terms))

    def named(self, name: str) -> "Sum":
        return Sum(tuple(replace(term, name=name) for term in self.terms))

    @property
    def cells(self) -> tuple[CellName, ...]:
        """Every cell that is read, each once."""
        return tuple(dict.fromkeys(cell for term in self.terms for cell in term.cells))

    def __call__(self, z: Mapping[CellName, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name from logits [B, C] by cell and labels [B]; differentiable."""
        table = torch.stack([z[cell] for cell in self.cells])
        rows = term_rows(self.terms, self.cells).to(table.device)
        upstream = torch.zeros(len(rows), len(y), device=table.device, dtype=table.dtype)
        means = multi_peer_loss(table, y, rows, upstream)[0].mean(1)
        values: dict[str, Tensor] = {}
        for term, mean in zip(self.terms, means, strict=True):
            values[term.name] = values.get(term.name, 0) + term.weight * mean
        return values


def term_rows(terms: Sequence[Term], cells: Sequence[CellName]) -> Tensor:
    """int32 [T, 4]: kind, student, teacher or -1, constant; as `multi_peer_loss` reads them."""
    place = {cell: i for i, cell in enumerate(cells)}
    rows = [
        [
            KINDS[term.loss],
            place[term.student],
            -1 if term.teacher is None else place[term.teacher],
            int(term.constant),
        ]
        for term in terms
    ]
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, 4)


def ce(cell: CellName) -> Sum:
    """Cross-entropy."""
    return Sum((Term("ce", "ce", cell),))


def boosted_ce(cell: CellName) -> Sum:
    """MART's cross-entropy, boosted by the margin to the strongest wrong class."""
    return Sum((Term("bce", "boosted_ce", cell),))


def kl(teacher: CellName, student: CellName, *, constant: bool = False) -> Sum:
    """KL(p_teacher || p_student); with gradient into the teacher too, unless it is constant."""
    return Sum((Term("kl", "kl", student, teacher, constant=constant),))


def mart_kl(teacher: CellName, student: CellName) -> Sum:
    """(1.0000001 - p_teacher,y) KL(p_teacher || p_student)."""
    return Sum((Term("kl", "mart_kl", student, teacher),))


def square(teacher: CellName, student: CellName) -> Sum:
    """Squared difference of the logits, averaged over the classes."""
    return Sum((Term("pairing", "square", student, teacher),))
