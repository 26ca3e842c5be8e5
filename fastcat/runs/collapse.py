"""What goes wrong in training, named after the epoch in which it shows.

Signs are read from an epoch's record and from what is remembered of earlier ones, which travels in
checkpoints: a resumed run sees what an undisturbed one sees. Without monitored images there are
none. With averaged weights it is the average that is watched, as it is what is validated.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fastcat.errors import InputError
from fastcat.report.records import EpochRecord
from fastcat.report.signs import new_signs

# other classes are answered so much more rarely than they occur: no classifier that has learnt
# anything is as lopsided, a collapsed one answers a single class
ONE_CLASS = 0.05
# of FGSM's accuracy, and of the best so far: a healthy ResNet-18 keeps 0.9 of either (Rice et al.
# 2020), after catastrophic overfitting it keeps about nothing (Wong et al. 2020)
MULTI_STEP_SHARE = 0.5
# adversarial training can stand still for an epoch or two before it takes off
DEAD_EPOCHS = 3
# of the best PGD accuracy; at a high learning rate it swings by about as much from epoch to epoch,
# so the fall has to last
OVERFIT_FALL = 0.05
OVERFIT_EPOCHS = 3
MOST_ROLLBACKS = 3

ONE, ONE_SO_FAR, DEAD, SILENT = "one class", "one class so far", "dead", "no answer"
CATASTROPHIC, ROBUST = "catastrophic overfitting", "robust overfitting"
COLLAPSES = (ONE, DEAD, SILENT, CATASTROPHIC)


class Collapse(InputError):
    """Training came to nothing, for `reason`; the last checkpoint holds the run."""

    def __init__(self, reason: str, checkpoint: Path) -> None:
        super().__init__(
            f"{reason}: stopped; the run is kept as it was in {checkpoint}: "
            "start a new run with a lower --lr or with --precision fp32"
        )
        self.reason = reason


def noise(share: float, images: int) -> float:
    """Two standard errors of a share of that many images."""
    return 2 * (share * (1 - share) / images) ** 0.5


class Watch:
    """Looks for signs of a collapse in the record of every epoch.

    attacked: names of the peers that train on adversarial images, of which robustness is expected
    pairs: names in records of the accuracies under one step and under many, by threat model
    attack: name in records of the attack whose accuracy is the robust one
    images: how many images are monitored
    chance: share of their most frequent class
    """

    def __init__(
        self,
        attacked: Collection[str],
        pairs: Sequence[tuple[str, str]],
        attack: str,
        images: int,
        chance: float,
    ) -> None:
        self.attacked = frozenset(attacked)
        self.pairs = pairs
        self.attack = attack
        self.images = images
        self.chance = chance
        # by peer: whether it ever was better than chance, for how many epochs it has not been; best
        # accuracy under each attack of many steps; best robust accuracy, training accuracy then,
        # for how many epochs it has clearly been less
        self.memory: dict[str, dict[str, Any]] = {}

    def look(self, peers: dict[str, dict[str, Any]]) -> None:
        """Add to the peers' entries of an epoch's record their "signs", sentences by name."""
        for name, entry in peers.items():
            entry["signs"] = self._signs(name, entry) if entry["accuracy"] else {}

    def _signs(self, name: str, entry: dict[str, Any]) -> dict[str, str]:
        first = {
            "learnt": False, "at_chance": 0, "under": {}, "robust": 0.0, "train": 0.0, "fallen": 0
        }  # fmt: skip
        past = self.memory.setdefault(name, first)
        accuracy, answer = entry["accuracy"], entry["commonest"]
        signs = {}

        at_chance = accuracy["clean"] <= self.chance + noise(self.chance, self.images)
        past["at_chance"] = past["at_chance"] + 1 if at_chance else 0
        past["learnt"] = past["learnt"] or not at_chance
        if 1 - answer["share"] < ONE_CLASS * (1 - self.chance):
            # where nothing was learnt yet nothing has collapsed; too long, and it is dead
            sign = ONE if past["learnt"] else ONE_SO_FAR
            signs[sign] = f"{100 * answer['share']:.1f}% of its answers are {answer['class']!r}"
        if past["at_chance"] >= DEAD_EPOCHS:
            signs[DEAD] = (
                f"{100 * accuracy['clean']:.2f}% clean accuracy, "
                f"for {past['at_chance']} epochs no better than one constant answer"
            )

        silent = {attack: count for attack, count in entry["unanswered"].items() if count}
        if silent:
            counts = ", ".join(f"{count} under {attack}" for attack, count in silent.items())
            signs[SILENT] = f"NaN or infinite logits for images of {self.images}: {counts}"

        if name in self.attacked:
            signs |= self._overfitting(past, accuracy, entry["train"]["accuracy"])
        return signs

    def _overfitting(
        self, past: dict[str, Any], accuracy: dict[str, float], train: float
    ) -> dict[str, str]:
        robust, best = accuracy[self.attack], past["robust"]
        fallen = best - robust > max(OVERFIT_FALL * best, noise(best, self.images))
        past["fallen"] = past["fallen"] + 1 if fallen else 0
        sentences = [self._catastrophic(pair, past["under"], accuracy) for pair in self.pairs]
        if any(sentences):
            return {CATASTROPHIC: "; ".join(filter(None, sentences))}
        if past["fallen"] >= OVERFIT_EPOCHS and train > past["train"]:
            return {
                ROBUST: f"{100 * robust:.2f}% against {self.attack}, which was "
                f"{100 * best:.2f}%, while training accuracy went from "
                f"{100 * past['train']:.2f}% to {100 * train:.2f}%"
            }
        if robust > best:
            past |= {"robust": robust, "train": train}
        return {}

    def _catastrophic(
        self, pair: tuple[str, str], bests: dict[str, float], accuracy: dict[str, float]
    ) -> str | None:
        """What is left under many steps where one step does no harm."""
        one_step, many = (accuracy[name] for name in pair)
        best = bests.get(pair[1], 0.0)
        beyond_noise = one_step - many > noise(one_step, self.images)
        if beyond_noise and many <= MULTI_STEP_SHARE * min(one_step, best):
            against = (
                f"{100 * one_step:.2f}% against {pair[0]}, {100 * many:.2f}% against {pair[1]}"
            )
            return f"{against}, which was {100 * best:.2f}%"
        bests[pair[1]] = max(best, many)
        return None

    @property
    def at_ease(self) -> bool:
        """Whether no peer is at chance: what is worth coming back to."""
        return not any(past["at_chance"] for past in self.memory.values())


def collapse(record: dict[str, Any]) -> str | None:
    """The signs of an epoch's record that training came to nothing, in words."""
    lines = new_signs(EpochRecord.read(record), None, COLLAPSES)
    return "; ".join(lines) or None
