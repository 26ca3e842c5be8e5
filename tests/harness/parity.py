"""A step of a team beside the same step of the oracle, and all that must agree."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastcat.step.algorithm
from fastcat.batch import Batch
from fastcat.models.ghost import split_norms
from fastcat.objective import Objective
from fastcat.objectives import make_objective
from fastcat.precision import Precision, make_precision
from fastcat.step.algorithm import attack_views, collaborative_step
from fastcat.step.peer import Peer
from fastcat.step.team import Team
from tests.harness.comparison import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, assert_close
from tests.harness.networks import images, tiny_net
from tests.harness.parity_cases import Case
from tests.harness.teams import FP32, team_of
from tests.reference.attack import START
from tests.reference.ghost import use_ghost_norms
from tests.reference.step import StepResult, asks, cat_step, col_noise, taught_view

STEPS = 3
CLIMBS_KL = ("trades", "st", "rslad", "act")


@dataclass
class Ours:
    """The team under test.

    frozen: attack the twins of the networks, as a run does
    merged: train on the views of a step at once
    """

    case: Case
    nets: Sequence[nn.Module]
    precision: Precision = FP32
    frozen: bool = True
    ema: float | None = None
    merged: bool = False
    team: Team = field(init=False)

    def __post_init__(self) -> None:
        for net in self.nets if self.case.bn_groups else ():
            split_norms(net, min(self.case.bn_groups))
        objectives: list[Objective | str] = []
        for name, settings in self.case.peers:
            if name == "teacher":
                objectives.append(name)
                continue
            settings = {"bn": self.case.bn, **settings} if name == "at" else settings
            texts = {key: str(value) for key, value in settings.items()}
            objectives.append(make_objective(name, texts))
        self.team = team_of(
            objectives,
            self.nets,
            [name for name, _ in self.case.peers],
            collab=":".join(
                [self.case.collab, *(f"{k}={v}" for k, v in self.case.settings.items())]
            ),
            alpha=self.case.alpha,
            threat=self.case.threat,
            precision=self.precision,
            side=16,
            mixed=self.case.mixed,
            teachers=self.case.teachers,
            awp=self.case.awp,
            **self.case.sgd,
            ema=self.ema,
        )
        assert not self.team.remarks
        for peer in () if self.frozen else self.team.peers:
            peer.frozen = None
        if self.merged:
            example = images(99, 2, 16)[0].to(memory_format=torch.channels_last)
            assert not self.team.merge_views(example)

    @property
    def peers(self) -> dict[int, Peer]:
        return self.team.learners

    def step(
        self, x: Tensor, y: Tensor, noise_RKB: Tensor, given: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The views and metrics of a step in the dtype of x; `given` views replace the attack."""
        names = [name for name, _ in self.case.peers]
        starts = [
            start
            for k in self.case.attackers
            for start in (noise_RKB[:, k], *([col_noise(noise_RKB, k)[None]] * (names[k] == "st")))
        ]
        noise = torch.stack(starts, 1) if starts else noise_RKB[:, :0]
        views = {}

        def watched_attack(*args: Any) -> dict[str, Tensor]:
            views.update(attack_views(*args) if given is None else given)
            return views

        with mock.patch.object(fastcat.step.algorithm, "attack_views", watched_attack):
            values = collaborative_step(
                self.team,
                Batch(x, y, torch.arange(len(y)), **self.case.mixing(len(y))),
                noise.to(x.dtype),
            )
        assert values.shape == (len(self.team.loss.names),)
        return views, dict(zip(self.team.loss.names, values, strict=True))


def oracle_step(
    case: Case,
    nets: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    buffers: list[dict[str, Tensor]] | None,
) -> StepResult:
    for net in nets if case.bn_groups else ():
        use_ghost_norms(net, case.bn_groups)
    return cat_step(
        nets,
        case.peers,
        x,
        y,
        noise,
        eps=case.threat.eps,
        step_size=case.threat.step,
        steps=case.threat.steps,
        alpha=case.guidance_weight if case.collab == "mat" else 1 - case.guidance_weight,
        teachers=case.taught_by,
        collab=case.collab,
        **case.settings,
        **case.sgd,
        buffers=buffers,
        bn=case.bn,
        **case.mixing(len(y), torch.float64),
        awp=case.awp,
    )


def draw(case: Case, step: int, size: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images and labels of a step, and start noise [R, K, B, 3, side, side]; float32 numbers."""
    x, y = images(100 + step, size, side)
    generator = torch.Generator().manual_seed(200 + step)
    noise = torch.empty(case.restarts, len(case.peers), *x.shape)
    for k, (name, settings) in enumerate(case.peers):
        if settings.get("start", START.get(name)) == "gaussian":
            noise[:, k].normal_(generator=generator)
        else:
            noise[:, k].uniform_(-1, 1, generator=generator)
    return x, y, noise.double()


def assert_step_equals(
    ours: Ours,
    metrics: dict[str, Tensor],
    nets: Sequence[nn.Module],
    result: StepResult,
    y: Tensor,
    tolerance: float,
) -> None:
    """All that a step computes and all that it leaves behind, peer by peer."""
    expected_metrics = {}
    if ours.case.mixed:
        triples = zip(y, *ours.case.mixing(len(y)).values(), strict=True)
        y = torch.stack([own if share >= 0.5 else other for own, other, share in triples])
    for k, peer in ours.peers.items():
        name, terms = ours.case.peers[k][0], dict(result.terms[k])
        if ours.case.collab != "none" and ours.case.taught_by[k] and not asks(name):
            terms["guidance"] = ours.case.guidance_weight * result.guidance[k]
        terms["loss"] = result.totals[k]
        expected_metrics |= {f"{peer.name}/{term}": value for term, value in terms.items()}
        z = result.logits[k, taught_view(k, *ours.case.peers[k])]
        hits, (first, second) = z.argmax(1) == y, z.topk(2).values.unbind(1)
        accuracy, key = hits.double().mean(), f"{peer.name}/accuracy"
        # an image that two classes share up to rounding may count either way
        undecided = (first - second <= tolerance * z.abs().max()).double().mean()
        assert (metrics[key] - accuracy).abs() <= undecided + 1e-6, key
        expected_metrics[key] = metrics[key].double()
    assert sorted(metrics) == sorted(expected_metrics)
    for key, expected in expected_metrics.items():
        assert not metrics[key].requires_grad
        assert_close(metrics[key], expected, tolerance, key)

    assert_left_behind(ours.team, nets, result, tolerance)


def assert_left_behind(
    team: Team, nets: Sequence[nn.Module], result: StepResult, tolerance: float
) -> None:
    """Gradients, momentum, weights and running statistics of every peer; of a teacher nothing."""
    for k, member in enumerate(team.members):
        state = member.model.state_dict()
        for name, expected in nets[k].state_dict().items() if k not in team.learners else ():
            assert torch.equal(state[name], expected.to(state[name].dtype)), f"{name} moved"
        assert k in team.learners or not member.model.training

    for k, peer in team.learners.items():
        net = nets[k]
        actual = dict(peer.model.named_parameters())
        assert result.grads[k].keys() == actual.keys() == result.buffers[k].keys()
        buffers = peer.optimizer.views(peer.optimizer.momentum_buffer)
        assert [id(p) for p in peer.optimizer.parameters] == [id(p) for p in actual.values()]
        momentum = dict(zip(actual, buffers, strict=True))
        for name, expected in result.grads[k].items():
            grad, what = actual[name].grad, f"{name} of {peer.name}"
            assert grad is not None, what
            # in float16 gradients stay multiplied by the loss scale, momentum does not
            assert_close(grad / team.scaler.get_scale(), expected, tolerance, f"gradient of {what}")
            assert_close(momentum[name], result.buffers[k][name], tolerance, f"momentum of {what}")
        state = peer.model.state_dict()
        assert state.keys() == net.state_dict().keys()
        for name, expected in net.state_dict().items():
            assert_close(state[name], expected, tolerance, f"{name} of {peer.name} after the step")


def networks(case: Case, activation: type[nn.Module], width: int = 12) -> list[nn.Module]:
    """Peers of unequal weights; those of teachers do not learn."""
    return [
        tiny_net(k, activation, width).requires_grad_(name != "teacher")
        for k, (name, _) in enumerate(case.peers)
    ]


def check_float64(
    case: Case, nets: Sequence[nn.Module], steps: int, size: int, side: int, **ours_as: Any
) -> None:
    nets = [net.double() for net in nets]
    # as a trainer holds them
    copies = [copy.deepcopy(net).to(memory_format=torch.channels_last) for net in nets]
    ours = Ours(case, copies, **ours_as)
    decay = ours.ema or 0.0
    averages = [{name: p.detach().clone() for name, p in net.named_parameters()} for net in nets]
    buffers = None
    for step in range(steps):
        x, y, noise = draw(case, step, size, side)
        x = x.double().to(memory_format=torch.channels_last)
        views, metrics = ours.step(x, y, noise)
        result = oracle_step(case, nets, x.contiguous(), y, noise, buffers)
        buffers = result.buffers
        assert views.keys() == result.views.keys()
        for name, view in views.items():
            assert_close(view, result.views[name], FLOAT64_TOLERANCE, f"view {name}")
        assert_step_equals(ours, metrics, nets, result, y, FLOAT64_TOLERANCE)
        for k, peer in ours.peers.items():
            net, average = nets[k], averages[k]
            with peer.optimizer.averaged():
                judged = {name: p.detach().clone() for name, p in peer.model.named_parameters()}
            for name, p in net.named_parameters():
                average[name] = decay * average[name] + (1 - decay) * p.detach()
                assert_close(judged[name], average[name], FLOAT64_TOLERANCE, f"average of {name}")


def float32_against_float64(
    case: Case, width: int = 12, **ours_as: Any
) -> tuple[Ours, list[nn.Module]]:
    """Our smooth peers in float32, and the oracle's of the same weights in float64."""
    nets = networks(case, nn.SiLU, width)
    copies = [copy.deepcopy(net) for net in nets]
    return Ours(case, copies, **ours_as), [net.double() for net in nets]


def check_float32_on_the_same_views(case: Case, ours: Ours, nets: Sequence[nn.Module]) -> None:
    buffers = None
    for step in range(STEPS):
        x, y, noise = draw(case, step, 11, 8)
        result = oracle_step(case, nets, x.double(), y, noise, buffers)
        buffers = result.buffers
        given = {name: view.float() for name, view in result.views.items()}
        _, metrics = ours.step(x, y, noise, given)
        assert_step_equals(ours, metrics, nets, result, y, FLOAT32_TOLERANCE)


def assert_views_agree(case: Case, views: dict[str, Tensor], result: StepResult) -> None:
    """But for the share of pixels whose sign rounding decides."""
    for name, view in views.items():
        if not name.startswith("target"):
            differs = (view - result.views[name]).abs() > 1e-6
            climbs_kl = name != "clean" and case.peers[int(name[3:])][0] in CLIMBS_KL
            assert differs.double().mean() <= (0.02 if climbs_kl else 0.001), f"view {name}"


def half_against_float64(
    case: Case,
    name: str,
    width: int = 12,
    memory_format: torch.memory_format = torch.contiguous_format,
    **ours_as: Any,
) -> tuple[Ours, list[nn.Module]]:
    nets = networks(case, nn.SiLU, width)
    precision = make_precision(name, torch.device("cpu"))
    copies = [copy.deepcopy(net).to(memory_format=memory_format) for net in nets]
    return Ours(case, copies, precision, **ours_as), [net.double() for net in nets]


def check_half_on_the_same_views(
    case: Case, ours: Ours, nets: Sequence[nn.Module], tolerance: float
) -> None:
    x, y, noise = draw(case, 0, 11, 8)
    result = oracle_step(case, nets, x.double(), y, noise, None)
    given = {name: view.float() for name, view in result.views.items()}
    _, metrics = ours.step(x, y, noise, given)
    assert_step_equals(ours, metrics, nets, result, y, tolerance)
