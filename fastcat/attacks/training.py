"""An attack on a peer in training: the one interface between methods' attacks and the step.

An objective names its attack by an object of settings, for example `PGD(loss="kl")`. An attack of a
new kind is a class with this interface in a file of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from fastcat.attacks.modes import Network, NormMode
from fastcat.attacks.threat import Start, ThreatModel, Threats
from fastcat.batch import Batch


@dataclass(frozen=True, kw_only=True)
class TrainingAttack(ABC):
    """Settings of an attack.

    views: names of the views that it finds
    before_step: whether it finds them by passes of its own before the step
    start: where it starts
    bn: how BatchNorm behaves in the attacked network
    target: whose prediction on the clean images it moves away from, where it does
    """

    views: ClassVar[tuple[str, ...]] = ("adv",)
    before_step: ClassVar[bool] = True
    start: Start = "zero"
    bn: NormMode = "eval"
    target: Literal["own", "teacher"] = "own"

    def check(self, threats: Threats, peer: int) -> None:  # noqa: B027
        """Raise InputError for threat models under which this attack cannot run."""

    def check_classes(self, classes: int) -> None:  # noqa: B027
        """Raise InputError for so many classes that the attack has no meaning."""

    def explored(self, threats: Threats) -> Threats:
        """The threat models as this attack explores them."""
        return threats

    def starts(self, threats: Threats) -> list[tuple[ThreatModel, Start]]:
        """The start noise that it needs: each a draw in the ball of a threat model."""
        return [(threat, self.start) for threat in threats.models for _ in self.views]

    def state(self, threats: Threats, images: Tensor) -> dict[str, Tensor]:
        """What it keeps from step to step, by name; a checkpoint holds it.

        images: like a full batch in shape, dtype, layout and device
        """
        return {}

    @abstractmethod
    def find(self, task: "PeerAttack", work: "Work") -> dict[str, Tensor]:
        """The views by the names in `task.views`, each [B, C, H, W].

        And "which0", where several threat models made the views of peer 0: of each image [B] the
        number of its threat model.
        """

    @classmethod
    def family(cls) -> type["TrainingAttack"]:
        """The class whose `find_all` runs this attack, together with others of that family."""
        return TrainingAttack

    @classmethod
    def find_all(cls, tasks: Sequence["PeerAttack"], work: "Work") -> dict[str, Tensor]:
        """As `find`, for the attacks of several peers; one after the other."""
        found: dict[str, Tensor] = {}
        for task in tasks:
            found |= task.attack.find(task, work)
        return found

    def after_backward(  # noqa: B027
        self, task: "PeerAttack", views: Mapping[str, Tensor], x: Tensor, state: dict[str, Tensor]
    ) -> None:
        """Called after the peer's backward pass, whose gradients its views may have gathered.

        views: by name, as the attack found them
        x: the clean images
        state: of the peer, to be changed in place
        """


class PeerAttack(NamedTuple):
    """An attack on one peer of a team.

    peer: its number
    views: the logit table's names of what is found
    attack: its settings
    threats: the threat models, as the attack explores them
    first: index of its first start along axis S of the start noise
    teacher: number of the teacher whose prediction it moves away from, None for the peer's own
    """

    peer: int
    views: tuple[str, ...]
    attack: TrainingAttack
    threats: Threats
    first: int
    teacher: int | None = None

    @property
    def starts(self) -> list[tuple[ThreatModel, Start]]:
        return self.attack.starts(self.threats)


class Work(NamedTuple):
    """What the attacks of a step read.

    batch: clean images and labels
    noise: [restarts, S, B, C, H, W], of the S starts of all attacks
    networks: what each attack runs on
    states: by peer what its attack keeps
    targets: by teacher its logits [B, classes] on the clean images
    grad_scale: factor of the climbed loss, which keeps float16 gradients from underflowing
    turn: number of the threat model, where a batch has a step for each
    """

    batch: Batch
    noise: Tensor
    networks: Mapping[PeerAttack, Network]
    states: Mapping[int, dict[str, Tensor]]
    targets: Mapping[int | None, Tensor]
    grad_scale: float
    turn: int = 0

    def start_of(self, task: PeerAttack) -> Tensor:
        """Start noise [S, B, C, H, W] of an attack without restarts."""
        return self.noise[0, task.first : task.first + len(task.starts)]
