"""An objective: the views a peer wants, the attack behind them, its loss on their logits."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastcat.attack import Inner
from fastcat.errors import InputError
from fastcat.terms import Sum

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method with its settings.

    views: "clean" and "adv", in the order of the train-mode forwards (it decides the order of
    BatchNorm updates); inner: the attack behind "adv", None without one; outer: from logits
    [B, C] by view and labels [B] to weighted scalar terms, whose sum is the loss: one of
    `fastcat.terms`, which the fused kernel computes, or any differentiable function; that one
    cannot train on images mixed of two. Without views and terms nothing is trained: a teacher.
    """

    views: tuple[str, ...]
    inner: Inner | None
    outer: Callable[[dict[str, Tensor], Tensor], Terms]

    def __post_init__(self) -> None:
        """Raise InputError for views that are not known, and for "adv" without its attack."""
        nothing = not self.views and self.outer != Sum()
        if nothing or not set(self.views) <= {"clean", "adv"}:
            raise InputError(f"views are {self.views}, expected some of clean and adv")
        if ("adv" in self.views) != (self.inner is not None):
            raise InputError("an objective has an inner attack if and only if it views adv")


def require(condition: bool, setting: str, expected: str) -> None:
    """Raise InputError for a setting outside its range."""
    if not condition:
        raise InputError(f"{setting}: expected {expected}")
