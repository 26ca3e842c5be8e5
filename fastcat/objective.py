"""An objective: the views a peer wants, the attack behind them, its loss on their logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from fastcat.attacks.multi_norm import MSD, Max
from fastcat.attacks.multi_norm_official import Official, OfficialAvg, OfficialMSD
from fastcat.attacks.pgd import PGD
from fastcat.attacks.threat import Threats
from fastcat.attacks.training import TrainingAttack
from fastcat.errors import InputError
from fastcat.terms import Sum, Term

Terms = dict[str, Tensor]
# peer and view: where its logits on the view stand in the table
Place = tuple[int, str]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method with its settings.

    views: "clean" and what the attack finds, in the order of the train-mode forwards, which is that
        of BatchNorm's updates. Without views nothing is trained: a teacher
    inner: the attack that finds "adv" (and what else it names in `views`); several, by the name of
        what each finds; None for no attack
    outer: from logits [B, C] by view and labels [B] to weighted scalar terms, whose sum is the
        loss. A sum of `fastcat.terms` is computed by the fused kernel; any other differentiable
        function by autograd, and not on images mixed of two
    untracked: views whose forward leaves BatchNorm's running statistics alone
    after: views, or "clean", that are forwarded once more after the update, for these statistics
    reads: logits of the teacher that outer reads too, as constants: "teacher.clean",
        "teacher.adv", ... on this peer's views, "teacher.own" on the view that the teacher itself
        is tested on
    begins: after how many finished epochs a term counts, by its name; others always do
    """

    views: tuple[str, ...]
    inner: TrainingAttack | Mapping[str, TrainingAttack] | None
    outer: Callable[[dict[str, Tensor], Tensor], Terms]
    untracked: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    begins: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError for views that no attack finds, for an attack that nobody views, for a
        teacher's view that there is not, and for terms on anything else.
        """
        sought = {view for views in self.attacks for view in views}
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
    def attacks(self) -> dict[tuple[str, ...], TrainingAttack]:
        """Its attacks by the views that each finds."""
        if self.inner is None:
            return {}
        if isinstance(self.inner, Mapping):
            return {(view,): attack for view, attack in self.inner.items()}
        return {self.inner.views: self.inner}

    @property
    def has_teacher(self) -> bool:
        """Whether its outer loss or an attack reads a teacher."""
        aims = [attack.target == "teacher" for attack in self.attacks.values()]
        return bool(self.reads) or any(aims)

    @property
    def tested_on(self) -> tuple[str, ...]:
        """The views on which the peer is tested and taught: the first of each attack, or clean."""
        return tuple(views[0] for views in self.attacks) or ("clean",)


def adjusted(
    objective: Objective,
    name: str,
    *,
    start: str = "own",
    bn: str = "own",
    log_forward: bool = False,
) -> Objective:
    """An objective with the settings that every method has.

    name: the method's, for errors
    start, bn: of all its attacks, as `PGD` has them; "own" leaves them
    log_forward: whether the clean images are forwarded in train mode after the update, as public
        code does for an accuracy that it logs

    Raises InputError for a start or bn where there is no attack before the step.
    """
    values = {"start": start, "bn": bn}
    typed: dict[str, Any] = {key: value for key, value in values.items() if value != "own"}
    inner = objective.inner
    if typed and not any(attack.before_step for attack in objective.attacks.values()):
        keys = " and ".join(typed)
        raise InputError(f"{name} has no attack before the step to set: leave {keys} out")
    if isinstance(inner, Mapping):
        inner = {view: replace(attack, **typed) for view, attack in inner.items()}
    elif inner is not None:
        inner = replace(inner, **typed)
    after = ("clean",) if log_forward and objective.views else ()
    return replace(objective, inner=inner, after=(*objective.after, *after))


# PGD as a peer runs it that several threat models attack, by the name of the way
SEVERAL: dict[str, type[PGD]] = {
    "max": Max,
    "msd": MSD,
    "avg-official": OfficialAvg,
    "max-official": Official,
    "msd-official": OfficialMSD,
}


def under(objective: Objective, threats: Threats) -> Objective:
    """The objective of a peer that these threat models attack.

    One changes nothing; several change the attack, and under `avg` give a view for each (`spread`).
    Raises InputError for several where there is not exactly one adversarial view to begin with.
    """
    if threats.way is None:
        return objective
    attack = objective.inner
    if not isinstance(attack, PGD):
        raise InputError(
            f"{threats.way} is for methods with one adversarial view, as at:threat={threats.way}"
        )
    if threats.name == "avg":
        return spread(objective, threats.norms)
    settings = {field.name: getattr(attack, field.name) for field in fields(attack)}
    return replace(objective, inner=SEVERAL[threats.name](**settings))


def spread(objective: Objective, norms: Sequence[str]) -> Objective:
    """The mean of an objective over an adversarial view for each norm, "linf.adv", "l2.adv", ...

    It is AVG of Tramer & Boneh 2019 (arXiv 1904.13000). Terms that do not read the adversarial view
    count once.
    """
    outer, share = objective.outer, 1 / len(norms)
    assert isinstance(objective.inner, TrainingAttack)
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
        inner=dict.fromkeys(views.values(), objective.inner),
        outer=Sum((*others, *spread_out)) if isinstance(outer, Sum) else mean,
        reads=tuple(cell for own in objective.reads for cell in of_read.get(own, (own,))),
        begins=objective.begins,
    )


def require(condition: bool, setting: str, expected: str) -> None:
    """Raise InputError for a setting outside its range."""
    if not condition:
        raise InputError(f"{setting}: expected {expected}")


def view_name(k: int, own_view: str) -> str:
    """The table's name for what peer k's objective calls "clean", "adv", ..."""
    return own_view if own_view == "clean" else f"{own_view}{k}"


def own_views(k: int, objective: Objective) -> tuple[str, ...]:
    """The views on which peer k is tested and taught: what attacks make it misjudge, or clean."""
    return tuple(view_name(k, view) for view in objective.tested_on)
