"""The collaborative step against the float64 oracle of tests/reference, over three training steps.

Both sides begin with the same weights, images and start noise. Compared are, in each of the three
steps, the views, every loss term, guidance, total and accuracy of every peer, every parameter
gradient, the momentum, the running statistics and counters of BatchNorm, and the weights.

Tolerances are relative to the largest magnitude in a tensor:

float64  1e-11. Both sides compute the same real numbers in another order; what is left is rounding
         of 1e-16 an operation, measured up to 1e-13 in an 18-layer pair. Views agree to the bit.
float32  5e-5, on the oracle's views. Rounding is 6e-8 an operation; sums over images and pixels
         and three steps of feedback multiply it by a hundred: measured 6e-6.
         The views are handed in because an attack takes the sign of a gradient: where that is zero
         up to rounding, rounding decides, and a pixel moves the other way. So of views made in
         float32 a share of the pixels must agree to 1e-6, at the first step, where the weights are
         still equal: 99.9 %, and 98 % where TRADES and ST climb a KL, which near its start is a
         difference of almost equal numbers (measured: all, and 99.4 %).
         With its own views a run of three steps then follows the oracle's to 1 % in the losses and
         5 % in the weights (measured 0.3 % and 1.4 %).
         The networks are smooth here (SiLU): a ReLU within rounding of zero switches a gradient on
         or off, and a tolerance of 5e-5 would be a matter of the processor.
half     10 % for bf16 and 2 % for fp16, whose numbers have 8 and 11 bits; one step, on the
         oracle's views (measured 3 % and 0.6 %).

Accuracies must be equal but for images whose two best logits differ by less than the tolerance.
Long, since every case goes through the one harness that stands here.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fastcat.step
from fastcat.batch import Batch
from fastcat.models import make_model
from fastcat.models.ghost import split_norms
from fastcat.objectives import make_objective
from fastcat.objectives.objective import Objective
from fastcat.peer import Peer
from fastcat.precision import Precision, make_precision
from fastcat.step import attack_views, collaborative_step
from fastcat.team import Team
from fastcat.threat import ThreatModel
from tests.comparison import assert_close
from tests.networks import CLASSES, images, mixing, tiny_net
from tests.reference.attack import START
from tests.reference.ghost import use_ghost_norms
from tests.reference.step import StepResult, asks, cat_step, col_noise, taught_view
from tests.teams import FP32, team_of

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 3
FLOAT64_TOLERANCE = 1e-11
FLOAT32_TOLERANCE = 5e-5
CLIMBS_KL = ("trades", "st", "rslad", "act")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training run of three steps; peers are (method, settings), alpha None its default.

    settings: those of the collaboration; bn_groups: sizes of the groups that BatchNorm sees apart,
    if it does.
    """

    peers: Sequence[tuple[str, dict[str, Any]]]
    collab: str = "cat"
    settings: dict[str, bool] = field(default_factory=dict)
    alpha: float | None = 0.3
    restarts: int = 1
    pgd_steps: int = 3
    nesterov: bool = False
    bn: str = "eval"
    mixed: bool = False
    teachers: str = "all"
    awp: Sequence[float] | None = None
    bn_groups: Sequence[int] = ()

    @property
    def learners(self) -> list[int]:
        return [k for k, (name, _) in enumerate(self.peers) if name != "teacher"]

    @property
    def subjects(self) -> set[str]:
        """What the case is a case of, by the names in docs/methods.md."""
        features = {self.collab: any(self.taught_by), "awp": self.awp, "bn-groups": self.bn_groups}
        return {name for name, _ in self.peers} | {name for name, has in features.items() if has}

    @property
    def attackers(self) -> list[int]:
        natural = {"role": "natural"}
        return [k for k, (name, s) in enumerate(self.peers) if name in START and s != natural]

    @property
    def taught_by(self) -> list[list[int]]:
        """The teachers of each peer."""
        peers = range(len(self.peers))
        if self.teachers == "all":
            pairs = [(j, k) for j in peers for k in peers if j != k]
        elif self.teachers == "ring":
            pairs = [(k - 1, k) for k in peers if k] + [(peers[-1], 0)]
        else:
            pairs = [(int(j), int(k)) for j, k in re.findall("([0-9])>([0-9])", self.teachers)]
        return [[j for j, k in pairs if k == taught and k in self.learners] for taught in peers]

    @property
    def guidance_weight(self) -> float:
        """Of the papers, spelled out where the default is under test."""
        alpha = {"cat": 1 / 20, "mat": 0.6, "none": 1.0}[self.collab]
        alpha = alpha if self.alpha is None else self.alpha
        return alpha if self.collab == "mat" else 1 - alpha

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel(
            eps=8 / 255, step_size=3 / 255, steps=self.pgd_steps, restarts=self.restarts
        )

    @property
    def sgd(self) -> dict[str, Any]:
        return {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": self.nesterov}

    def mixing(self, size: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Labels mixed in and shares, the same in every step; none for plain images."""
        y_mixed, share = mixing(0, size)
        return {"y_mixed": y_mixed, "share": share.to(dtype)} if self.mixed else {}


def plain(*names: str) -> Sequence[tuple[str, dict[str, Any]]]:
    """These methods with the settings they have by default."""
    return [(name, {}) for name in names]


CASES = [
    pytest.param(Case(peers=plain("natural"), collab="none", alpha=None), id="natural"),
    pytest.param(Case(peers=plain("at")), id="at"),
    pytest.param(Case(peers=plain("at"), bn="train"), id="at-bn_train"),
    pytest.param(Case(peers=plain("trades")), id="trades"),
    pytest.param(Case(peers=[("trades", {"beta": 2.5})]), id="trades-beta_2.5"),
    pytest.param(Case(peers=plain("alp")), id="alp"),
    pytest.param(Case(peers=[("alp", {"weight": 0.4})]), id="alp-weight_0.4"),
    pytest.param(Case(peers=plain("mart")), id="mart"),
    pytest.param(Case(peers=[("mart", {"beta": 1.5})]), id="mart-beta_1.5"),
    pytest.param(
        Case(
            peers=[
                ("natural", {"smoothing": 0.2}),
                ("at", {"smoothing": 0.3}),
                ("trades", {"smoothing": 0.1}),
                ("alp", {"smoothing": 0.1, "weight": 0.4}),
            ],
            teachers="ring",
        ),
        id="smoothed",
    ),
    pytest.param(
        Case(
            peers=[("natural", {"smoothing": 0.2}), ("trades", {"smoothing": 0.1})],
            mixed=True,
        ),
        id="smoothed-mixed",
    ),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=None), id="trades+alp-default_alpha"),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=0.0), id="trades+alp-alpha_0"),
    pytest.param(Case(peers=plain("trades", "alp"), alpha=1.0), id="trades+alp-alpha_1"),
    pytest.param(Case(peers=plain("at", "trades")), id="at+trades"),
    pytest.param(Case(peers=plain("natural", "trades")), id="natural+trades"),
    pytest.param(Case(peers=plain("trades", "trades")), id="trades+trades"),
    pytest.param(Case(peers=plain("at", "at"), bn="train"), id="at+at-bn_train"),
    pytest.param(Case(peers=plain("at", "alp", "trades")), id="at+alp+trades"),
    pytest.param(Case(peers=plain("mart", "alp", "natural"), alpha=0.05), id="mart+alp+natural"),
    pytest.param(
        Case(peers=plain("trades", "alp"), collab="none", alpha=None), id="trades+alp-side_by_side"
    ),
    pytest.param(Case(peers=plain("boosted"), collab="mat"), id="mat-boosted"),
    pytest.param(
        Case(peers=plain("boosted", "boosted"), collab="mat", alpha=None), id="mat-default_alpha"
    ),
    pytest.param(Case(peers=plain("natural", "boosted"), collab="mat"), id="mat-natural+boosted"),
    pytest.param(
        Case(peers=[("boosted", {"inner": "ce"}), *plain("boosted", "trades")], collab="mat"),
        id="mat-boosted+boosted+trades",
    ),
    pytest.param(
        Case(peers=plain("boosted", "at", "natural"), collab="mat", teachers="ring"), id="mat-ring"
    ),
    pytest.param(
        Case(peers=plain("boosted", "trades", "at"), collab="mat", teachers="0>1,1>2,0>2"),
        id="mat-chain",
    ),
    pytest.param(Case(peers=plain("alp", "trades", "at"), teachers="ring"), id="cat-ring"),
    pytest.param(Case(peers=plain("at", "natural"), teachers="0>1"), id="cat-one_way"),
    pytest.param(
        Case(peers=plain("trades", "alp", "natural"), settings={"own_first": True}),
        id="cat-own_first",
    ),
    pytest.param(
        Case(
            peers=plain("teacher", "at", "mart"),
            settings={"own_first": True},
            teachers="0>1,1>2",
            mixed=True,
        ),
        id="cat-own_first-teacher+at+mart-mixed",
    ),
    pytest.param(
        Case(
            peers=plain("boosted", "boosted"), collab="mat", settings={"detach": False}, alpha=None
        ),
        id="mat-not_detached",
    ),
    pytest.param(
        Case(
            peers=plain("boosted", "trades", "at"),
            collab="mat",
            settings={"detach": False},
            teachers="0>1,1>2,0>2",
            awp=[0.0, 0.02, 0.01],
        ),
        id="mat-not_detached-chain-awp",
    ),
    pytest.param(
        Case(
            peers=plain("teacher", "boosted", "natural"),
            collab="mat",
            settings={"detach": False},
            mixed=True,
        ),
        id="mat-not_detached-teacher+boosted+natural-mixed",
    ),
    pytest.param(
        Case(peers=plain("teacher", "boosted"), collab="mat", alpha=None), id="mat-teacher+boosted"
    ),
    pytest.param(
        Case(peers=plain("boosted", "teacher", "natural"), collab="mat"),
        id="mat-boosted+teacher+natural",
    ),
    pytest.param(
        Case(peers=plain("teacher", "trades", "teacher", "alp"), teachers="0>1,2>3,1>3"),
        id="cat-teacher+trades+teacher+alp",
    ),
    pytest.param(
        Case(peers=plain("natural", "boosted", "boosted"), collab="mat", mixed=True),
        id="mat-mixed",
    ),
    pytest.param(Case(peers=plain("trades", "at"), restarts=2), id="trades+at-restarts_2"),
    pytest.param(Case(peers=plain("alp", "mart"), nesterov=True), id="alp+mart-nesterov"),
    pytest.param(Case(peers=plain("trades"), mixed=True), id="trades-mixed"),
    pytest.param(Case(peers=plain("mart"), mixed=True), id="mart-mixed"),
    pytest.param(Case(peers=plain("trades", "alp"), mixed=True), id="trades+alp-mixed"),
    pytest.param(Case(peers=plain("mart", "at"), mixed=True), id="mart+at-mixed"),
    pytest.param(
        Case(peers=plain("natural", "alp"), mixed=True, restarts=2),
        id="natural+alp-mixed-restarts_2",
    ),
    pytest.param(Case(peers=plain("trades"), awp=[0.005]), id="trades-awp"),
    pytest.param(Case(peers=plain("at"), awp=[0.05], nesterov=True), id="at-awp-nesterov"),
    pytest.param(Case(peers=plain("trades", "alp"), awp=[0.02, 0.01]), id="trades+alp-awp"),
    pytest.param(Case(peers=plain("st")), id="st"),
    pytest.param(Case(peers=[("st", {"reg": "js", "bn": "eval"})]), id="st-js-bn_eval"),
    pytest.param(Case(peers=[("st", {"reg": "l2", "start": "uniform"})]), id="st-l2-uniform"),
    pytest.param(
        Case(peers=[("st", {"official": True, "start": "unclipped"})], pgd_steps=6),
        id="st-official-unclipped",
    ),
    pytest.param(Case(peers=plain("st", "alp")), id="st+alp"),
    pytest.param(
        Case(peers=[("trades", {"smoothing": 0.1, "start": "uniform", "bn": "train"})]),
        id="trades-smoothed-uniform-bn_train",
    ),
    pytest.param(
        Case(
            peers=[
                ("trades", {"log_forward": True}),
                ("alp", {"bn": "moving"}),
            ]
        ),
        id="trades+alp-as_cat_without_bneval",
    ),
    pytest.param(
        Case(peers=[("at", {"bn": "moving", "log_forward": True})], collab="none", alpha=None),
        id="at-as_rice",
    ),
    pytest.param(
        Case(
            peers=[("at", {"bn": "moving", "log_forward": True})],
            collab="none",
            alpha=None,
            awp=[0.01],
        ),
        id="at-as_awp",
    ),
    pytest.param(
        Case(
            peers=[("mart", {"floor": 1e-12, "beta": 6.0}), ("alp", {"start": "gaussian"})],
            collab="none",
            alpha=None,
        ),
        id="mart-floor+alp-gaussian",
    ),
    pytest.param(
        Case(
            peers=[
                ("mart", {"start": "uniform", "bn": "train"}),
                ("boosted", {"start": "unclipped", "bn": "moving"}),
                ("at", {"start": "zero"}),
            ],
            restarts=2,
            bn_groups=(4, 4, 3),
        ),
        id="starts-and-modes-restarts_2-bn_groups",
    ),
    pytest.param(
        Case(peers=plain("at", "st", "trades"), collab="none", alpha=None), id="at+st+trades"
    ),
    pytest.param(Case(peers=plain("trades", "st"), awp=[0.005, 0.005]), id="trades+st-awp"),
    pytest.param(
        Case(peers=plain("natural", "mart"), awp=[0.0, 0.02], mixed=True),
        id="natural+mart-awp_of_one-mixed",
    ),
    pytest.param(
        Case(peers=plain("at", "at"), bn="train", awp=[0.02, 0.01], bn_groups=(4, 4, 3)),
        id="at+at-bn_train-awp-bn_groups",
    ),
    pytest.param(Case(peers=plain("trades", "st"), bn_groups=(4, 4, 3)), id="trades+st-bn_groups"),
    pytest.param(Case(peers=plain("teacher", "ard"), collab="none", alpha=None), id="ard"),
    pytest.param(
        Case(
            peers=[("ard", {"alpha": 0.7, "temperature": 3.0, "bn": "eval"}), ("teacher", {})],
            mixed=True,
        ),
        id="ard-alpha_0.7-mixed",
    ),
    pytest.param(Case(peers=plain("teacher", "rslad"), restarts=2), id="rslad-restarts_2"),
    pytest.param(
        Case(
            peers=[("rslad", {"scale": 10.0}), ("teacher", {})],
            collab="none",
            alpha=None,
            mixed=True,
            awp=[0.02, 0.0],
        ),
        id="rslad-scale_10-mixed-awp",
    ),
    pytest.param(Case(peers=[("teacher", {}), ("iad", {"begin": 0})]), id="iad"),
    pytest.param(
        Case(
            peers=[
                ("teacher", {}),
                ("iad", {"begin": 0, "start": "unclipped", "bn": "moving"}),
                ("ard", {"start": "unclipped", "bn": "moving", "alpha": 0.5}),
                ("rslad", {"start": "uniform", "bn": "train"}),
            ],
            collab="none",
            alpha=None,
            teachers="0>1,0>2,0>3",
        ),
        id="ard+iad+rslad-unclipped-bn_moving",
    ),
    pytest.param(
        Case(peers=[("act", {"role": "natural"}), ("act", {})], collab="none", alpha=None), id="act"
    ),
    pytest.param(
        Case(peers=[("act", {}), ("act", {"role": "natural"})], mixed=True, awp=[0.02, 0.01]),
        id="act-mixed-awp",
    ),
    pytest.param(
        Case(
            peers=[*plain("rslad", "rslad", "at"), ("iad", {"begin": 0})],
            collab="mat",
            teachers="0>1,1>0,0>2,1>2,2>3",
        ),
        id="rslad+rslad+at+iad-online",
    ),
]

# where the attack moves nothing, so that views can be handed in instead
GIVEN_VIEWS = [
    case
    for case in CASES
    if all(settings.get("bn") != "moving" for _, settings in case.values[0].peers)
]


@dataclass
class Ours:
    """The team under test; frozen: attack the twins of the networks, as a run does."""

    case: Case
    nets: Sequence[nn.Module]
    precision: Precision = FP32
    frozen: bool = True
    ema: float | None = None
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

        with mock.patch.object(fastcat.step, "attack_views", watched_attack):
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


@pytest.mark.measured("float64")
@pytest.mark.parametrize("case", CASES)
def test_three_steps_in_float64(case: Case) -> None:
    check_float64(case, networks(case, nn.ReLU), STEPS, size=11, side=8)


@pytest.mark.measured("float64", "ema")
@pytest.mark.parametrize(
    "ours_as",
    [
        pytest.param({"frozen": False}, id="attacked-as-they-are"),
        pytest.param({"ema": 0.7}, id="averaged"),
        pytest.param({"ema": 0.7, "frozen": False}, id="averaged-and-attacked-as-they-are"),
    ],
)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU])
def test_twins_and_averages_change_nothing(
    activation: type[nn.Module], ours_as: dict[str, Any]
) -> None:
    """Catches an average that is trained on, and a twin that only half the attack reads."""
    case = Case(peers=plain("mart", "trades", "alp"), restarts=2)
    check_float64(case, networks(case, activation), STEPS, size=11, side=8, **ours_as)


@pytest.mark.parametrize("archs", [("resnet18",) * 2, ("preactresnet18", "resnet18")])
def test_one_step_of_a_deep_pair_in_float64(archs: tuple[str, str]) -> None:
    case = Case(peers=plain("trades", "alp"), pgd_steps=2)
    torch.manual_seed(0)
    nets = [make_model(arch, CLASSES, 3) for arch in archs]
    check_float64(case, nets, 1, size=6, side=16)


def float32_against_float64(case: Case, width: int = 12) -> tuple[Ours, list[nn.Module]]:
    """Our smooth peers in float32, and the oracle's of the same weights in float64."""
    nets = networks(case, nn.SiLU, width)
    return Ours(case, [copy.deepcopy(net) for net in nets]), [net.double() for net in nets]


def check_float32_on_the_same_views(case: Case, ours: Ours, nets: Sequence[nn.Module]) -> None:
    buffers = None
    for step in range(STEPS):
        x, y, noise = draw(case, step, 11, 8)
        result = oracle_step(case, nets, x.double(), y, noise, buffers)
        buffers = result.buffers
        given = {name: view.float() for name, view in result.views.items()}
        _, metrics = ours.step(x, y, noise, given)
        assert_step_equals(ours, metrics, nets, result, y, FLOAT32_TOLERANCE)


@pytest.mark.measured("float32")
@pytest.mark.parametrize("case", GIVEN_VIEWS)
def test_three_steps_in_float32_on_the_same_views(case: Case) -> None:
    check_float32_on_the_same_views(case, *float32_against_float64(case))


def assert_views_agree(case: Case, views: dict[str, Tensor], result: StepResult) -> None:
    """But for the share of pixels whose sign rounding decides."""
    for name, view in views.items():
        if not name.startswith("target"):
            differs = (view - result.views[name]).abs() > 1e-6
            climbs_kl = name != "clean" and case.peers[int(name[3:])][0] in CLIMBS_KL
            assert differs.double().mean() <= (0.02 if climbs_kl else 0.001), f"view {name}"


@pytest.mark.parametrize("case", CASES)
def test_three_steps_in_float32(case: Case) -> None:
    ours, nets = float32_against_float64(case)
    buffers = None
    for step in range(STEPS):
        x, y, noise = draw(case, step, 11, 8)
        views, metrics = ours.step(x, y, noise)
        result = oracle_step(case, nets, x.double(), y, noise, buffers)
        buffers = result.buffers
        assert views.keys() == result.views.keys()
        assert {view.dtype for view in views.values()} == {torch.float32}
        if step == 0:
            assert_views_agree(case, views, result)
        for k, peer in ours.peers.items():
            loss = metrics[f"{peer.name}/loss"]
            assert_close(loss, result.totals[k], 0.01, f"loss of {peer.name} at step {step}")
    for k, peer in ours.peers.items():
        state = peer.model.state_dict()
        for name, expected in nets[k].state_dict().items():
            assert_close(state[name], expected, 0.05, f"{name} of {peer.name}")


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [pytest.param("bf16", 0.1, id="bf16"), pytest.param("fp16", 0.02, id="fp16")],
)
@pytest.mark.parametrize("case", GIVEN_VIEWS)
def test_one_step_in_half_precision_on_the_same_views(
    case: Case, name: str, tolerance: float
) -> None:
    ours, nets = half_against_float64(case, name)
    if name == "fp16":
        # the scale that a run finds by itself after some skipped steps
        ours.team.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    check_half_on_the_same_views(case, ours, nets, tolerance)


def half_against_float64(
    case: Case,
    name: str,
    width: int = 12,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[Ours, list[nn.Module]]:
    nets = networks(case, nn.SiLU, width)
    precision = make_precision(name, torch.device("cpu"))
    copies = [copy.deepcopy(net).to(memory_format=memory_format) for net in nets]
    return Ours(case, copies, precision), [net.double() for net in nets]


def check_half_on_the_same_views(
    case: Case, ours: Ours, nets: Sequence[nn.Module], tolerance: float
) -> None:
    x, y, noise = draw(case, 0, 11, 8)
    result = oracle_step(case, nets, x.double(), y, noise, None)
    given = {name: view.float() for name, view in result.views.items()}
    _, metrics = ours.step(x, y, noise, given)
    assert_step_equals(ours, metrics, nets, result, y, tolerance)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_views_in_half_precision_stay_float32_and_in_the_ball(name: str) -> None:
    case = Case(peers=plain("trades", "alp"))
    precision = make_precision(name, torch.device("cpu"))
    ours = Ours(case, networks(case, nn.SiLU), precision)
    x, y, noise = draw(case, 0, 11, 8)
    views, metrics = ours.step(x, y, noise)
    for k in range(2):
        assert views[f"adv{k}"].dtype == torch.float32
        assert (views[f"adv{k}"] - x).abs().max() <= case.threat.eps + 2**-23
        assert (views[f"adv{k}"] - x).abs().mean() > 0.5 * case.threat.eps
    assert all(value.dtype == torch.float32 for value in metrics.values())


def test_sure_images_are_attacked_in_fp16() -> None:
    """Their gradients are below the smallest fp16 number, 6e-8, unless the loss is scaled."""
    case = Case(peers=plain("at"), pgd_steps=1)
    net = tiny_net(0, nn.SiLU)
    net.linear.bias.data[2] = 12.0
    x, y = images(0, 11)
    precision = make_precision("fp16", torch.device("cpu"))
    views, _ = Ours(case, [net], precision).step(
        x, torch.full_like(y, 2), torch.zeros(1, 1, *x.shape)
    )
    inside = (x > 0) & (x < 1)
    assert (views["adv0"] != x)[inside].double().mean() > 0.98
