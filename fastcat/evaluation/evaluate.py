"""How many images of a loader a model still gets right under each attack.

An image counts as robust under an attack when no restart fools the model; "worst" counts the
images that survive every attack asked for. The last PGD iterate counts, as in the papers.
Logits that are NaN or infinite are no answer: such an image is fooled, and counted beside.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.pgd import PGD, Network, attacked, constant_logits
from fastcat.attacks.threat import ThreatModel, check_threat
from fastcat.cpus import shared_cpus
from fastcat.errors import InputError, check_number, nearest
from fastcat.evaluation.attack import EvalAttack, EvaluationAttack, NoiseAttack, parse_attacks
from fastcat.guard import NO_ANSWER, CheckedNetwork, answers, as_batch
from fastcat.precision import Precision
from fastcat.seeds import derive_seed


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation.

    n: images
    correct: by attack, and for all attacks together ("worst"), how many were classified correctly
    unanswered: by attack, how many of the others got logits that are NaN or infinite
    without_gradient: images whose gradient had NaN, where no attack moves a pixel
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
    attack: NoiseAttack,
    threat: ThreatModel,
    noise: Tensor,
) -> Tensor:
    """The network's `answers`, int64 [B], after one restart of an attack, in eval mode.

    threat: from `attack.under`
    noise: from `attack.noise`

    A function of device tensors of static shape, which never waits for the device.
    """
    x_adv = attack.find(network, x, y, threat, noise)
    with attacked([network], [PGD()]):
        return answers(constant_logits(network, x_adv))


def last_answers(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    generator: torch.Generator,
    answers_after: Callable[..., Tensor] = answers_after,
) -> Tensor:
    """Each image's answer after the first restart that fools the network, or else its label: int64
    [B].

    answers_after: in the place of that of this module
    """
    if not isinstance(attack.attack, NoiseAttack):
        return _answers_to_own(network, x, y, attack, threat, generator)
    last = y.clone()
    threat = attack.attack.under(threat)
    one_start = replace(threat, restarts=1)
    for _ in range(threat.restarts):
        # what is fooled stays fooled, so only the others are attacked again
        rows = (last == y).nonzero().squeeze(1)
        if not len(rows):
            break
        noise = attack.attack.noise(x[rows], threat, generator)
        last[rows] = answers_after(network, x[rows], y[rows], attack.attack, one_start, noise)
    return last


def _answers_to_own(
    network: Network,
    x: Tensor,
    y: Tensor,
    attack: EvalAttack,
    threat: ThreatModel,
    generator: torch.Generator,
) -> Tensor:
    """int64 [B]: what the network answers after an attack that makes images in its own way.

    Raises InputError where these are not images that the threat model allows.
    """
    assert not isinstance(attack.attack, NoiseAttack)
    with attacked([network], [PGD()]):
        with torch.enable_grad():
            x_adv = attack.attack(network, x.clone(), y.clone(), threat, generator)
        if not isinstance(x_adv, Tensor) or (x_adv.shape, x_adv.dtype) != (x.shape, x.dtype):
            raise InputError(
                f"the attack {attack.name} gives {_kind(x_adv)}, expected images {_kind(x)}"
            )
        x_adv = x_adv.detach()
        low, high = (float(bound) for bound in x_adv.aminmax())
        moved = float(threat.distance(x, x_adv).max())
        # rounding in the last step of an attack is no cheat
        if not (low >= -1e-6 and high <= 1 + 1e-6 and moved <= threat.eps * 1.001 + 1e-6):
            raise InputError(
                f"the attack {attack.name} gives pixels from {low:.3g} to {high:.3g}, up to "
                f"{moved:.3g} away in {threat.norm}: expected [0, 1] and at most {threat.eps:.3g}"
            )
        return answers(constant_logits(network, x_adv))


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def choose_attacks(attacks: Any) -> tuple[EvalAttack, ...]:
    """Attacks as `evaluate` takes them. Raises InputError for anything else."""
    if isinstance(attacks, str):
        return parse_attacks(attacks)
    if callable(attacks) or isinstance(attacks, EvalAttack | NoiseAttack):
        attacks = [attacks]
    if not isinstance(attacks, list | tuple):
        raise InputError(
            f"attacks are {attacks!r:.40}, expected names: type for example clean,pgd20"
        )
    if all(isinstance(each, str) for each in attacks):
        return parse_attacks(",".join(attacks))
    chosen: list[EvalAttack] = []
    for each in attacks:
        if isinstance(each, str):
            chosen += parse_attacks(each)
        elif isinstance(each, EvalAttack):
            chosen.append(each)
        elif not isinstance(each, type) and (callable(each) or isinstance(each, NoiseAttack)):
            name = getattr(each, "__name__", type(each).__name__)
            chosen.append(EvalAttack(name, each))
        else:
            raise InputError(
                f"attacks are {attacks!r:.40}, expected names or functions: type for example "
                "clean,pgd20"
            )
    return tuple(chosen)


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
        made_under = threats if attack.has_threat else threats[:1]
        for threat in made_under:
            name = attack.name if len(made_under) == 1 else f"{attack.name}-{threat.norm}"
            trials.append((name, attack, threat))
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
    attacks: str | EvaluationAttack | Sequence[str | EvalAttack | EvaluationAttack | NoiseAttack],
    threat: ThreatModel | Sequence[ThreatModel],
    *,
    seed: int = 0,
    precision: Precision | None = None,
    after_batch: Callable[[int], object] | None = None,
    answers_after: Callable[..., Tensor] = answers_after,
) -> Report:
    """Accuracy of `model` under each attack.

    model: as for `fastcat.attack`; it is left as it was
    loader: batches whose first two members are images and labels [B], moved to the model's device
    attacks: names as "clean,fgsm,pgd20,pgd:loss=dlr:steps=40", also in a list; your own as
        "package.module:function", or an EvaluationAttack, which is called by its `__name__`
    threat: radius, step size and restarts; steps come from the attacks. Several threat models of
        distinct norms: each attack is made under each, as "pgd20-l2"
    seed: of the attacks' starts
    precision: arithmetic of the network. None: as the model is
    after_batch: called with the number of images so far
    answers_after: in the place of that of this module

    An image whose logits are NaN or infinite has no answer: it counts as wrong, and in
    `Report.unanswered`. Where a gradient is NaN no attack moves a pixel; `Report.without_gradient`
    counts such images.
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
    worst = unanswered_any = without_gradient = n = 0
    generator: torch.Generator | None = None
    for batch in batches:
        x, y = as_batch(*_first_two(batch))
        if parameter is not None:
            x, y = x.to(parameter.device), y.to(parameter.device)
        network = model if isinstance(model, Frozen) else CheckedNetwork(model, x, y)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(derive_seed(seed, "evaluation"))
        answers_by = []
        for name, attack, under in trials:
            with (
                precision.autocast() if precision else torch.autocast(x.device.type, enabled=False)
            ):
                given = last_answers(network, x, y, attack, under, generator, answers_after)
            answers_by.append(given)
            correct[name] += int((given == y).sum())
            unanswered[name] += int((given == NO_ANSWER).sum())
        each = torch.stack(answers_by)
        worst += int((each == y).all(0).sum())
        unanswered_any += int((each == NO_ANSWER).any(0).sum())
        if isinstance(network, CheckedNetwork):
            without_gradient += int(network.without_gradient)
        n += len(y)
        if after_batch is not None:
            after_batch(n)
    if n == 0:
        raise InputError("nothing to evaluate: the loader gave no images")
    if len(trials) > 1:
        correct["worst"], unanswered["worst"] = worst, unanswered_any
    return Report(n, correct, unanswered, without_gradient)
