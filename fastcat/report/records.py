"""The records of a run's folder, as what reads them sees them.

metrics.jsonl holds an `EpochRecord` a line, eval/*.json an `EvaluationRecord`. Fields with a
default came later, and older files are without them; what a newer fastcat adds is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Record = TypeVar("Record")


def _read(kind: type[Record], values: Mapping[str, Any], **read: Any) -> Record:
    """A record of the fields that are there; read: those that are records themselves."""
    known = {one.name: values[one.name] for one in fields(kind) if one.name in values}  # type: ignore[arg-type]
    return kind(**{**known, **read})


@dataclass(frozen=True, kw_only=True)
class PeerRecord:
    """A peer after an epoch.

    train: means over the training images, by term of its loss, "loss" and "accuracy"
    accuracy: on the monitored images, by attack, in [0, 1]; empty without such images
    unanswered: by attack, how many images got logits that are NaN or infinite
    commonest: "class" that it answers most often to clean images, and "share" of these answers
    best: whether this is its best epoch so far
    signs: what points to a collapse, by name, each with a sentence
    """

    train: dict[str, float]
    accuracy: dict[str, float]
    best: bool
    unanswered: dict[str, int] = field(default_factory=dict)
    commonest: dict[str, Any] | None = None
    signs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """An epoch.

    epoch, epochs: its number, from 1 on, and how many there are
    lr: learning rate of its last step
    seconds: of its training
    images_per_second: training images by seconds
    judging_seconds: of its validation
    peak_memory_mib: most memory so far, on a GPU its own
    select_on: images that choose the best weights, "val", "test" or "last" for none
    judged_on: images of the accuracies, "val", "test" or None for none
    peers: by name
    rollbacks: returns to an earlier epoch so far, each with "from", "to" and "reason"
    """

    epoch: int
    epochs: int
    lr: float
    seconds: float
    images_per_second: float
    judging_seconds: float
    peak_memory_mib: float
    select_on: str
    judged_on: str | None
    peers: dict[str, PeerRecord]
    rollbacks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> EpochRecord:
        """Raises KeyError or TypeError for values that are no such record."""
        peers = {name: _read(PeerRecord, peer) for name, peer in values["peers"].items()}
        return _read(cls, values, peers=peers)


@dataclass(frozen=True, kw_only=True)
class AttackRecord:
    """An attack on one peer.

    correct: images that were classified correctly under it
    accuracy: their share
    ci95: ends of its 95 % confidence interval over the choice of images
    unanswered: how many of the others got logits that are NaN or infinite
    """

    correct: int
    accuracy: float
    ci95: tuple[float, float]
    unanswered: int = 0


@dataclass(frozen=True, kw_only=True)
class PeerEvaluation:
    """An evaluation of one peer.

    weights: file of its weights
    info: what that file says of itself, as `WeightsInfo` has it
    threats: threat models, each with "norm", "eps" and "step_size" as they are typed
    restarts: random starts of each attack
    n: images
    attacks: by name
    without_gradient: images whose gradient had NaN
    """

    weights: str
    info: dict[str, Any]
    threats: list[dict[str, str]]
    restarts: int
    n: int
    attacks: dict[str, AttackRecord]
    without_gradient: int = 0

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> PeerEvaluation:
        """Raises KeyError or TypeError for values that are no such record."""
        attacks = {name: _read(AttackRecord, one) for name, one in values["attacks"].items()}
        return _read(cls, values, attacks=attacks)


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """An evaluation of one run's peers.

    data, data_digest: name and exact content of the data set
    split: its images, "test" or "train"
    restarts, seed: of the attacks
    precision: arithmetic of the networks
    environment: versions and hardware
    peers: by name
    """

    data: str
    data_digest: str
    split: str
    restarts: int
    seed: int
    precision: str
    environment: dict[str, Any]
    peers: dict[str, PeerEvaluation]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> EvaluationRecord:
        """Raises KeyError or TypeError for values that are no such record."""
        peers = {name: PeerEvaluation.read(peer) for name, peer in values["peers"].items()}
        return _read(cls, values, peers=peers)


@dataclass(frozen=True, kw_only=True)
class SeedsEvaluation:
    """An evaluation of the runs of several seeds.

    seeds: of the runs
    n, split: images of each evaluation
    threats, restarts: as in `PeerEvaluation`
    spread: by peer and attack how accuracy spreads, each a `Spread` as a dict
    """

    seeds: list[int]
    n: int
    split: str
    threats: list[dict[str, str]]
    restarts: int
    spread: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> SeedsEvaluation:
        """Raises TypeError for values that are no such record."""
        return _read(cls, values)
