"""How many images of a loader a model still gets right under each attack.

An image counts as robust under an attack when no restart fools the model; "worst" counts the
images that survive every attack asked for. The last PGD iterate is judged, as in the papers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.attack import AttackLoss, Inner, Network, attack_all
from fastcat.cpus import shared_cpus
from fastcat.errors import InputError
from fastcat.frozen import Frozen
from fastcat.guard import check_images
from fastcat.modes import attack_mode
from fastcat.precision import Precision
from fastcat.seeds import derive_seed
from fastcat.threat import ThreatModel

ATTACKS = {
    "clean": "no attack",
    "fgsm": "one step of length eps from the image itself, cross-entropy (Goodfellow et al. 2015)",
    "pgdN": "N steps from a uniform start, cross-entropy, for example pgd20 (Madry et al. 2018)",
    "cwN": "N PGD steps on the Carlini-Wagner margin from a uniform start, for example cw20",
    "NAME:start=START": "pgdN or cwN from gaussian, zero or unclipped, uniform noise that is not "
    "clipped to [0, 1] before the first gradient, for example pgd20:start=unclipped",
}


@dataclass(frozen=True)
class EvalAttack:
    """An attack by its name; inner None: no attack, steps None: FGSM's single step of eps."""

    name: str
    inner: Inner | None
    steps: int | None = None

    def under(self, threat: ThreatModel) -> ThreatModel:
        """`threat` with this attack's steps; FGSM has nothing to restart."""
        if self.steps is None:
            return replace(threat, steps=1, step_size=threat.eps, restarts=1)
        return replace(threat, steps=self.steps)


def parse_attacks(text: str) -> tuple[EvalAttack, ...]:
    """ "clean,fgsm,pgd20" -> its attacks. Raises InputError for a name that is not in ATTACKS."""
    attacks = []
    for name in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"(pgd|cw)([1-9]\d*)(?::start=(\w+))?", name)
        if name == "clean":
            attacks.append(EvalAttack(name, None))
        elif name == "fgsm":
            attacks.append(EvalAttack(name, Inner(loss="ce", start="zero")))
        elif match:
            loss: AttackLoss = "ce" if match[1] == "pgd" else "margin"
            inner = Inner(loss=loss, start=match[3] or "uniform")  # type: ignore[arg-type]
            attacks.append(EvalAttack(name, inner, int(match[2])))
        else:
            raise InputError(
                f"unknown attack {name!r}: expected some of {', '.join(ATTACKS)}, "
                "for example clean,fgsm,pgd20"
            )
    if len({attack.name for attack in attacks}) < len(attacks):
        raise InputError(f"attacks {text!r}: one stands there twice")
    return tuple(attacks)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Report:
    """n images were judged; correct: survivors by attack, and of all attacks as "worst"."""

    n: int
    correct: dict[str, int]

    def accuracy(self, attack: str) -> float:
        """The surviving share in [0, 1]."""
        return self.correct[attack] / self.n

    def interval(self, attack: str) -> tuple[float, float]:
        """Its 95 % confidence interval over the choice of images."""
        return wilson_interval(self.correct[attack], self.n)

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "attacks": {
                name: {"correct": count, "accuracy": count / self.n, "ci95": self.interval(name)}
                for name, count in self.correct.items()
            },
        }


def robust(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    noise: Tensor,
) -> Tensor:
    """Bool [B]: the images still right after one attack from this start noise, in eval mode.

    A function of device tensors of static shape, which asks the host nothing.
    """
    if attack.inner is not None:
        x = attack_all([network], [attack.inner], x, y, threat, noise[None, None])[0]
    model = network.model if isinstance(network, Frozen) else network
    with torch.no_grad(), attack_mode(model, "eval"):
        door = x.to(network.dtype) if isinstance(network, Frozen) else x
        return network(door).argmax(1) == y


def survivors(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    generator: torch.Generator,
    robust: Callable[..., Tensor] = robust,
) -> Tensor:
    """Bool [B]: the images that no restart fools."""
    alive = torch.ones_like(y, dtype=torch.bool)
    threat = attack.under(threat)
    one_start = replace(threat, restarts=1)
    start = attack.inner.start if attack.inner is not None else "zero"
    for _ in range(1 if attack.inner is None else threat.restarts):
        # what is fooled stays fooled, so only the others are attacked again
        rows = alive.nonzero().squeeze(1)
        if not len(rows):
            break
        noise = threat.draw_noise(start, x[rows], generator)
        alive[rows] = robust(network, x[rows], y[rows], attack, one_start, noise)
    return alive


@shared_cpus()
def evaluate(
    model: Network,
    loader: Iterable[Sequence[Any]],
    attacks: str | Sequence[EvalAttack],
    threat: ThreatModel | Sequence[ThreatModel],
    *,
    seed: int = 0,
    precision: Precision | None = None,
    after_batch: Callable[[int], object] | None = None,
    robust: Callable[..., Tensor] = robust,
) -> Report:
    """Accuracy of `model` under each attack.

    model: any nn.Module or callable from images [B, C, H, W] in [0, 1] to logits; left as it was.
    loader: batches whose first two members are images and labels [B], moved to the model's device.
    attacks: names as "clean,fgsm,pgd20,cw20". threat: radius, step size and restarts; steps come
    from the names; under several of distinct norms each attack is made, as "pgd20-l2". precision
    None computes as the model is. after_batch gets the images so far; robust judges a batch.
    Raises InputError for unknown attacks, images outside [0, 1], and a loader without images.
    """
    chosen = parse_attacks(attacks) if isinstance(attacks, str) else tuple(attacks)
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    threats = [threat] if isinstance(threat, ThreatModel) else list(threat)
    trials = []
    for attack in chosen:
        models = threats if attack.inner is not None else threats[:1]
        for under in models:
            name = attack.name if len(models) == 1 else f"{attack.name}-{under.norm}"
            trials.append((name, attack, under))
    correct = {name: 0 for name, *_ in trials}
    worst = n = 0
    generator: torch.Generator | None = None
    for x, y, *_ in loader:
        if parameter is not None:
            x, y = x.to(parameter.device), y.to(parameter.device)
        check_images(x)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(derive_seed(seed, "evaluation"))
        alive_always = torch.ones_like(y, dtype=torch.bool)
        for name, attack, under in trials:
            with (
                precision.autocast() if precision else torch.autocast(x.device.type, enabled=False)
            ):
                alive = survivors(model, x, y, attack, under, generator, robust)
            correct[name] += int(alive.sum())
            alive_always &= alive
        worst += int(alive_always.sum())
        n += len(y)
        if after_batch is not None:
            after_batch(n)
    if n == 0:
        raise InputError("nothing to evaluate: the loader gave no images")
    if len(trials) > 1:
        correct["worst"] = worst
    return Report(n, correct)
