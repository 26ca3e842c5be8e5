"""A peer: one network with what it is trained for. It knows nothing of the other peers."""

from typing import Any

import torch
from torch import Tensor, nn

from fastcat.objectives.objective import Objective


class Peer:
    """name: "0-trades"; scaler: float16 loss scaling, which does nothing in other precisions."""

    def __init__(
        self,
        name: str,
        arch: str,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.name = name
        self.arch = arch
        self.model = model
        self.objective = objective
        self.optimizer = optimizer
        self.scaler = scaler

    def descend(self, loss: Tensor) -> None:
        """Backward through this peer alone and one optimizer step."""
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed peer needs, as tensors and plain values."""
        return {
            "name": self.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
