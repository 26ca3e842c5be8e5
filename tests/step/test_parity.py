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
The harness is tests/harness/parity.py, the cases are in tests/harness/parity_cases.py.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from fastcat.collaborations import COLLABORATIONS
from fastcat.models import make_model
from fastcat.objectives import METHODS
from fastcat.precision import make_precision
from tests.harness.comparison import assert_close
from tests.harness.networks import CLASSES, images, tiny_net
from tests.harness.parity import (
    STEPS,
    Ours,
    assert_views_agree,
    check_float32_on_the_same_views,
    check_float64,
    check_half_on_the_same_views,
    draw,
    float32_against_float64,
    half_against_float64,
    networks,
    oracle_step,
)
from tests.harness.parity_cases import (
    CASES,
    GIVEN_VIEWS,
    REPRESENTATIVES,
    Case,
    plain,
    represented,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.measured("float64")
@pytest.mark.parametrize("case", CASES)
def test_three_steps_in_float64(case: Case) -> None:
    check_float64(case, networks(case, nn.ReLU), STEPS, size=11, side=8)


def test_the_representatives_have_every_feature() -> None:
    """Catches a method or an option that no other engine or precision is tested with."""

    def features(cases: Sequence[Any]) -> set[str]:
        return set().union(*(case.values[0].features for case in cases))

    few = [case for case in CASES if case.id in REPRESENTATIVES]
    assert {case.id for case in few} == set(REPRESENTATIVES)
    assert features(few) == features(CASES)
    # views that are given make no attack's features tested
    given = [case for case in few if case in GIVEN_VIEWS]
    attacks = {name for name in features(CASES) if "=" in name} | {"restarts"}
    assert features(given) | attacks == features(CASES)
    # those of tests/step/test_single_network.py and tests/step/test_multi_norm.py
    assert {name for case in CASES for name, _ in case.values[0].peers} == {
        *set(METHODS) - {"fast", "free", "pgd-cw"}
    }
    assert {case.values[0].collab for case in CASES} == set(COLLABORATIONS) - {"mat-mp"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_step_of_a_deep_pair_in_float64() -> None:
    case = Case(peers=plain("trades", "alp"), pgd_steps=2)
    torch.manual_seed(0)
    nets = [make_model(arch, CLASSES, 3) for arch in ("preactresnet18", "resnet18")]
    check_float64(case, nets, 1, size=4, side=16)


@pytest.mark.slow
@pytest.mark.measured("float32")
@pytest.mark.parametrize("case", GIVEN_VIEWS)
def test_three_steps_in_float32_on_the_same_views(case: Case) -> None:
    check_float32_on_the_same_views(case, *float32_against_float64(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", represented(CASES))
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
@pytest.mark.parametrize("case", represented(GIVEN_VIEWS))
def test_one_step_in_half_precision_on_the_same_views(
    case: Case, name: str, tolerance: float
) -> None:
    ours, nets = half_against_float64(case, name)
    if name == "fp16":
        # the scale that a run finds by itself after some skipped steps
        ours.team.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    check_half_on_the_same_views(case, ours, nets, tolerance)


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
