"""The vocabulary of losses: `ce("clean") + 6.0 * kl("clean", "adv")` is TRADES.

A Sum is data, so that one kernel can compute the losses of all peers at once, and a function from
logits and labels to weighted scalars. Cells are what it is said of: an objective speaks of its own
views ("clean", "adv"), a collaboration of (peer, view). The formulas stand in kernels/losses.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastcat.errors import InputError, check_number
from fastcat.guard import as_labels, check_classes, check_logits
from fastcat.kernels.multi_peer_loss import KINDS, multi_peer_loss

# "clean" and "adv" in an objective, (peer, view) in a collaboration
CellName = Any
Side = Literal["teacher", "student"]


@dataclass(frozen=True)
class Term:
    """weight * mean over the batch of `loss`, of the logits divided by temperature.

    constant: whose logits get no gradient; only: counts images alone whose view is of the student's
    threat model of this number; by_class: divided by the number of classes.
    """

    name: str
    loss: str
    student: CellName
    teacher: CellName = None
    weight: float = 1.0
    constant: Side | None = None
    temperature: float = 1.0
    only: int | None = None
    by_class: bool = False

    @property
    def cells(self) -> tuple[CellName, ...]:
        return (self.student,) if self.teacher is None else (self.teacher, self.student)

    @property
    def constant_cell(self) -> CellName:
        """The cell that gets no gradient, None where all of them do."""
        return {None: None, "teacher": self.teacher, "student": self.student}[self.constant]

    def of_classes(self, classes: int) -> "Term":
        """The same term where the number of classes is known."""
        share = 1 / classes if self.by_class else 1.0
        return replace(self, weight=share * self.weight, by_class=False)


@dataclass(frozen=True)
class Sum:
    """Terms that add up; `a + b`, `2.0 * a`, `a * 2.0` and `a.named("pairing")` make new ones."""

    terms: tuple[Term, ...] = ()

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.terms + other.terms) if isinstance(other, Sum) else NotImplemented

    def __rmul__(self, factor: float) -> "Sum":
        """Raises InputError for what is no finite number."""
        check_number("a weight", factor, "6.0")
        if not math.isfinite(factor):
            raise InputError(f"a weight is {factor}, expected a finite number")
        return Sum(tuple(replace(term, weight=factor * term.weight) for term in self.terms))

    __mul__ = __rmul__

    def named(self, name: str) -> "Sum":
        return Sum(tuple(replace(term, name=name) for term in self.terms))

    @property
    def cells(self) -> tuple[CellName, ...]:
        """Every cell that is read, each once."""
        return tuple(dict.fromkeys(cell for term in self.terms for cell in term.cells))

    def __call__(self, z: Mapping[CellName, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Weighted scalars by name from logits [B, C] by cell and labels [B]; differentiable.

        Raises InputError for cells without logits, for logits of different shapes, and for labels
        that are not one class for each image; what labels a GPU holds is not looked at.
        """
        y = self._checked(z, y)
        table = torch.stack([z[cell] for cell in self.cells])
        rows = term_rows(self.terms, self.cells).to(table.device)
        upstream = torch.zeros(len(rows), len(y), device=table.device, dtype=table.dtype)
        means = multi_peer_loss(table, y, rows, upstream)[0].mean(1)
        values: dict[str, Tensor] = {}
        for term, mean in zip(self.terms, means, strict=True):
            weight = term.of_classes(table.shape[2]).weight
            values[term.name] = values.get(term.name, 0) + weight * mean
        return values

    def _checked(self, z: Any, y: Any) -> Tensor:
        """The labels as indices, where they and the logits fit this sum."""
        if not self.terms:
            raise InputError("the sum has no terms: expected some, as ce('clean')")
        missing = [cell for cell in self.cells if not isinstance(z, Mapping) or cell not in z]
        if missing:
            raise InputError(f"there are no logits of {missing[0]!r}: expected a mapping with them")
        first = z[self.cells[0]]
        images = len(first) if isinstance(first, Tensor) and first.dim() else 0
        for cell in self.cells:
            check_logits(z[cell], images, f"cell {cell!r}")
            if z[cell].shape != first.shape:
                raise InputError(
                    f"logits of {cell!r} have shape {tuple(z[cell].shape)}, those of "
                    f"{self.cells[0]!r} {tuple(first.shape)}: expected the same"
                )
        if not images:
            raise InputError("there are no images: the batch is empty")
        y = as_labels(y, images).to(first.device)
        if not (y.is_cuda or torch.compiler.is_compiling()):
            lowest, highest = (int(label) for label in y.aminmax())
            check_classes(lowest, highest, first.shape[1])
        return y


def term_rows(terms: Sequence[Term], cells: Sequence[CellName]) -> Tensor:
    """float32 [T, 5]: kind, student, teacher or -1, the constant one or -1, and the temperature.

    As `multi_peer_loss` reads them.
    """
    place = {None: -1, **{cell: i for i, cell in enumerate(cells)}}
    rows = [
        [
            KINDS[term.loss],
            place[term.student],
            place[term.teacher],
            place[term.constant_cell],
            term.temperature,
        ]
        for term in terms
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


def ce(cell: CellName, smoothing: float = 0.0) -> Sum:
    """Cross-entropy with the label, of which `smoothing`, in [0, 1), is spread over all classes.

    (1 - s) CE(z, y) + s CE(z, uniform), one value by name (Szegedy et al. 2016, section 7). Raises
    InputError for a smoothing outside its range.
    """
    check_number("smoothing", smoothing, "0.1")
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing is {smoothing:g}, expected a share in [0, 1), for example 0.1")
    plain = Sum((Term("ce", "ce", cell),))
    if smoothing == 0:
        return plain
    return (1 - smoothing) * plain + smoothing * Sum((Term("ce", "uniform_ce", cell),))


def boosted_ce(cell: CellName) -> Sum:
    """MART's cross-entropy, boosted by the margin to the strongest wrong class."""
    return Sum((Term("bce", "boosted_ce", cell),))


def kl(
    teacher: CellName,
    student: CellName,
    *,
    constant: Side | None = None,
    temperature: float = 1.0,
    by_class: bool = False,
) -> Sum:
    """KL(softmax(z_teacher / T) || softmax(z_student / T)), T the temperature in [0.001, 1000].

    With gradient into both, but for the one that is constant. Distillation multiplies it by T^2
    (Hinton et al. 2015), which is a weight: `T**2 * kl(..., temperature=T)`. by_class: the mean
    over images and classes, as KLDivLoss has it by default. Raises InputError for a temperature
    outside its range, and for a constant that is neither.
    """
    check_number("temperature", temperature, "4.0")
    if constant not in (None, *get_args(Side)):
        raise InputError(f"constant is {constant!r}, expected None, 'teacher' or 'student'")
    if not 0.001 <= temperature <= 1000:
        raise InputError(f"temperature is {temperature:g}, expected 0.001 to 1000, for example 4")
    term = Term("kl", "kl", student, teacher, 1.0, constant, temperature, by_class=by_class)
    return Sum((term,))


def mart_kl(teacher: CellName, student: CellName) -> Sum:
    """(1.0000001 - p_teacher,y) KL(p_teacher || p_student)."""
    return Sum((Term("kl", "mart_kl", student, teacher),))


def square(teacher: CellName, student: CellName) -> Sum:
    """Squared difference of the logits, averaged over the classes."""
    return Sum((Term("pairing", "square", student, teacher),))
