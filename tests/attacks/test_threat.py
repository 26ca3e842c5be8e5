"""The threat model: one step, its distance, its noise, and the values that mean nothing."""

import math
from typing import Any

import pytest
import torch

from fastcat.attacks.pgd import attack
from fastcat.attacks.threat import CODES, Start, ThreatModel
from fastcat.errors import InputError
from fastcat.step.algorithm import start_noise
from tests.harness.attack_losses import climbed
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.teams import team_of

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)


@pytest.mark.parametrize("value", [0.0, math.nan], ids=["zero", "nan"])
def test_ascend_without_direction_moves_nothing(value: float) -> None:
    x, _ = images(0, 3)
    x_adv = torch.stack([(x + 0.01).clamp(0, 1), x])
    before = x_adv.clone()
    THREAT.ascend(x_adv, x, torch.full_like(x_adv, value))
    assert torch.equal(x_adv, before)


def test_ascend_by_hand() -> None:
    """Step 3/16 in a ball of 1/4; all numbers are exact in binary."""
    threat = ThreatModel(eps=4 / 16, step_size=3 / 16, steps=1)
    x = torch.tensor([8, 8, 8, 1, 15, 8]) / 16
    x_adv = torch.tensor([8, 10, 8, 1, 15, 9]) / 16
    grad = torch.tensor([1e-20, 5.0, -2.0, -1.0, 1.0, 0.0])
    #            free, edge of the ball, free, edge of the box, edge of the box, no direction
    expected = torch.tensor([11, 12, 5, 0, 16, 9]) / 16
    low = torch.full((1, 6, 1, 1, 1), torch.nan, dtype=torch.bfloat16)
    threat.ascend(x_adv.view(1, 6, 1, 1, 1), x.view(6, 1, 1, 1), grad.view(1, 6, 1, 1, 1), low)
    assert torch.equal(x_adv, expected), "in place"
    assert torch.equal(low.flatten(), expected.bfloat16()), "and as the network reads it"


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
            {"eps": 8},
            "eps is 8, more than the whole range [0, 1] of a pixel: type 8/255",
            id="eps-8",
        ),
        pytest.param({"eps": math.nan}, "eps is nan, expected pixels in (0, 1]", id="eps-nan"),
        pytest.param({"eps": math.inf}, "eps is inf, expected pixels in (0, 1]", id="eps-inf"),
        pytest.param({"step_size": 0.0}, "step size is 0, expected pixels", id="step_size-0"),
        pytest.param({"step_size": -0.1}, "step size is -0.1, expected", id="step_size-negative"),
        pytest.param(
            {"step_size": 2},
            "step size is 2, more than the whole range [0, 1] of a pixel: type 2/255",
            id="step_size-2",
        ),
        pytest.param({"step_size": math.nan}, "step size is nan, expected", id="step_size-nan"),
        pytest.param({"steps": 0}, "steps is 0, expected at least 1", id="steps-0"),
        pytest.param({"steps": -3}, "steps is -3, expected at least 1", id="steps-negative"),
        pytest.param({"restarts": 0}, "restarts is 0, expected at least 1", id="restarts-0"),
        pytest.param(
            {"norm": "l_inf"}, "unknown norm 'l_inf': did you mean 'linf'?", id="norm-typo"
        ),
        pytest.param({"norm": "zzz"}, "unknown norm 'zzz': known are l1, l2, linf", id="norm-zzz"),
        pytest.param({"norm": "l2", "eps": 0}, "eps is 0, expected more than 0", id="l2-eps-0"),
        pytest.param({"norm": "l1", "eps": math.inf}, "eps is inf, expected", id="l1-eps-inf"),
        pytest.param(
            {"code": "rice"}, "code=rice is for l2, not for linf: leave it out", id="code-linf"
        ),
        pytest.param({"norm": "l2", "code": "trade"}, "did you mean 'trades'?", id="code-typo"),
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
    noise = THREAT.draw_noise(kind, torch.zeros(20, 3, 32, 32), seeded())
    assert noise.mean().item() == pytest.approx(0.0, abs=0.02)
    assert noise.std().item() == pytest.approx(std, abs=0.02)
    assert noise.abs().max() <= furthest
    assert (noise > 2).float().mean().item() == pytest.approx(beyond_2, abs=0.004)


def test_each_attacked_peer_gets_noise_of_its_own_kind() -> None:
    x, _ = images(0, 64)
    team = team_of(["natural", "alp", "at", "trades"], threat=ThreatModel(restarts=2))
    noise = start_noise(team, x, seeded())
    assert noise.shape == (2, 3, *x.shape)
    largest = noise.abs().amax((2, 3, 4, 5))
    assert (largest[:, :2] <= 1).all()
    assert (largest[:, 2] > 3).all()
    flat = noise.flatten(0, 1).flatten(1)
    assert torch.corrcoef(flat).sub(torch.eye(6)).abs().max() < 0.05, "draws are independent"
    assert torch.equal(start_noise(team, x, seeded()), noise)
    assert start_noise(team_of(["natural"]), x, seeded()).numel() == 0


# other norms


BALLS = [
    pytest.param(ThreatModel(norm="l2", eps=0.5, step_size=0.15, steps=8), id="l2"),
    pytest.param(ThreatModel(norm="l1", eps=4.0, step_size=1.0, steps=8), id="l1"),
]
CODED = [
    pytest.param(ThreatModel(norm="l2", eps=0.5, step_size=0.15, steps=8, code=code), id=code)
    for code in CODES
]


@pytest.mark.parametrize("threat", BALLS)
def test_uniform_starts_fill_the_ball(threat: ThreatModel) -> None:
    """In n dimensions a share r^n of the ball lies within r: the radius to the n is uniform.

    Catches a draw from the sphere, or from the cube, or with the other norm's radius.
    """
    x = torch.zeros(4000, 1, 2, 2)
    noise = threat.draw_noise("uniform", x, seeded())
    order = {"l2": 2, "l1": 1}[threat.norm]
    radius = noise.flatten(1).norm(order, dim=1)
    assert radius.max() <= 1 + 1e-6
    quantiles = torch.quantile(radius**4, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    # five standard deviations of a quantile
    torch.testing.assert_close(
        quantiles, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), rtol=0, atol=0.04
    )
    assert noise.mean((0, 1)).abs().max() < 0.03, "no direction is preferred"


def test_starts_of_rice_lie_at_any_distance_alike() -> None:
    """Catches a draw that is uniform in the ball, which in 12 dimensions is near the sphere."""
    threat = ThreatModel(norm="l2", eps=0.5, code="rice")
    radius = (
        threat.draw_noise("uniform", torch.zeros(4000, 3, 2, 2), seeded()).flatten(1).norm(dim=1)
    )
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    # five standard deviations of a quantile
    torch.testing.assert_close(torch.quantile(radius, levels), levels, rtol=0, atol=0.04)
    assert radius.max() <= 1 + 1e-6


@pytest.mark.parametrize("loss", ["ce", "kl", "margin"])
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@pytest.mark.parametrize("threat", [*BALLS, *CODED])
def test_other_norms_attack_inside_ball_and_box(
    threat: ThreatModel, start: Start, loss: str
) -> None:
    """Catches a projection in another norm, one before the box, and a step downhill."""
    x, y = images(0, 16)
    net = tiny_net(0).eval()
    x_adv = attack(net, x, y, threat, loss=loss, start=start, generator=seeded())
    assert (threat.distance(x, x_adv) <= threat.eps * (1 + 1e-5)).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    # and uses what it may: no image is left far inside the ball
    assert (threat.distance(x, x_adv) > 0.3 * threat.eps).all()
    before, after = (climbed(loss, net, x, view, y) for view in (x, x_adv))
    assert (after > before).all()
    noise = threat.start(x, "uniform", threat.draw_noise("uniform", x, seeded()))
    noise_gain = (climbed(loss, net, x, noise, y) - before).mean()
    assert (after - before).mean() > 5 * noise_gain.abs()


@pytest.mark.parametrize("threat", BALLS)
def test_distance_is_that_of_the_norm(threat: ThreatModel) -> None:
    x = torch.full((1, 1, 2, 2), 0.25)
    x_adv = x + torch.tensor([[0.25, -0.25], [0.25, 0.25]])
    assert threat.distance(x, x_adv).tolist() == [{"l2": 0.5, "l1": 1.0}[threat.norm]]
