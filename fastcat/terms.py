"""The vocabulary of losses: `ce("clean") + 6.0 * kl("clean", "adv")` is TRADES.

A Sum is data, so that one kernel can compute the losses of all peers at once, and a function from
logits and labels to weighted scalars. Its terms name cells: an objective's are its own views
("clean", "adv"), a collaboration's are (peer, view). The formulas stand in kernels/losses.py, and
`term` makes a formula of your own a word of this vocabulary.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
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
    """weight * mean over the batch of a loss of the logits, which are divided by temperature.

    name: what its value is reported as
    loss: a kind of loss that the kernel has, by name
    student, teacher: its cells. teacher None: it reads one
    weight: its factor
    constant: the one of them whose logits get no gradient
    only: number of a threat model of the student's; images that another one attacked do not count
    by_class: whether it is divided by the number of classes
    formula: of a loss that the kernel does not have
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
    formula: Callable[..., Tensor] | None = None

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
    """Weighted terms that add up; `a + b`, `2.0 * a`, `a * 2.0` and `a.named("pairing")` make new
    ones.
    """

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
        """Weighted means over the batch by name, differentiable.

        z: logits [B, C] by cell
        y: labels [B]; those on a GPU are not checked

        Raises InputError for cells without logits, for logits of different shapes, and for labels
        that are not one class for each image.
        """
        y = self._checked(z, y)
        table = torch.stack([z[cell] for cell in self.cells])
        fused = [term for term in self.terms if term.formula is None]
        means: dict[Term, Tensor] = {}
        if fused:
            rows = term_rows(fused, self.cells).to(table.device)
            upstream = torch.zeros(len(rows), len(y), device=table.device, dtype=table.dtype)
            losses = multi_peer_loss(table, y, rows, upstream)[0]
            means.update(zip(fused, losses.mean(1), strict=True))
        values: dict[str, Tensor] = {}
        for term in self.terms:
            mean = means[term] if term.formula is None else by_formula(term, z, y).mean()
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


def by_formula(term: Term, z: Mapping[CellName, Tensor], y: Tensor) -> Tensor:
    """The loss [B] of a term with a formula, differentiable; of half-precision logits in float32.

    z: logits [B, C] by cell
    y: labels [B]
    """
    assert term.formula is not None
    logits = [
        (z[cell].detach() if cell == term.constant_cell else z[cell]).to(
            torch.promote_types(z[cell].dtype, torch.float32)
        )
        / term.temperature
        for cell in (term.student, term.teacher)[: 1 if term.teacher is None else 2]
    ]
    values = term.formula(*logits, y)
    if values.shape != y.shape:
        raise InputError(
            f"the loss {term.name} has shape {tuple(values.shape)}, expected {tuple(y.shape)}, a "
            "value for each image: leave mean() and sum() out"
        )
    return values


def term(formula: Callable[..., Tensor]) -> Callable[..., Sum]:
    """A loss of your own as a word of the vocabulary; a decorator.

        @term
        def focal(z, y):
            p = z.softmax(1).gather(1, y[:, None]).squeeze(1)
            return -((1 - p) ** 2) * p.log()

        outer = ce("clean") + 2.0 * focal("adv")

    formula: from logits [B, C] and labels [B], or from logits of a student, of a teacher, and
        labels, to a loss [B] of each image, by differentiable operations
    returns: for the first `f(cell)`; for the second `f(teacher, student, constant=None,
        temperature=1.0)`, as `kl` has them. Its value is reported under the formula's name

    It is computed by autograd beside the fused kernel. An attack climbs the formula itself, which
    the attribute `formula` of the result holds: `PGD(loss=focal.formula)`.
    """
    name = formula.__name__
    if len(inspect.signature(formula).parameters) == 2:

        @functools.wraps(formula)
        def of_one(cell: CellName) -> Sum:
            return Sum((Term(name, name, cell, formula=formula),))

        of_one.formula = formula  # type: ignore[attr-defined]
        return of_one

    @functools.wraps(formula)
    def of_two(
        teacher: CellName,
        student: CellName,
        *,
        constant: Side | None = None,
        temperature: float = 1.0,
    ) -> Sum:
        (like,) = kl(teacher, student, constant=constant, temperature=temperature).terms
        return Sum((replace(like, name=name, loss=name, formula=formula),))

    of_two.formula = formula  # type: ignore[attr-defined]
    return of_two


class TermTable:
    """The losses of terms on a table of logits, and their gradient in it.

    Terms that the kernel has are computed by one launch, others by autograd of their formulas.
    """

    def __init__(
        self, terms: Sequence[Term], cells: Sequence[CellName], device: torch.device
    ) -> None:
        """cells: of the table's slabs, in order."""
        self.cells = {cell: n for n, cell in enumerate(cells)}
        self.fused = [n for n, term in enumerate(terms) if term.formula is None]
        self.others = [(n, term) for n, term in enumerate(terms) if term.formula is not None]
        self.rows = term_rows([terms[n] for n in self.fused], cells).to(device)
        self.places = torch.tensor(self.fused, dtype=torch.int64, device=device)

    def __call__(self, z: Tensor, y: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
        """losses [T, B], unweighted, and dz [N, B, C], as `multi_peer_loss` has them.

        z: logits [N, B, C]
        y: labels [B]
        upstream: [T, B], the weight of each loss in dz
        """
        if not self.others:
            if not self.fused:
                return upstream, torch.zeros_like(z)
            return multi_peer_loss(z, y, self.rows, upstream)
        losses = torch.zeros_like(upstream)
        dz = torch.zeros_like(z)
        if self.fused:
            some, dz = multi_peer_loss(z, y, self.rows, upstream.index_select(0, self.places))
            losses.index_copy_(0, self.places, some.to(losses.dtype))
        for n, term in self.others:
            leaves = {
                cell: z[self.cells[cell]].detach().to(losses.dtype).requires_grad_()
                for cell in term.cells
            }
            with torch.enable_grad():
                values = by_formula(term, leaves, y)
            losses[n] = values.detach()
            learning = [cell for cell in leaves if cell != term.constant_cell]
            grads = torch.autograd.grad(
                values,
                [leaves[cell] for cell in learning],
                upstream[n].to(values.dtype),
                materialize_grads=True,  # a formula need not read all of its logits
            )
            for cell, grad in zip(learning, grads, strict=True):
                dz[self.cells[cell]] += grad.to(dz.dtype)
        return losses, dz


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
    """Cross-entropy with the label.

    smoothing: share of the label, in [0, 1), that is spread over all classes: (1 - s) CE(z, y) +
        s CE(z, uniform), reported as one value (Szegedy et al. 2016, section 7)

    Raises InputError for a smoothing outside its range.
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
    """KL(softmax(z_teacher / T) || softmax(z_student / T)), with gradient into both.

    teacher, student: cells
    constant: the one of them that gets no gradient
    temperature: T, in [0.001, 1000]; distillation also multiplies by T^2 (Hinton et al. 2015),
        which is a weight: `T**2 * kl(..., temperature=T)`
    by_class: whether it is the mean over images and classes, as KLDivLoss has it by default

    Raises InputError for a temperature outside its range and an unknown `constant`.
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
