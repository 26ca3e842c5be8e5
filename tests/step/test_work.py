"""The counted work of a step: multiplications and additions, in forwards of one image.

With S attack steps a step costs

  U = 2 S (attacked peers) + (TRADES peers) + 3 (forwards with gradient) + (forwards without)

an attack step being a forward and a backward to the images, the TRADES target one forward, a
training backward the gradients of activations and of weights. The images of a training forward need
no gradient, so the first layer costs 2 there and not 3.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastcat.attacks.squeeze
from fastcat.attacks.threat import ThreatModel
from fastcat.batch import Batch
from fastcat.benchmarks.measure import flop_per_image
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.config.threats import choose_threats
from fastcat.models import make_model
from fastcat.models.wide_resnet import WideResNet
from fastcat.objectives import make_objective
from fastcat.step.algorithm import collaborative_step, start_noise
from fastcat.step.team import Team
from tests.harness.networks import CLASSES, images, seeded
from tests.harness.teams import team_of

BATCH = 2


def forward_flop(model: nn.Module, side: int) -> tuple[float, float]:
    """Of one image through the network, and through its first layer."""
    x = images(0, 1, side)[0]
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    counts = []
    for module in (model, first):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(x)
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


def step_flop(team: Team, side: int) -> float:
    """Of one image through a collaborative step."""
    x, y = images(0, BATCH, side)
    noise = start_noise(team, x, seeded())
    return flop_per_image(lambda: collaborative_step(team, Batch(x, y, y), noise), BATCH)


def formula(team: Team, forward: float, first: float) -> float:
    """U of the header, from the plan, less what the first layer saves."""
    inners = [peer.objective.inner for peer in team.peers]
    attacked = [inner for inner in inners if inner is not None]
    graded = sum(cell.grad for cell in team.blueprint.cells)
    (threat,) = {peer.threats.models[0] for peer in team.peers}
    units = 2 * threat.steps * len(attacked) * threat.restarts
    units += sum(inner.loss == "kl" for inner in attacked)
    if threat.restarts > 1:
        units += threat.restarts * len(attacked)  # each start's end is judged
    units += 3 * graded + (len(team.blueprint.cells) - graded)
    return units * forward - graded * first


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "as-they-are"])
@pytest.mark.parametrize(
    ("methods", "units"),
    [
        pytest.param("natural", 3, id="natural"),
        pytest.param("at", 2 * 4 + 3, id="at"),
        pytest.param("trades", 2 * 4 + 1 + 6, id="trades"),
        pytest.param("mart", 2 * 4 + 6, id="mart"),
        pytest.param("natural trades", 2 * 4 + 1 + 9 + 1, id="natural+trades"),
        pytest.param("trades alp", 4 * 4 + 1 + 12 + 2, id="trades+alp"),
        pytest.param("trades alp mart", 6 * 4 + 1 + 18 + 6, id="trades+alp+mart"),
        pytest.param("trades trades at", 6 * 4 + 2 + 15 + 6, id="trades+trades+at"),
    ],
)
def test_work_by_formula(methods: str, units: int, frozen: bool) -> None:
    """To the last operation, with four attack steps.

    Catches a target that is computed anew in each attack step, gradients of weights in an attack,
    a graph behind a teacher, a forward of what nobody reads.
    """
    torch.manual_seed(0)
    names = methods.split()
    nets = [WideResNet(10, 1, CLASSES, 3) for _ in names]
    team = team_of(names, nets, threat=ThreatModel(steps=4), side=16)
    assert not team.remarks
    for peer in () if frozen else team.peers:
        peer.frozen = None
    forward, first = forward_flop(nets[0], 16)
    graded = sum(cell.grad for cell in team.blueprint.cells)
    expected = formula(team, forward, first)
    assert expected == pytest.approx(units * forward - graded * first)
    assert step_flop(team, 16) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "units"),
    [
        pytest.param("ard", 2 * 4 + 3 + 1, id="ard"),
        pytest.param("rslad", 2 * 4 + 6 + 1, id="rslad"),
        pytest.param("iad", 2 * 4 + 6 + 2, id="iad"),
    ],
)
def test_work_of_a_student_and_its_teacher(method: str, units: int) -> None:
    """The teacher is forwarded once a view, also where the attack aims at what it says."""
    torch.manual_seed(0)
    nets = [WideResNet(10, 1, CLASSES, 3) for _ in range(2)]
    team = team_of(["teacher", method], nets, threat=ThreatModel(steps=4), side=16)
    forward, first = forward_flop(nets[0], 16)
    graded = sum(cell.grad for cell in team.blueprint.cells)
    assert step_flop(team, 16) == pytest.approx(units * forward - graded * first, rel=1e-9)


SEVERAL = tuple(ThreatModel(norm=norm, eps=0.1, steps=4) for norm in ("linf", "l2", "l1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings", "way", "units", "first_saved"),
    [
        pytest.param("fast", {}, None, 2 + 3, 1, id="fast"),
        pytest.param("pgd-cw", {}, None, 16 + 6, 2, id="pgd-cw"),
        pytest.param("at", {}, "avg", 3 * 8 + 9, 3, id="avg"),
        # and a look at where each of the three ended
        pytest.param("at", {}, "max", 3 * 8 + 3 + 3, 1, id="max"),
        # and a look at three candidates in each step
        pytest.param("at", {}, "msd", 4 * (2 + 3) + 3, 1, id="msd"),
        # l1 climbs twice, with a look at the end
        pytest.param("at", {}, "avg-official", 2 * 8 + 2 * 8 + 1 + 9, 3, id="avg-official"),
        pytest.param("at", {}, "max-official", 2 * 8 + 2 * 8 + 1 + 3 + 3, 1, id="max-official"),
        pytest.param("at", {}, "msd-official", 4 * (2 + 3) + 3, 1, id="msd-official"),
        # the images' gradient is a by-product, but the first layer's
        pytest.param("free", {}, None, 3, 0, id="free"),
    ],
)
def test_work_of_one_network(
    method: str, settings: dict[str, str], way: str | None, units: int, first_saved: int
) -> None:
    torch.manual_seed(0)
    net = WideResNet(10, 1, CLASSES, 3)
    threats = choose_threats(way, SEVERAL)
    team = team_of([make_objective(method, settings)], [net], [method], threats=[threats], side=16)
    (peer,) = team.peers
    peer.begin_attacks(torch.zeros(BATCH, 3, 16, 16))
    forward, first = forward_flop(net, 16)
    expected = units * forward - first_saved * first
    assert step_flop(team, 16) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("bn", ["train", "eval"])
def test_work_of_squeeze_training(bn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean images are forwarded once, by a frozen twin in each step; their gradient is taken in
    the steps where an image needs it, as many as the choices of roles say.
    """
    torch.manual_seed(0)
    net = WideResNet(10, 1, CLASSES, 3)
    team = team_of([make_objective("st", {"bn": bn})], [net], ["st"], threat=SEVERAL[0], side=16)
    needed, choose = [], fastcat.attacks.squeeze.select

    def watched(*args: Any) -> tuple[Tensor, Tensor]:
        roles = choose(*args)
        needed.append(any(bool((role == 1).any()) for role in roles))
        return roles

    monkeypatch.setattr(fastcat.attacks.squeeze, "select", watched)
    forward, first = forward_flop(net, 16)
    found = step_flop(team, 16)
    units = (1 if bn == "train" else 4) + 4 * 4 + sum(needed) + 9
    assert len(needed) == 4
    assert found == pytest.approx(units * forward - 3 * first, rel=1e-9)


@pytest.mark.slow
def test_work_of_restarts() -> None:
    """Every start pays its steps and one look at where it ended; targets are computed once."""
    torch.manual_seed(0)
    nets = [WideResNet(10, 1, CLASSES, 3) for _ in range(2)]
    team = team_of(["trades", "at"], nets, threat=ThreatModel(steps=2, restarts=3), side=16)
    assert step_flop(team, 16) == pytest.approx(formula(team, *forward_flop(nets[0], 16)), rel=1e-9)


@pytest.mark.slow
def test_a_pair_of_resnets_costs_55_forwards_where_the_published_loop_costs_75() -> None:
    """The pair of the paper with PGD-10; the ratio is that of images of 32 x 32."""
    torch.manual_seed(0)
    models = [make_model("resnet18", 10, 3) for _ in range(2)]
    forward, first = forward_flop(models[0], 16)
    reference = PlainLoop([make_model("resnet18", 10, 3) for _ in range(2)], ["trades", "alp"])
    team = team_of(["trades", "alp"], models, threat=ThreatModel(steps=10), classes=10, side=16)
    x, y = images(0, BATCH, 16)
    ours = step_flop(team, 16) / forward
    theirs = flop_per_image(lambda: reference.step(x, y), BATCH) / forward
    assert ours <= 55
    assert ours == pytest.approx(55 - 4 * first / forward, rel=1e-9)
    assert theirs == pytest.approx(75, rel=0.01)
    assert theirs / ours > 75 / 55 - 0.01
