"""What an evaluation attack is, and how one is found by its name.

One file an attack in `fastcat/evaluation/attacks`: a function of the attack's settings, annotated
`-> EvaluationAttack` or `-> NoiseAttack`. The file's name is the attack's name.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastcat.attacks.pgd import Network
from fastcat.attacks.threat import ThreatModel
from fastcat.errors import InputError
from fastcat.registry import load, load_own, names
from fastcat.settings import read_settings, split_settings

PACKAGE = "fastcat.evaluation.attacks"
# ways to type an attack that are no file's name
FORMS = {
    "pgdN": "pgd:steps=N, for example pgd20 or pgd20:start=unclipped",
    "cwN": "cw:steps=N, for example cw20",
    "MODULE:FUNCTION": "your own: a function of its settings annotated -> EvaluationAttack",
}


class EvaluationAttack(Protocol):
    """From a network and images to adversarial images."""

    def __call__(
        self,
        network: Network,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        generator: torch.Generator,
    ) -> Tensor:
        """Adversarial images within `threat` of x, like x in shape and dtype.

        network: from images [B, C, H, W] in [0, 1] to logits [B, classes], in eval mode.
        x: images [B, C, H, W].
        y: class indices int64 [B].
        threat: norm, radius, step size and restarts.
        generator: of all that is drawn, on the images' device.
        """


class NoiseAttack(ABC):
    """An attack that is a function of its start noise and never waits for the device.

    Evaluation restarts it on the images that are still classified correctly, and training replays
    it as a CUDA graph. Attacks with equal settings are equal and have the same hash.
    has_threat: whether it is another attack under another threat model
    """

    has_threat = True

    @abstractmethod
    def under(self, threat: ThreatModel) -> ThreatModel:
        """`threat` with this attack's step size, steps and restarts."""

    @abstractmethod
    def noise(self, x: Tensor, threat: ThreatModel, generator: torch.Generator | None) -> Tensor:
        """Start noise of one restart, like x [B, C, H, W]."""

    @abstractmethod
    def find(
        self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, noise: Tensor
    ) -> Tensor:
        """Adversarial images [B, C, H, W] of one restart.

        threat: from `under`.
        noise: from `noise`.
        """


@dataclass(frozen=True)
class EvalAttack:
    """An attack and the name that reports call it by."""

    name: str
    attack: EvaluationAttack | NoiseAttack

    @property
    def has_threat(self) -> bool:
        """Whether the attack is another one under another threat model."""
        return getattr(self.attack, "has_threat", True)


def find_attack(name: str) -> Callable[..., EvaluationAttack | NoiseAttack]:
    """The function of its settings that makes the attack called `name`.

    name: of a file in `fastcat/evaluation/attacks`, or the user's own as `package.module:function`.
    Raises InputError for a name that leads nowhere.
    """
    if ":" in name:
        return load_own(name, "attack", EvaluationAttack, NoiseAttack)
    return load(PACKAGE, name, "attack")


def parse_attack(text: str) -> EvalAttack:
    """The attack typed as `NAME:key=value:key=value`.

    Raises InputError for an unknown name, and with the usage for an unknown setting.
    """
    # pgd20 is short for pgd:steps=20
    typed = re.sub(r"^(pgd|cw)([1-9]\d*)(?=:|$)", r"\1:steps=\2", text)
    name, *settings = typed.split(":")
    if name not in names(PACKAGE):
        if not settings or "=" in settings[0]:
            known = ", ".join([*names(PACKAGE), *FORMS])
            raise InputError(
                f"unknown attack {text!r}: expected some of {known}, for example clean,fgsm,pgd20"
            )
        name = f"{name}:{settings.pop(0)}"
    function = find_attack(name)
    values = split_settings(settings, f"attack {text!r}", "pgd:steps=20:restarts=5")
    attack = function(**read_settings(name, function, values))
    return EvalAttack(text, attack)


def parse_attacks(text: str) -> tuple[EvalAttack, ...]:
    """ "clean,fgsm,pgd20" -> its attacks. Raises InputError as `parse_attack`, and for twins."""
    attacks = tuple(parse_attack(part.strip()) for part in text.split(","))
    if len({attack.name for attack in attacks}) < len(attacks):
        raise InputError(f"attacks {text!r}: one stands there twice")
    return attacks
