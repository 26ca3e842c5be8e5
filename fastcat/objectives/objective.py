"""An objective: the views a peer wants, the attack behind them, its loss on their logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastcat.errors import InputError
from fastcat.pgd import Inner
from fastcat.replay import Replay
from fastcat.squeeze import Squeeze
from fastcat.terms import Sum, Term
from fastcat.threat import Threats

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method with its settings.

    views: "clean" and what is sought, in the order of the train-mode forwards (it decides the order
    of BatchNorm updates); untracked: those among them whose forward leaves BatchNorm's running
    statistics alone; after: those, or "clean", that are forwarded once more after the update, for
    these statistics alone; inner: the attack that finds "adv", `Squeeze` finds "col" as well,
    `Replay` carries "adv" along, several attacks by the names of what they find, or None; outer:
    from logits [B, C] by view and labels [B] to weighted scalar terms, whose sum is the loss: one
    of `fastcat.terms`, which the fused kernel computes, or any differentiable function; that one
    cannot train on images mixed of two. Without views and terms nothing is trained: a teacher.

    reads: what outer reads beside the views, as constants: "teacher.clean", "teacher.adv", ..., the
    teacher's logits on views of this peer, and "teacher.own", those on the view that the teacher
    itself is tested on. begins: of terms that do not count from the first epoch on, after how many
    finished epochs they do.
    """

    views: tuple[str, ...]
    inner: Inner | Squeeze | Replay | Mapping[str, Inner] | None
    outer: Callable[[dict[str, Tensor], Tensor], Terms]
    untracked: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    begins: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError for views that no attack finds, for an attack that nobody views, for a
        teacher's view that there is not, and for terms on anything else.
        """
        sought = {view for views in self.searches for view in views}
        nothing = not self.views and self.outer != Sum()
        if nothing or set(self.views) - {"clean"} != sought:
            expected = ", ".join(["clean", *sorted(sought)])
            raise InputError(
                f"views are {self.views}, expected what the inner attack finds: {expected}"
            )
        for name, there in (("untracked", self.views), ("after", ("clean", *self.views))):
            if not set(getattr(self, name)) <= set(there):
                raise InputError(f"{name} are {getattr(self, name)}, expected some of {there}")
        readable = [f"teacher.{view}" for view in ("own", "clean", *sorted(sought))]
        if not set(self.reads) <= set(readable):
            raise InputError(f"reads are {self.reads}, expected some of {', '.join(readable)}")
        known = {*self.views, *self.reads}
        if isinstance(self.outer, Sum) and not set(self.outer.cells) <= known:
            raise InputError(
                f"outer reads {', '.join(self.outer.cells)}, expected some of the views "
                f"{self.views} and of what reads names: {self.reads}"
            )

    @property
    def searches(self) -> dict[tuple[str, ...], Inner | Squeeze | Replay]:
        """Its attacks by the views that each finds."""
        if self.inner is None:
            return {}
        if isinstance(self.inner, Squeeze):
            return {("adv", "col"): self.inner}
        if isinstance(self.inner, Inner | Replay):
            return {("adv",): self.inner}
        return {(view,): inner for view, inner in self.inner.items()}

    @property
    def has_teacher(self) -> bool:
        """Whether its outer loss or an attack reads a teacher."""
        inners = self.searches.values()
        aims = [isinstance(inner, Inner) and inner.target == "teacher" for inner in inners]
        return bool(self.reads) or any(aims)

    @property
    def tested_on(self) -> tuple[str, ...]:
        """The views on which the peer is tested and taught: the first of each attack, or clean."""
        return tuple(views[0] for views in self.searches) or ("clean",)


def adjusted(
    objective: Objective,
    name: str,
    *,
    start: str = "own",
    bn: str = "own",
    log_forward: bool = False,
) -> Objective:
    """The objective of the method called `name` with what every method may be asked for.

    start, bn: of all its attacks, as `Inner` has them; own: the method's. log_forward: forward the
    clean images in train mode after the update, as public code does for an accuracy that it logs.
    Raises InputError for a start or bn where there is no attack before the step.
    """
    own = {"start": start, "bn": bn}
    asked: dict[str, Any] = {key: value for key, value in own.items() if value != "own"}
    inner = objective.inner
    if isinstance(inner, Inner | Squeeze):
        inner = replace(inner, **asked)
    elif isinstance(inner, Mapping):
        inner = {view: replace(one, **asked) for view, one in inner.items()}
    elif asked:
        keys = " and ".join(asked)
        raise InputError(f"{name} has no attack before the step to set: leave {keys} out")
    after = ("clean",) if log_forward and objective.views else ()
    return replace(objective, inner=inner, after=(*objective.after, *after))


def under(objective: Objective, threats: Threats) -> Objective:
    """The objective of a peer that these threats attack: `spread` where there is a view for each.

    Raises InputError for `avg`, `max` or `msd` without exactly one adversarial view to begin with.
    """
    if threats.way is not None and not isinstance(objective.inner, Inner):
        raise InputError(
            f"{threats.way} is for methods with one adversarial view, as at:threat={threats.way}"
        )
    together = threats.way == "avg" and not threats.official
    return spread(objective, threats.norms) if together else objective


def spread(objective: Objective, norms: Sequence[str]) -> Objective:
    """The mean of an objective with one adversarial view over a view for each norm, "linf.adv".

    It is AVG of Tramer & Boneh 2019 (arXiv 1904.13000); terms without the adversary count once.
    """
    inner, outer, share = objective.inner, objective.outer, 1 / len(norms)
    assert isinstance(inner, Inner)
    views = {norm: f"{norm}.adv" for norm in norms}

    def on(view: str, term: Term) -> Term:
        there = {"adv": view, "teacher.adv": f"teacher.{view}"}
        student, teacher = (there.get(cell, cell) for cell in (term.student, term.teacher))
        return replace(term, student=student, teacher=teacher, weight=share * term.weight)

    def mean(z: dict[str, Tensor], y: Tensor) -> Terms:
        each = []
        for view in views.values():
            there = {"adv": z[view]}
            if "teacher.adv" in objective.reads:
                there["teacher.adv"] = z[f"teacher.{view}"]
            each.append(outer({**z, **there}, y))
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    if isinstance(outer, Sum):
        attacked = [term for term in outer.terms if {"adv", "teacher.adv"} & set(term.cells)]
        others = [term for term in outer.terms if term not in attacked]
        spread_out = [on(view, term) for view in views.values() for term in attacked]
    of_view = {"clean": ("clean",), "adv": tuple(views.values())}
    of_read = {"teacher.adv": tuple(f"teacher.{view}" for view in views.values())}
    return Objective(
        views=tuple(view for own in objective.views for view in of_view[own]),
        untracked=tuple(view for own in objective.untracked for view in of_view[own]),
        after=tuple(view for own in objective.after for view in of_view[own]),
        inner=dict.fromkeys(views.values(), inner),
        outer=Sum((*others, *spread_out)) if isinstance(outer, Sum) else mean,
        reads=tuple(cell for own in objective.reads for cell in of_read.get(own, (own,))),
        begins=objective.begins,
    )


def require(condition: bool, setting: str, expected: str) -> None:
    """Raise InputError for a setting outside its range."""
    if not condition:
        raise InputError(f"{setting}: expected {expected}")
