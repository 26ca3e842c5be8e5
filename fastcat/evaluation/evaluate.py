"""How many images of a loader a model still gets right under each attack.

An image counts as robust under an attack when no restart fools the model; "worst" counts the
images that survive every attack asked for. The last PGD iterate is judged, as in the papers.
Logits that are NaN or infinite are no answer: such an image is fooled, and counted beside.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.cpus import shared_cpus
from fastcat.errors import InputError, check_number, nearest
from fastcat.frozen import Frozen
from fastcat.guard import NO_ANSWER, CheckedNetwork, answers, as_batch
from fastcat.pgd import AttackLoss, Inner, Network, attack_all, attacked, logits
from fastcat.precision import Precision
from fastcat.seeds import derive_seed
from fastcat.threat import ThreatModel, check_threat

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
    """n images were judged; correct: survivors by attack, and of all attacks as "worst";
    unanswered: how many of the others got logits that are NaN or infinite, of "worst" under any;
    without_gradient: images whose gradient had NaN, where no attack moves a pixel.
    """

    n: int
    correct: dict[str, int]
    unanswered: dict[str, int]
    without_gradient: int = 0

    def accuracy(self, attack: str) -> float:
        """The surviving share in [0, 1]. Raises InputError for an attack that was not made."""
        return self._survivors(attack) / self.n

    def interval(self, attack: str) -> tuple[float, float]:
        """Its 95 % confidence interval over the choice of images. Raises as `accuracy` does."""
        return wilson_interval(self._survivors(attack), self.n)

    def _survivors(self, attack: str) -> int:
        if attack not in [*self.correct]:
            raise InputError(f"nothing was judged by {attack!r}: {nearest(attack, self.correct)}")
        return self.correct[attack]

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "without_gradient": self.without_gradient,
            "attacks": {
                name: {
                    "correct": count,
                    "accuracy": count / self.n,
                    "ci95": self.interval(name),
                    "unanswered": self.unanswered[name],
                }
                for name, count in self.correct.items()
            },
        }


def answers_after(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    noise: Tensor,
) -> Tensor:
    """int64 [B]: what the network `answers` after one attack from this start noise, in eval mode.

    A function of device tensors of static shape, which asks the host nothing.
    """
    if attack.inner is not None:
        x = attack_all([network], [attack.inner], x, y, threat, noise[None, None])[0]
    with attacked([network], [Inner()]):
        return answers(logits(network, x))


def last_answers(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    generator: torch.Generator,
    answers_after: Callable[..., Tensor] = answers_after,
) -> Tensor:
    """int64 [B]: of each image the answer after the first restart that fools the network; its label
    where none does.
    """
    said = y.clone()
    threat = attack.under(threat)
    one_start = replace(threat, restarts=1)
    start = attack.inner.start if attack.inner is not None else "zero"
    for _ in range(1 if attack.inner is None else threat.restarts):
        # what is fooled stays fooled, so only the others are attacked again
        rows = (said == y).nonzero().squeeze(1)
        if not len(rows):
            break
        noise = threat.draw_noise(start, x[rows], generator)
        said[rows] = answers_after(network, x[rows], y[rows], attack, one_start, noise)
    return said


def choose_attacks(attacks: Any) -> tuple[EvalAttack, ...]:
    """Those of a text, of a list of names, or as they are. Raises InputError for anything else."""
    if isinstance(attacks, list | tuple) and all(isinstance(each, str) for each in attacks):
        attacks = ",".join(attacks)
    if isinstance(attacks, str):
        return parse_attacks(attacks)
    if isinstance(attacks, list | tuple) and all(isinstance(each, EvalAttack) for each in attacks):
        return tuple(attacks)
    raise InputError(f"attacks are {attacks!r:.40}, expected names: type for example clean,pgd20")


def make_trials(attacks: Any, threats: Any) -> list[tuple[str, EvalAttack, ThreatModel]]:
    """Each attack under each threat model, and what a report calls it.

    Raises InputError for what are no attacks or threat models, and for two under one name.
    """
    if not isinstance(threats, list | tuple) or not threats:
        threats = [threats]
    for threat in threats:
        check_threat(threat)
    trials: list[tuple[str, EvalAttack, ThreatModel]] = []
    for attack in choose_attacks(attacks):
        models = threats if attack.inner is not None else threats[:1]
        for model in models:
            name = attack.name if len(models) == 1 else f"{attack.name}-{model.norm}"
            trials.append((name, attack, model))
    names = [name for name, *_ in trials]
    if len({*names}) < len(names):
        raise InputError(
            f"{', '.join(names)}: a name stands there twice, expected each attack once and threat "
            "models of distinct norms"
        )
    return trials


_BATCHES = "expected batches (images, labels), as of a DataLoader, or [(x, y)] for a single one"


def _first_two(batch: Any) -> tuple[Any, Any]:
    """Images and labels of what a loader gives. Raises InputError where these are not to be had."""
    if not isinstance(batch, list | tuple) or len(batch) < 2:
        raise InputError(f"the loader gives a {type(batch).__name__}: {_BATCHES}")
    return batch[0], batch[1]


@shared_cpus()
@torch.inference_mode(False)
def evaluate(
    model: Network,
    loader: Iterable[Sequence[Any]],
    attacks: str | Sequence[str] | Sequence[EvalAttack],
    threat: ThreatModel | Sequence[ThreatModel],
    *,
    seed: int = 0,
    precision: Precision | None = None,
    after_batch: Callable[[int], object] | None = None,
    answers_after: Callable[..., Tensor] = answers_after,
) -> Report:
    """Accuracy of `model` under each attack.

    model: as for `fastcat.attack`; left as it was. An image whose logits are NaN or infinite has no
    answer: it counts as wrong, and `Report.unanswered` says how many there are. Where a gradient is
    NaN no attack moves a pixel: `Report.without_gradient` counts such images.
    loader: batches whose first two members are images and labels [B], moved to the model's device.
    attacks: names as "clean,fgsm,pgd20,cw20" or in a list. threat: radius, step size and restarts;
    steps come from the names; under several of distinct norms each attack is made, as "pgd20-l2".
    precision: None computes as the model is. after_batch gets the images so far; answers_after
    stands in for that of this module.
    Raises InputError for unknown attacks, for a loader without images or without labels, and as
    `fastcat.attack` does.
    """
    trials = make_trials(attacks, threat)
    check_number("seed", seed, "0", whole=True)
    if not (precision is None or isinstance(precision, Precision)):
        raise InputError(
            f"precision is {precision!r:.40}, expected None or a Precision: "
            "fastcat.precision.make_precision('bf16', device)"
        )
    if not (after_batch is None or callable(after_batch)):
        raise InputError(f"after_batch is {after_batch!r:.40}, expected a function of a number")
    try:
        batches = iter(loader)
    except TypeError as error:
        raise InputError(f"the loader {loader!r:.40} has no batches: {_BATCHES}") from error
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    correct = {name: 0 for name, *_ in trials}
    unanswered = dict(correct)
    worst = lost = blind = n = 0
    generator: torch.Generator | None = None
    for batch in batches:
        x, y = as_batch(*_first_two(batch))
        if parameter is not None:
            x, y = x.to(parameter.device), y.to(parameter.device)
        network = model if isinstance(model, Frozen) else CheckedNetwork(model, x, y)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(derive_seed(seed, "evaluation"))
        said_by = []
        for name, attack, under in trials:
            with (
                precision.autocast() if precision else torch.autocast(x.device.type, enabled=False)
            ):
                said = last_answers(network, x, y, attack, under, generator, answers_after)
            said_by.append(said)
            correct[name] += int((said == y).sum())
            unanswered[name] += int((said == NO_ANSWER).sum())
        each = torch.stack(said_by)
        worst += int((each == y).all(0).sum())
        lost += int((each == NO_ANSWER).any(0).sum())
        if isinstance(network, CheckedNetwork):
            blind += int(network.without_gradient)
        n += len(y)
        if after_batch is not None:
            after_batch(n)
    if n == 0:
        raise InputError("nothing to evaluate: the loader gave no images")
    if len(trials) > 1:
        correct["worst"], unanswered["worst"] = worst, lost
    return Report(n, correct, unanswered, blind)
