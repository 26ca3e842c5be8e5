"""`fastcat.attack`: what it takes, what it leaves alone, and what it refuses."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcat.attacks.pgd import attack
from fastcat.attacks.threat import Start, ThreatModel
from fastcat.errors import InputError
from fastcat.guard import check_images
from tests.harness.networks import images, seeded, tiny_net

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)


@pytest.mark.parametrize("as_callable", [lambda net: net.forward, lambda net: lambda x: net(x)])
def test_any_callable_is_attacked(as_callable: Callable[[nn.Module], Any]) -> None:
    x, y = images(0, 5)
    net = tiny_net(0).eval()
    by_module = attack(net, x, y, THREAT, generator=seeded())
    assert torch.equal(attack(as_callable(net), x, y, THREAT, generator=seeded()), by_module)


def test_under_no_grad_the_attack_still_climbs() -> None:
    x, y = images(0, 5)
    net = tiny_net(0)
    expected = attack(net, x, y, THREAT, generator=seeded())
    with torch.no_grad():
        x_adv = attack(net, x, y, THREAT, generator=seeded())
        assert not torch.is_grad_enabled()
    assert torch.equal(x_adv, expected)
    frozen = copy.deepcopy(net).requires_grad_(False)
    assert torch.equal(attack(frozen, x, y, THREAT, generator=seeded()), expected)


def test_adversarial_images_are_constants_also_when_the_images_have_gradient() -> None:
    x, y = images(0, 5)
    net = tiny_net(0)
    expected = attack(net, x, y, THREAT, generator=seeded())
    x_adv = attack(net, x.requires_grad_(), y, THREAT, generator=seeded())
    assert torch.equal(x_adv, expected)
    assert not x_adv.requires_grad
    assert x.requires_grad
    assert x.grad is None


def test_the_generator_alone_decides_the_start() -> None:
    x, y = images(0, 5)
    net = tiny_net(0)
    first = attack(net, x, y, THREAT, generator=seeded(1))
    torch.manual_seed(99)
    assert torch.equal(attack(net, x, y, THREAT, generator=seeded(1)), first)
    assert not torch.equal(attack(net, x, y, THREAT, generator=seeded(2)), first)
    torch.manual_seed(5)
    by_global = attack(net, x, y, THREAT)
    torch.manual_seed(5)
    assert torch.equal(attack(net, x, y, THREAT), by_global)


@pytest.mark.parametrize(
    ("start", "loss", "bn"),
    [("uniform", "ce", "eval"), ("gaussian", "kl", "train"), ("gaussian", "ce", "eval")],
)
def test_double_images_stay_double(start: Start, loss: str, bn: Any) -> None:
    x, y = images(0, 5)
    net = tiny_net(0).double()
    x_adv = attack(net, x.double(), y, THREAT, loss=loss, start=start, bn=bn, generator=seeded())
    assert x_adv.dtype == torch.float64
    assert (x_adv - x).abs().max() <= THREAT.eps + 1e-15


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    x, y = images(0, 2)
    with pytest.raises(InputError, match=r"unknown attack loss 'margn': did you mean 'margin'\?"):
        attack(tiny_net(0), x, y, THREAT, loss="margn")
    known = "boosted_ce, ce, dlr, kl, margin"
    with pytest.raises(InputError, match=f"unknown attack loss 'zzz': known are {known}"):
        attack(tiny_net(0), x, y, THREAT, loss="zzz")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        pytest.param({"start": "unifrom"}, "uniform", id="start"),
        pytest.param({"bn": "trian"}, "train", id="bn"),
    ],
)
def test_an_unknown_start_or_bn_is_refused(settings: dict[str, Any], text: str) -> None:
    """Otherwise a slip of the pen is a weaker attack, and nobody sees it."""
    x, y = images(0, 2)
    with pytest.raises(InputError, match=text):
        attack(tiny_net(0), x, y, THREAT, **settings)


@pytest.mark.parametrize(
    ("values", "text", "why"),
    [
        pytest.param([-0.1], "images range from -0.1 to 1", "clamp them", id="below"),
        pytest.param([1.15], "images range from 0 to 1.15", "clamp them", id="above"),
        pytest.param([255.0], "images range from 0 to 255", "divide them by 255", id="grey-levels"),
        pytest.param(
            [-2.4, 2.8], "images range from -2.4 to 2.8", "about 1.5/255 in pixels", id="normalised"
        ),
        pytest.param([-1.0], "images range from -1 to 1", "about 4/255 in pixels", id="to -1 .. 1"),
        pytest.param([1e4], "images range from 0 to 1e+04", "pixels of that range", id="far above"),
        pytest.param([math.nan], "images range from nan to nan", "some pixels are NaN", id="nan"),
    ],
)
def test_images_outside_the_box_are_refused(values: list[float], text: str, why: str) -> None:
    x, y = images(0, 2)
    x[1, 2, 3, : len(values)] = torch.tensor(values)
    for call in (lambda: attack(tiny_net(0), x, y, THREAT), lambda: check_images(x)):
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith(f"{text}, expected [0, 1]")
        assert why in message
        assert len(message.splitlines()) == 1
