"""Who is in a team: peers, which are trained, and teachers, which are not.

Each is one network with what it is trained for, and knows nothing of the others.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.threat import Threats
from fastcat.objective import Objective, under
from fastcat.objectives.teacher import teacher
from fastcat.step.awp import WeightPerturbation
from fastcat.step.merged_views import MergedViews
from fastcat.step.sgd import FlatSGD
from fastcat.step.swa import WeightAverage


class Member:
    """A network of a team with what it is trained for.

    name: number and method, as "0-trades"
    forward: what runs the model in training: the model, or its compiled form
    """

    def __init__(self, name: str, arch: str, model: nn.Module, objective: Objective) -> None:
        self.name = name
        self.arch = arch
        self.model = model
        self.forward: Any = model
        self.objective = objective

    def logits(self, images: Tensor) -> Tensor:
        """Logits of a copy of the images: a network may write to its input, and other members read
        it.
        """
        return self.forward(images.clone())

    def logits_on(self, views: Sequence[Tensor]) -> list[Tensor]:
        """The `logits` of several views, in their order."""
        return [self.logits(images) for images in views]


class Peer(Member):
    """A member that is trained.

    threats: how it is attacked
    frozen: what is attacked instead of the model. None: the model itself
    merged: what is trained on several views at once. None: the model, view by view
    awp: the perturbation of its weights. None: they are left as they are
    swa: the average of its weights over epochs. None: there is none
    attack_state: what its attacks keep from step to step, by name
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
    ) -> None:
        super().__init__(name, arch, model, under(objective, threats))
        self.threats = threats
        self.optimizer = optimizer
        self.frozen = frozen
        self.merged: MergedViews | None = None
        self.awp = awp
        self.swa = swa
        self.attack_state: dict[str, Tensor] = {}

    def logits_on(self, views: Sequence[Tensor]) -> list[Tensor]:
        return super().logits_on(views) if self.merged is None else self.merged(views)

    def begin_attacks(self, images: Tensor) -> None:
        """What its attacks keep, as before the first step.

        images: like a full batch in shape, dtype, layout and device
        """
        for attack in self.objective.attacks.values():
            self.attack_state |= attack.state(self.threats, images)

    def averaged(self) -> AbstractContextManager[None]:
        """The network that is evaluated and saved: the average of weights, if there is one."""
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
            **self.attack_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.swa is not None:
            self.swa.load_state_dict(state["swa"])
        for name, tensor in self.attack_state.items():
            tensor.copy_(state[name])


class Teacher(Member):
    """A member that is not trained: in eval mode, without gradient.

    weights, digest: its file, and what is in it
    remarks: lines about its classes
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
