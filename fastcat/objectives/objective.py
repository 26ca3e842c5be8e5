"""An objective: the views a peer wants, the attack behind them, its loss on their logits."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastcat.attack import Inner
from fastcat.errors import InputError
from fastcat.squeeze import Squeeze
from fastcat.terms import Sum

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method with its settings.

    views: "clean", "adv" and "col", in the order of the train-mode forwards (it decides the order
    of BatchNorm updates); untracked: those among them whose forward leaves BatchNorm's running
    statistics alone; inner: the attack behind "adv", for `Squeeze` also behind "col", None without
    one; outer: from logits
    [B, C] by view and labels [B] to weighted scalar terms, whose sum is the loss: one of
    `fastcat.terms`, which the fused kernel computes, or any differentiable function; that one
    cannot train on images mixed of two. Without views and terms nothing is trained: a teacher.
    """

    views: tuple[str, ...]
    inner: Inner | Squeeze | None
    outer: Callable[[dict[str, Tensor], Tensor], Terms]
    untracked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for views that are not known, and for a view without its attack."""
        nothing = not self.views and self.outer != Sum()
        if nothing or not set(self.views) <= {"clean", "adv", "col"}:
            raise InputError(f"views are {self.views}, expected some of clean, adv and col")
        if not set(self.untracked) <= set(self.views):
            raise InputError(f"untracked are {self.untracked}, expected some of {self.views}")
        if ("adv" in self.views) != (self.inner is not None):
            raise InputError("an objective has an inner attack if and only if it views adv")
        if ("col" in self.views) != isinstance(self.inner, Squeeze):
            raise InputError("an objective views col if and only if its inner attack is Squeeze")


def require(condition: bool, setting: str, expected: str) -> None:
    """Raise InputError for a setting outside its range."""
    if not condition:
        raise InputError(f"{setting}: expected {expected}")
