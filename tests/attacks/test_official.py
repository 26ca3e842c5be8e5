"""Attacks as published code runs them: its plain loops, written from the formula, beside ours.

Whole training steps under `max-official`, `msd-official` and `l2:code=trades` are compared in
tests/step/test_multi_norm.py.
"""

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.multi_norm_official import draw_counts, moved_l1, project_l1_official
from fastcat.attacks.pgd import ATTACK_LOSSES, PGD, attack_all
from fastcat.attacks.threat import ThreatModel
from tests.harness.networks import images, seeded, tiny_net
from tests.reference.losses import cross_entropy, kl
from tests.reference.maini import project_l1

pytestmark = pytest.mark.usefixtures("one_thread")


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)[:, None, None, None]


def shortened(delta: Tensor, eps: float) -> Tensor:
    return delta * (eps / lengths(delta)).clamp(max=1)


def gradient(net: nn.Module, loss: str, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Of the mean, as public code takes it."""
    leaf = x_adv.detach().requires_grad_()
    climbed = kl(net(x).detach(), net(leaf)) if loss == "kl" else cross_entropy(net(leaf), y)
    return torch.autograd.grad(climbed.mean(), leaf)[0]


@pytest.fixture
def trial() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, and images with pixels at 0 and 1, in float64."""
    x, y = images(0, 7)
    return tiny_net(0).double().eval(), x.double(), y


EPS, STEPS = 0.9, 6


def test_l2_of_trades_in_several_steps(trial: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Their steps are 2 eps / steps long; catches the projection before the box."""
    net, x, y = trial
    noise = torch.randn(x.shape, generator=seeded(), dtype=x.dtype)
    delta = 0.001 * noise
    for _ in range(STEPS):
        grad = gradient(net, "kl", x, y, x + delta)
        delta = delta + 2 * EPS / STEPS * grad / lengths(grad)
        delta = shortened((x + delta).clamp(0, 1) - x, EPS)
    threat = ThreatModel(norm="l2", eps=EPS, step_size=2 * EPS / STEPS, steps=STEPS, code="trades")
    inner = PGD(loss="kl", start="gaussian")
    found = attack_all([net], [inner], x, y, threat, noise[None, None])[0]
    assert (found - x - delta).abs().max() < 1e-10
    other = ThreatModel(norm="l2", eps=EPS, step_size=2 * EPS / STEPS, steps=STEPS)
    usual = attack_all([net], [inner], x, y, other, noise[None, None])[0]
    assert (usual - x - delta).abs().max() > 1e-3, "the order must show"
    # what the box takes away is not taken from the length: the climb is higher
    heights = [ATTACK_LOSSES["kl"](net(view), net(x)).mean() for view in (found, usual)]
    assert heights[0] > heights[1]


def test_l2_of_rice_in_several_steps(trial: tuple[nn.Module, Tensor, Tensor]) -> None:
    """A Gaussian direction, and a length uniform in [0, eps]."""
    net, x, y = trial
    threat = ThreatModel(norm="l2", eps=EPS, step_size=EPS / 4, steps=STEPS, code="rice")
    noise = threat.draw_noise("uniform", x, seeded())
    # what they draw, in the same order
    direction = torch.empty_like(x).normal_(generator=(generator := seeded()))
    radius = torch.empty(len(x), dtype=x.dtype).uniform_(0, 1, generator=generator)
    delta = direction * radius[:, None, None, None] / lengths(direction) * EPS
    delta = (x + delta).clamp(0, 1) - x
    for _ in range(STEPS):
        grad = gradient(net, "ce", x, y, x + delta)
        delta = shortened(delta + EPS / 4 * grad / (lengths(grad) + 1e-10), EPS)
        delta = (x + delta).clamp(0, 1) - x
    found = attack_all([net], [PGD()], x, y, threat, noise[None, None])[0]
    assert (found - x - delta).abs().max() < 1e-7, "but for their 1e-10"


# l1 of Maini et al.


def row(*values: float) -> Tensor:
    """One image [1, 1, 1, n]."""
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_images_inside_are_moved_out_once_one_is_outside() -> None:
    delta = torch.cat([row(0.4, 0, -0.2, 0.1), row(2, 0, -1, 0)])
    assert torch.equal(project_l1_official(delta[:1], 1.0), delta[:1])
    found = project_l1_official(delta, 1.0)
    # 0.3 is missing, shared by four coordinates, of which the one at 0 stays
    expected = torch.cat([row(0.475, 0, -0.275, 0.175), row(1, 0, 0, 0)])
    assert (found - expected).abs().max() < 1e-12
    assert (found - project_l1(delta, 1.0)).abs().max() < 1e-12, "as the oracle has it"


@pytest.mark.parametrize(
    ("x", "grad", "moves"),
    [
        # each of the two largest by half the step
        ([0.5, 0.3, 0.7, 0.5], [1, -3, 2, 0.5], [0, -0.1, 0.1, 0]),
        # all ties with the last, and each as far
        ([0.5, 0.5, 0.5, 0.5], [1, -3, 1, 0.5], [0.1, -0.1, 0.1, 0]),
        # nothing leaves 0 or 1, neither where there is room
        ([0.0, 1.0, 0.5, 0.5], [3, -2, 1, -0.5], [0, 0, 0.1, -0.1]),
        # nor comes nearer to them than the gap
        ([0.04, 0.96, 0.04, 0.96], [-4, 3, 2, -1], [0, 0, 0.1, -0.1]),
        # where fewer can move, they go no further
        ([0.0, 1.0, 0.5, 0.5], [3, -2, 1, 0], [0, 0, 0.1, 0]),
    ],
)
def test_an_l1_step_of_their_code(x: list[float], grad: list[float], moves: list[float]) -> None:
    threat = ThreatModel(norm="l1", eps=1.0, step_size=0.2)
    two = torch.tensor(2.0, dtype=torch.float64)
    found = moved_l1(row(*x), row(*x), row(*grad), threat, two, 0.05)
    assert (found - row(*x) - row(*moves)).abs().max() < 1e-12


def test_counts_are_drawn_from_5_to_20_alike() -> None:
    noise = 2 * torch.rand(1, 1, 200, 200, generator=seeded()) - 1
    counts = draw_counts(noise, 40000)
    values, times = counts.unique(return_counts=True)
    assert values.tolist() == list(range(5, 21))
    assert (times - 2500).abs().max() < 250, "five standard deviations"
    assert draw_counts(torch.tensor([-1.0, 1.0]), 3).tolist() == [5, 20, 5]
