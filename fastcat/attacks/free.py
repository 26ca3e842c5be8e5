"""Free adversarial training's attack: a perturbation that is carried from step to step.

    view = x + delta;   after the backward pass   delta <- delta + eps sign(d loss / d view)

clipped to the ball and the box (Shafahi et al. 2019, arXiv 1904.12843; signs for l-inf, in other
norms their steepest step). It costs no pass of its own: the gradient is a by-product of training.
Each place in the batch has its own delta, whatever image comes there next; `--replays` trains on a
batch several times before the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fastcat.attacks.modes import NormMode
from fastcat.attacks.threat import Start, ThreatModel, Threats
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FreeAttack(TrainingAttack):
    """Keeps "carried": delta [batch_size, C, H, W]. The network trains while it is attacked."""

    before_step: ClassVar[bool] = False
    bn: NormMode = "train"

    def check(self, threats: Threats, peer: int) -> None:
        if threats.models[0].restarts > 1:
            raise InputError("free has no start to choose: type --restarts 1")

    def explored(self, threats: Threats) -> Threats:
        """With steps as long as the ball is wide."""
        models = [replace(threat, step_size=threat.eps) for threat in threats.models]
        return replace(threats, models=tuple(models))

    def starts(self, threats: Threats) -> list[tuple[ThreatModel, Start]]:
        return []

    def state(self, threats: Threats, images: Tensor) -> dict[str, Tensor]:
        return {"carried": torch.zeros_like(images)}

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        """A leaf that gathers its gradient; as published it may leave the box."""
        x, delta = work.batch.x, work.states[task.peer]["carried"]
        return {task.views[0]: (x + delta[: len(x)]).requires_grad_()}

    @torch.no_grad()
    def after_backward(
        self, task: PeerAttack, views: Mapping[str, Tensor], x: Tensor, state: dict[str, Tensor]
    ) -> None:
        """Move delta along the gradient that the view has gathered."""
        view = views[task.views[0]]
        assert view.grad is not None
        moved = view.detach().clone()
        task.threats.models[0].ascend(moved[None], x, view.grad[None])
        state["carried"][: len(x)] = moved - x
