"""Peers that train on the views of a step at once: the cases of test_parity, but for groups.

And what cannot be merged is refused, without a trace in the network.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.models.ghost import split_norms
from fastcat.step.merged_views import CannotMerge, MergedViews
from tests.harness.comparison import assert_same
from tests.harness.networks import images, tiny_net
from tests.harness.parity import (
    STEPS,
    check_float32_on_the_same_views,
    check_float64,
    check_half_on_the_same_views,
    float32_against_float64,
    half_against_float64,
    networks,
)
from tests.harness.parity_cases import CASES, GIVEN_VIEWS, Case, represented

pytestmark = pytest.mark.usefixtures("one_thread")


def whole(cases: list[Any]) -> list[Any]:
    """The cases whose BatchNorm sees whole views."""
    return [case for case in cases if not case.values[0].bn_groups]


@pytest.mark.slow
@pytest.mark.parametrize("case", whole(represented(CASES)))
def test_three_steps_in_float64(case: Case) -> None:
    check_float64(case, networks(case, nn.ReLU), STEPS, size=11, side=8, merged=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", whole(represented(GIVEN_VIEWS)))
def test_three_steps_in_float32_on_the_same_views(case: Case) -> None:
    check_float32_on_the_same_views(case, *float32_against_float64(case, merged=True))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
@pytest.mark.parametrize("case", whole(represented(GIVEN_VIEWS)))
def test_one_step_in_half_precision_on_the_same_views(
    case: Case, name: str, tolerance: float
) -> None:
    ours, nets = half_against_float64(case, name, merged=True)
    if name == "fp16":
        # the scale that a run finds by itself after some skipped steps
        ours.team.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    check_half_on_the_same_views(case, ours, nets, tolerance)


def everything(net: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.clone() for name, value in net.state_dict().items()}
    for name, module in net.named_modules():
        found[f"{name} training"] = module.training
        found[f"{name} tracks"] = getattr(module, "track_running_stats", None)
    return found


def example() -> Tensor:
    return images(0, 4)[0].to(memory_format=torch.channels_last)


@pytest.mark.parametrize("count", [1, 3])
def test_several_views_are_one_after_the_other(count: int) -> None:
    """Catches statistics of all views together, or in another order, or counted once."""
    net = tiny_net(0)
    other = copy.deepcopy(net)
    merged = MergedViews(net, example())
    views = [images(seed, 4)[0] for seed in range(count)]
    for ours, view in zip(merged(views), views, strict=True):
        torch.testing.assert_close(ours, other(view), rtol=1e-4, atol=1e-5)
    for name, expected in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], expected, rtol=1e-5, atol=1e-6)
    assert net.bn1.num_batches_tracked == count


def test_running_statistics_stay_where_they_are_not_tracked() -> None:
    net = tiny_net(0)
    merged = MergedViews(net, example())
    for norm in (net.bn1, net.bn2, net.bn3):
        norm.track_running_stats = False
    before = everything(net)
    merged([example(), example()])
    assert_same(before, everything(net))


class TwoTypes(nn.Module):
    """Under autocast one of its summands is bfloat16, the other float32, as is then the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) + self.conv(x)).relu().flatten(1)


def test_summands_of_two_types_are_added_in_the_wider_one() -> None:
    net = TwoTypes()
    other = copy.deepcopy(net)
    merged = MergedViews(net, example())
    with torch.autocast("cpu", torch.bfloat16):
        (ours,) = merged([example()])
        expected = other(example())
    assert ours.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.net(x))


class OfTheBatch(nn.Module):
    """Its logits depend on the other images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z - z.mean(0)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.sum() > 0 else self.net(-x)


def with_groups() -> nn.Module:
    net = tiny_net(0)
    split_norms(net, 2)
    return net


def with_momentum(momentum: float | None) -> nn.Module:
    net = tiny_net(0)
    net.bn2.momentum = momentum
    return net


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (WithDropout, "on several views at once it computes something else"),
        (OfTheBatch, "on several views at once it computes something else"),
        (Branching, "it cannot be traced"),
        (with_groups, "its BatchNorm2d 'bn1' normalises otherwise"),
        (lambda: with_momentum(None), "its BatchNorm2d 'bn2' normalises otherwise"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "it has no BatchNorm2d"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_left_as_it_was(make: Any, why: str) -> None:
    net = make().eval()
    before = everything(net)
    with pytest.raises(CannotMerge, match=why):
        MergedViews(net, example())
    assert_same(before, everything(net))


@pytest.mark.parametrize("momentum", [0.03, 1.0])
def test_any_momentum_is_kept(momentum: float) -> None:
    MergedViews(with_momentum(momentum), example())
