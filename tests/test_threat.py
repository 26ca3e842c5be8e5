"""The threat model: one step, its distance, its noise, and the values that mean nothing."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from fastcat.attack import attack
from fastcat.errors import InputError
from fastcat.objectives import make_objective
from fastcat.optim import make_optimizer
from fastcat.peer import Peer
from fastcat.step import start_noise
from fastcat.threat import Start, ThreatModel, draw_noise
from tests.networks import images, seeded, tiny_net

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)


@pytest.mark.parametrize("value", [0.0, math.nan], ids=["zero", "nan"])
def test_ascend_without_direction_moves_nothing(value: float) -> None:
    x, _ = images(0, 3)
    x_adv = torch.stack([(x + 0.01).clamp(0, 1), x])
    assert torch.equal(THREAT.ascend(x_adv, x, torch.full_like(x_adv, value)), x_adv)


def test_ascend_by_hand() -> None:
    """Step 3/16 in a ball of 1/4; all numbers are exact in binary."""
    threat = ThreatModel(eps=4 / 16, step_size=3 / 16, steps=1)
    x = torch.tensor([8, 8, 8, 1, 15, 8]) / 16
    x_adv = torch.tensor([8, 10, 8, 1, 15, 9]) / 16
    grad = torch.tensor([1e-20, 5.0, -2.0, -1.0, 1.0, 0.0])
    #            free, edge of the ball, free, edge of the box, edge of the box, no direction
    expected = torch.tensor([11, 12, 5, 0, 16, 9]) / 16
    moved = threat.ascend(x_adv.view(1, 6, 1, 1, 1), x.view(6, 1, 1, 1), grad.view(1, 6, 1, 1, 1))
    assert torch.equal(moved.flatten(), expected)


def test_distance_is_the_largest_move_of_each_image() -> None:
    x = torch.full((2, 3, 4, 4), 0.5)
    x_adv = x.clone()
    x_adv[0, 2, 3, 1] -= 0.25
    x_adv[1] += 0.125
    assert THREAT.distance(x, x_adv).tolist() == [0.25, 0.125]


def test_step_is_a_quarter_of_eps_unless_given() -> None:
    assert ThreatModel(eps=0.1).step == 0.025
    assert ThreatModel(eps=0.1, step_size=0.03).step == 0.03
    assert ThreatModel().eps == 8 / 255
    assert ThreatModel().step == 2 / 255
    assert (ThreatModel().steps, ThreatModel().restarts) == (10, 1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        pytest.param({"eps": 0}, "eps is 0, expected pixels in (0, 1]", id="eps-0"),
        pytest.param({"eps": -1}, "eps is -1, expected pixels in (0, 1]", id="eps-negative"),
        pytest.param(
            {"eps": 8}, "eps is 8, expected pixels in (0, 1]: type for example 8/255", id="eps-8"
        ),
        pytest.param({"eps": math.nan}, "eps is nan, expected pixels in (0, 1]", id="eps-nan"),
        pytest.param({"eps": math.inf}, "eps is inf, expected pixels in (0, 1]", id="eps-inf"),
        pytest.param({"step_size": 0.0}, "step size is 0, expected pixels", id="step_size-0"),
        pytest.param({"step_size": -0.1}, "step size is -0.1, expected", id="step_size-negative"),
        pytest.param(
            {"step_size": 2}, "step size is 2, expected pixels in (0, 1]", id="step_size-2"
        ),
        pytest.param({"step_size": math.nan}, "step size is nan, expected", id="step_size-nan"),
        pytest.param({"steps": 0}, "steps is 0, expected at least 1", id="steps-0"),
        pytest.param({"steps": -3}, "steps is -3, expected at least 1", id="steps-negative"),
        pytest.param({"restarts": 0}, "restarts is 0, expected at least 1", id="restarts-0"),
        pytest.param(
            {"norm": "l_inf"}, "unknown norm 'l_inf': did you mean 'linf'?", id="norm-typo"
        ),
        pytest.param({"norm": "L2"}, "unknown norm 'L2': known are linf", id="norm-unknown"),
    ],
)
def test_threat_models_that_mean_nothing_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        ThreatModel(**settings)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_whole_range_is_a_threat_model() -> None:
    """eps = 1 is allowed: then only the box holds."""
    x, y = images(0, 3)
    threat = ThreatModel(eps=1.0, step_size=1.0, steps=1)
    x_adv = attack(tiny_net(0), x, y, threat, start="zero")
    assert ((x_adv == 0) | (x_adv == 1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("kind", "std", "furthest", "beyond_2"),
    [
        pytest.param("uniform", 3**-0.5, 1.0, 0.0, id="uniform"),
        pytest.param("gaussian", 1.0, 6.0, 0.0228, id="gaussian"),
        pytest.param("zero", 0.0, 0.0, 0.0, id="zero"),
    ],
)
def test_noise_has_the_distribution_of_its_kind(
    kind: Start, std: float, furthest: float, beyond_2: float
) -> None:
    noise = draw_noise(kind, torch.zeros(20, 3, 32, 32), seeded())
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.std().item() == pytest.approx(std, abs=0.02)
    assert noise.abs().max() <= furthest
    assert (noise > 2).float().mean().item() == pytest.approx(beyond_2, abs=0.004)


def test_each_attacked_peer_gets_noise_of_its_own_kind() -> None:
    x, _ = images(0, 64)
    peers = []
    for k, name in enumerate(("natural", "alp", "at", "trades")):
        net = nn.Linear(1, 1)
        optimizer = make_optimizer(net, lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        peers.append(Peer(f"{k}-{name}", "tiny", net, make_objective(name, {}), optimizer, scaler))
    threat = ThreatModel(restarts=2)
    noise = start_noise(peers, x, threat, seeded())
    assert noise.shape == (2, 3, *x.shape)
    largest = noise.abs().amax((2, 3, 4, 5))
    assert (largest[:, :2] <= 1).all()
    assert (largest[:, 2] > 3).all()
    flat = noise.flatten(0, 1).flatten(1)
    assert torch.corrcoef(flat).sub(torch.eye(6)).abs().max() < 0.05, "draws are independent"
    assert torch.equal(start_noise(peers, x, threat, seeded()), noise)
    assert start_noise(peers[:1], x, threat, seeded()).numel() == 0
