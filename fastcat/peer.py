"""Who is in a team: peers, which are trained, and teachers, which are not.

Each is one network with what it is trained for, and knows nothing of the others.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from fastcat.awp import WeightPerturbation
from fastcat.frozen import Frozen
from fastcat.objectives.objective import Objective, under
from fastcat.objectives.teacher import teacher
from fastcat.replay import Carried
from fastcat.sgd import FlatSGD
from fastcat.swa import WeightAverage
from fastcat.threat import Threats


class Member:
    """name: "0-trades"; forward: the model in its mode of training, as an engine runs it."""

    def __init__(self, name: str, arch: str, model: nn.Module, objective: Objective) -> None:
        self.name = name
        self.arch = arch
        self.model = model
        self.forward: Any = model
        self.objective = objective

    def says(self, images: Tensor) -> Tensor:
        """Logits by `forward`, of a copy: its first operation may work in place, and other members
        read the same images.
        """
        return self.forward(images.clone())


class Peer(Member):
    """threats: how it is attacked, with `avg` on a view for each; frozen: what is attacked instead
    of the model, None for the model itself; awp: None for weights left as they are; swa: None for
    no average over epochs; carried: the perturbation of `Replay`, None for other methods.
    """

    def __init__(
        self,
        name: str,
        arch: str,
        model: nn.Module,
        objective: Objective,
        optimizer: FlatSGD,
        threats: Threats,
        frozen: Frozen | None = None,
        awp: WeightPerturbation | None = None,
        swa: WeightAverage | None = None,
        carried: Carried | None = None,
    ) -> None:
        super().__init__(name, arch, model, under(objective, threats))
        self.threats = threats
        self.optimizer = optimizer
        self.frozen = frozen
        self.awp = awp
        self.swa = swa
        self.carried = carried

    def averaged(self) -> AbstractContextManager[None]:
        """What is judged and kept, in the place of what is trained: an average, if there is one."""
        if self.swa is not None and self.swa.count:
            return self.swa.in_place()
        return self.optimizer.averaged()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed peer needs, as tensors and plain values."""
        return {
            "name": self.name,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "swa": None if self.swa is None else self.swa.state_dict(),
            "carried": None if self.carried is None else self.carried.delta,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.swa is not None:
            self.swa.load_state_dict(state["swa"])
        if self.carried is not None:
            self.carried.delta.copy_(state["carried"])


class Teacher(Member):
    """In eval mode, without gradient, never moved; weights, digest: its file and what is in it.

    remarks: what there is to say of its classes.
    """

    def __init__(
        self,
        name: str,
        arch: str,
        model: nn.Module,
        weights: str,
        digest: str,
        remarks: Sequence[str] = (),
    ) -> None:
        super().__init__(name, arch, model.eval().requires_grad_(False), teacher(weights=weights))
        self.weights = weights
        self.digest = digest
        self.remarks = remarks
