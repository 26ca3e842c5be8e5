"""Free adversarial training's attack: a perturbation that is carried from step to step.

    view = x + delta;   after the backward pass   delta <- delta + eps sign(d loss / d view)

clipped to the ball and the box (Shafahi et al. 2019, arXiv 1904.12843; signs for l-inf, in other
norms their steepest step). It costs no pass of its own: the gradient is a by-product of training.
Each place in the batch has its own delta, whatever image comes there next; `--replays` trains on a
batch several times before the next.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastcat.threat import ThreatModel


@dataclass(frozen=True)
class Replay:
    """In place of an attack before the step. The network trains while it is attacked."""

    bn: Literal["train"] = "train"


class Carried:
    """delta [batch_size, C, H, W] of a peer, with steps as long as the ball is wide."""

    def __init__(self, threat: ThreatModel, images: Tensor) -> None:
        """images: like a full batch in shape, dtype, layout and device."""
        self.threat = replace(threat, step_size=threat.eps)
        self.delta = torch.zeros_like(images)

    def view(self, x: Tensor) -> Tensor:
        """A leaf [B, C, H, W] that gathers its gradient; as published it may leave the box."""
        return (x + self.delta[: len(x)]).requires_grad_()

    @torch.no_grad()
    def ascend(self, view: Tensor, x: Tensor) -> None:
        """Move delta along the gradient that the view has gathered."""
        assert view.grad is not None
        moved = view.detach().clone()
        self.threat.ascend(moved[None], x, view.grad[None])
        self.delta[: len(x)] = moved - x
