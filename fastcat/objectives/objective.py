"""An objective: the views a peer wants, the attack behind them, its loss on their logits."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastcat.attack import Inner
from fastcat.errors import InputError

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method with its settings.

    views: "clean" and "adv", in the order of the train-mode forwards (it decides the order of
    BatchNorm updates); inner: the attack behind "adv", None without one; outer: from logits
    [B, C] by view and labels [B] to weighted scalar terms, whose sum is the loss.
    """

    views: tuple[str, ...]
    inner: Inner | None
    outer: Callable[[dict[str, Tensor], Tensor], Terms]


def require(condition: bool, setting: str, expected: str) -> None:
    """Raise InputError for a setting outside its range."""
    if not condition:
        raise InputError(f"{setting}: expected {expected}")
