"""A peer: one network with what it is trained for. It knows nothing of the other peers."""

from typing import Any

from torch import nn

from fastcat.awp import WeightPerturbation
from fastcat.frozen import Frozen
from fastcat.objectives.objective import Objective
from fastcat.optim import FlatSGD


class Peer:
    """name: "0-trades"; frozen: what is attacked instead of the model, None for the model itself.

    forward: the model in train mode, as an engine runs it; awp: None for weights left as they are.
    """

    def __init__(
        self,
        name: str,
        arch: str,
        model: nn.Module,
        objective: Objective,
        optimizer: FlatSGD,
        frozen: Frozen | None = None,
        awp: WeightPerturbation | None = None,
    ) -> None:
        self.name = name
        self.arch = arch
        self.model = model
        self.forward: Any = model
        self.objective = objective
        self.optimizer = optimizer
        self.frozen = frozen
        self.awp = awp

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed peer needs, as tensors and plain values."""
        return {
            "name": self.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
