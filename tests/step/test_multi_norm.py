"""Several threat models: specialists, generalists and MAT-MP against the oracle of tests/reference.

What is compared, and the tolerances, are those of test_parity.py, but that float64 is held to
1e-9 where TRADES or ST takes steps of l2: those keep the size of a gradient, which near the start
is a difference of almost equal numbers, and not its sign alone (measured 1e-11).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fastcat.step.algorithm
from fastcat.attacks.threat import OFFICIAL, WAYS, ThreatModel
from fastcat.batch import Batch
from fastcat.config.threats import choose_threats
from fastcat.objectives import make_objective
from fastcat.precision import Precision, make_precision
from fastcat.step.algorithm import attack_views, collaborative_step
from tests.harness.comparison import (
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    KL_TOLERANCE,
    assert_close,
)
from tests.harness.networks import images, mixing, tiny_net
from tests.harness.parity import STEPS, assert_left_behind
from tests.harness.teams import FP32, team_of
from tests.reference.attack import START
from tests.reference.multi_norm import Ball, Learner, Task, Views, multi_norm_step
from tests.reference.step import StepResult

pytestmark = pytest.mark.usefixtures("one_thread")

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": False}
# of equal strength on images of 8 x 8, and of unequal length
BALLS = (
    Ball(norm="linf", eps=0.041, step_size=0.016, steps=3),
    Ball(norm="l2", eps=0.44, step_size=0.22, steps=2),
    Ball(norm="l1", eps=2.4, step_size=0.9, steps=4),
)
SIZE, SIDE = 7, 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training run; alpha: of the objective in "cat", of the guidance in "mat" and "mat-mp".

    code: whose l2 follows.
    """

    learners: Sequence[Learner]
    collab: str = "none"
    alpha: float = 0.3
    restarts: int = 1
    code: str | None = None
    mixed: bool = False
    awp: Sequence[float] | None = None

    @property
    def subjects(self) -> set[str]:
        """What the case is a case of, by the names in docs/methods.md."""
        return {one.threat for one in self.learners} & {*WAYS, *OFFICIAL} | {self.collab} & {
            "mat-mp"
        }

    @property
    def guidance_weight(self) -> float:
        return {"none": 0.0, "cat": 1 - self.alpha}.get(self.collab, self.alpha)

    @property
    def float64_tolerance(self) -> float:
        climbs_kl = any(one.method in ("trades", "st") for one in self.learners)
        return KL_TOLERANCE if climbs_kl else FLOAT64_TOLERANCE

    @property
    def balls(self) -> tuple[Ball, ...]:
        return tuple(replace(ball, code=self.code if ball.norm == "l2" else None) for ball in BALLS)

    @property
    def models(self) -> tuple[ThreatModel, ...]:
        return tuple(
            ThreatModel(
                norm=ball.norm,
                eps=ball.eps,
                step_size=ball.step_size,
                steps=ball.steps,
                restarts=self.restarts,
                code=ball.code,
            )
            for ball in self.balls
        )

    def mixing(self, dtype: torch.dtype) -> dict[str, Tensor]:
        y_mixed, share = mixing(0, SIZE)
        return {"y_mixed": y_mixed, "share": share.to(dtype)} if self.mixed else {}


def peer(method: str, threat: str, bn: str = "eval") -> Learner:
    return Learner(method=method, threat=threat, bn=bn)


def mat_mp(generalist: str, way: str, *specialists: str, **settings: Any) -> Case:
    """A generalist and specialists of linf, l2 and l1, boosted where nothing is said."""
    methods = specialists or ("boosted",) * 3
    others = [peer(method, ball.norm) for method, ball in zip(methods, BALLS, strict=True)]
    return Case(learners=[peer(generalist, way), *others], collab="mat-mp", **settings)


CASES = {
    f"{method}-{way}": Case(learners=[peer(method, way)])
    for method in ("at", "trades", "boosted")
    for way in ("avg", "max", "msd")
}
CASES |= {f"mat_mp-boosted-{way}": mat_mp("boosted", way) for way in ("avg", "max", "msd")}
CASES |= {
    "mat_mp-at-max": mat_mp("at", "max", "at", "at", "at"),
    "mat_mp-trades-avg": mat_mp("trades", "avg"),
    "mat_mp-trades-msd": mat_mp("trades", "msd", "at", "trades", "trades"),
    "specialists": Case(learners=[peer("at", "l2"), peer("trades", "l1"), peer("alp", "linf")]),
    "bn_train": Case(learners=[peer("at", way, "train") for way in ("avg", "max", "msd")]),
    "mat_mp-other_specialists": mat_mp("mart", "max", "trades", "at", "alp"),
    "mat_mp-generalist_last": replace(
        mat_mp("boosted", "max"), learners=mat_mp("boosted", "max").learners[::-1]
    ),
    "mat_mp-two_of_a_kind": Case(
        learners=[
            *mat_mp("boosted", "max").learners,
            peer("at", "avg"),
            peer("at", "linf"),
            peer("boosted", "msd"),
        ],
        collab="mat-mp",
    ),
    "mat_mp-mixed-max": mat_mp("boosted", "max", mixed=True),
    "mat_mp-awp-max": mat_mp("boosted", "max", awp=[0.02, 0.01, 0.0, 0.01]),
    "cat-avg": Case(learners=[peer("trades", "avg"), peer("alp", "l2")], collab="cat"),
    "cat-max+msd": Case(learners=[peer("at", "max"), peer("trades", "msd")], collab="cat"),
    "mat-avg+max": Case(learners=[peer("trades", "avg"), peer("at", "max")], collab="mat"),
    "mixed": Case(learners=[peer("boosted", way) for way in ("avg", "max", "msd")], mixed=True),
    "awp": Case(learners=[peer("at", "max"), peer("trades", "max")], awp=[0.02, 0.01]),
    "restarts": Case(learners=[peer("at", "max"), peer("trades", "avg")], restarts=2),
    "st": Case(learners=[peer("st", "l2"), peer("st", "l1")], collab="cat"),
    "official": Case(learners=[peer("at", "max-official"), peer("mart", "msd-official")]),
    "official-bn_train": Case(
        learners=[peer("at", f"{way}-official", "train") for way in ("max", "msd")]
    ),
    "official-avg": Case(learners=[peer("at", "avg-official")]),
    "official-avg-mixed": Case(learners=[peer("mart", "avg-official")], mixed=True),
    "official-mixed": Case(
        learners=[peer("at", "max-official"), peer("at", "msd-official")], mixed=True
    ),
    "mat_mp-official-max": mat_mp("at", "max-official"),
    "l2_of_trades": Case(learners=[peer("trades", "l2"), peer("at", "msd")], code="trades"),
}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, id=name) for name, c in CASES.items()]
)


def unit_ball(noise: Tensor, norm: str) -> Tensor:
    """Uniform noise [..., C, H, W] put into the unit ball of the norm."""
    if norm == "linf":
        return noise
    size = noise.flatten(-3).norm({"l2": 2, "l1": 1}[norm], dim=-1)
    return 0.9 * noise / size[..., None, None, None]


def draw(case: Case, step: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Images and labels of a step, and each peer's start noise [M, R, B, 3, SIDE, SIDE]."""
    x, y = images(100 + step, SIZE, SIDE)
    generator = torch.Generator().manual_seed(200 + step)
    noise = []
    for learner in case.learners:
        norms = {
            "avg": [ball.norm for ball in BALLS],
            "max": [ball.norm for ball in BALLS],
            "msd": ["linf"],
            "avg-official": ["linf"] * 2,
            "max-official": ["linf"] * 2,
            "msd-official": ["linf"],
        }.get(learner.threat, [learner.threat] * (2 if learner.method == "st" else 1))
        shape = (len(norms), case.restarts, *x.shape)
        if START[learner.method] == "gaussian" and "official" not in learner.threat:
            noise.append(torch.randn(shape, generator=generator).double())
        else:
            uniform = 2 * torch.rand(shape, generator=generator).double() - 1
            both = zip(uniform, norms, strict=True)
            noise.append(torch.stack([unit_ball(one, norm) for one, norm in both]))
    return x, y, noise


class Ours:
    """The team under test."""

    def __init__(self, case: Case, nets: Sequence[nn.Module], precision: Precision = FP32) -> None:
        self.case = case
        self.team = team_of(
            [
                make_objective(one.method, {"bn": one.bn} if one.method == "at" else {})
                for one in case.learners
            ],
            nets,
            [one.method for one in case.learners],
            collab=case.collab,
            alpha=None if case.collab == "none" else case.alpha,
            threats=[choose_threats(one.threat, case.models) for one in case.learners],
            precision=precision,
            side=SIDE,
            mixed=case.mixed,
            awp=case.awp,
            **SGD,
        )
        assert not self.team.remarks

    def step(
        self, x: Tensor, y: Tensor, noise: Sequence[Tensor], given: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The views and metrics of a step in the dtype of x; `given` views replace the attack."""
        views = {}

        def watched_attack(*args: Any) -> dict[str, Tensor]:
            views.update(attack_views(*args) if given is None else given)
            return views

        noise_RS = torch.cat([of_one.transpose(0, 1) for of_one in noise], 1)
        with mock.patch.object(fastcat.step.algorithm, "attack_views", watched_attack):
            values = collaborative_step(
                self.team,
                Batch(x, y, torch.arange(len(y)), **self.case.mixing(torch.float32)),
                noise_RS.to(x.dtype),
            )
        return views, dict(zip(self.team.loss.names, values, strict=True))


def oracle_step(
    case: Case,
    nets: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    noise: Sequence[Tensor],
    buffers: list[dict[str, Tensor]] | None,
) -> tuple[StepResult, dict[str, Tensor]]:
    """The oracle's step and its views by our names, with what `max` chose."""
    task = Task(
        learners=case.learners,
        balls=case.balls,
        x=x,
        y=y,
        collab=case.collab,
        alpha=case.alpha,
        **case.mixing(torch.float64),
    )
    if case.learners[0].threat == "avg-official":
        return in_turns(task, nets, noise, buffers)
    result, of_peers = multi_norm_step(task, nets, noise, SGD, buffers, case.awp)
    return result, {**result.views, **winners(of_peers)}


def in_turns(
    task: Task, nets: Sequence[nn.Module], noise: Sequence[Tensor], buffers: Any
) -> tuple[StepResult, dict[str, Tensor]]:
    """A step for each ball alone: what the last leaves, the means of terms, and all logits."""
    learners = [replace(one, threat="max-official") for one in task.learners]
    logits, terms, totals = {}, [], []
    for ball in task.balls:
        of_one = replace(task, learners=learners, balls=(ball,))
        result, _ = multi_norm_step(of_one, nets, noise, SGD, buffers)
        buffers = result.buffers
        logits |= {(k, f"{ball.norm}.{view}"): z for (k, view), z in result.logits.items()}
        terms.append(result.terms[0])
        totals.append(result.totals[0])
    means = {name: torch.stack([one[name] for one in terms]).mean() for name in terms[0]}
    result = replace(result, logits=logits, terms=[means], totals=[torch.stack(totals).mean()])
    return result, result.views


def winners(of_peers: Sequence[Views]) -> dict[str, Tensor]:
    return {f"which{k}": v.winner for k, v in enumerate(of_peers) if v.winner is not None}


def assert_metrics(
    case: Case, metrics: dict[str, Tensor], result: StepResult, y: Tensor, tolerance: float
) -> None:
    """Terms, guidance, total and accuracy of every peer."""
    if case.mixed:
        y_mixed, share = case.mixing(torch.float32).values()
        y = torch.where(share >= 0.5, y, y_mixed)
    expected = {}
    for k, learner in enumerate(case.learners):
        values = dict(result.terms[k])
        if case.collab != "none":
            values["guidance"] = case.guidance_weight * result.guidance[k]
        values["loss"] = result.totals[k]
        expected |= {f"{k}-{learner.method}/{name}": value for name, value in values.items()}
        tested = [z for (j, view), z in result.logits.items() if j == k and "adv" in view]
        top = [z.topk(2).values for z in tested]
        undecided = [(one[:, 0] - one[:, 1] <= tolerance * one.abs().max()) for one in top]
        hits = torch.stack([(z.argmax(1) == y).double() for z in tested]).mean()
        key = f"{k}-{learner.method}/accuracy"
        assert abs(metrics[key] - hits) <= torch.stack(undecided).double().mean() + 1e-6, key
        expected[key] = metrics[key].double()
    assert sorted(metrics) == sorted(expected)
    for key, value in expected.items():
        assert not metrics[key].requires_grad
        assert_close(metrics[key], value, tolerance, key)


def networks(case: Case, activation: type[nn.Module]) -> list[nn.Module]:
    return [tiny_net(k, activation) for k in range(len(case.learners))]


@pytest.mark.slow
@pytest.mark.measured("float64")
@every_case
def test_three_steps_in_float64(case: Case) -> None:
    nets = [net.double() for net in networks(case, nn.ReLU)]
    copies = [copy.deepcopy(net).to(memory_format=torch.channels_last) for net in nets]
    ours, buffers = Ours(case, copies), None
    for step in range(STEPS):
        x, y, noise = draw(case, step)
        x = x.double().to(memory_format=torch.channels_last)
        views, metrics = ours.step(x, y, noise)
        result, expected = oracle_step(case, nets, x.contiguous(), y, noise, buffers)
        buffers = result.buffers
        assert views.keys() == expected.keys()
        for name, view in views.items():
            if name.startswith("which"):
                assert torch.equal(view, expected[name]), name
            else:
                assert_close(view, expected[name], case.float64_tolerance, f"view {name}")
        assert_metrics(case, metrics, result, y, case.float64_tolerance)
        assert_left_behind(ours.team, nets, result, case.float64_tolerance)


SAME_VIEWS = ["mat_mp-trades-avg", "mat_mp-at-max", "mat_mp-boosted-msd", "cat-avg", "mixed", "awp"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"),
    [
        pytest.param(
            "fp32", FLOAT32_TOLERANCE, STEPS, id="fp32", marks=pytest.mark.measured("float32")
        ),
        pytest.param("bf16", 0.1, 1, id="bf16"),
    ],
)
@pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in SAME_VIEWS])
def test_steps_in_less_than_float64_on_the_same_views(
    case: Case, precision: str, tolerance: float, steps: int
) -> None:
    nets = networks(case, nn.SiLU)
    ours = Ours(
        case, [copy.deepcopy(net) for net in nets], make_precision(precision, torch.device("cpu"))
    )
    nets, buffers = [net.double() for net in nets], None
    for step in range(steps):
        x, y, noise = draw(case, step)
        result, expected = oracle_step(case, nets, x.double(), y, noise, buffers)
        buffers = result.buffers
        given = {
            view: value if view.startswith("which") else value.float()
            for view, value in expected.items()
        }
        _, metrics = ours.step(x, y, noise, given)
        assert_metrics(case, metrics, result, y, tolerance)
        assert_left_behind(ours.team, nets, result, tolerance)


def test_every_threat_model_wins_somewhere() -> None:
    """Else the cases above could not tell `max` from the winner alone."""
    case = CASES["mat_mp-boosted-max"]
    nets = [net.double() for net in networks(case, nn.ReLU)]
    chosen = []
    for step in range(STEPS):
        x, y, noise = draw(case, step)
        chosen.append(oracle_step(case, nets, x.double(), y, noise, None)[1]["which0"])
    assert set(torch.cat(chosen).tolist()) == {0, 1, 2}
