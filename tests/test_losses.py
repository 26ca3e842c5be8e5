"""Losses of one image against hand-worked values, the oracle, and logits at the end of float32."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from fastcat.kernels import losses
from fastcat.kernels.multi_peer_loss import KINDS
from tests.reference import losses as reference

LN2 = log(2.0)
# in units of log 2: p = (4, 2, 1, 1) / 8 and q = (1, 4, 2, 1) / 8, so KL(p || q) = 5/8
P = LN2 * torch.tensor([[2.0, 1.0, 0.0, 0.0]])
Q = LN2 * torch.tensor([[0.0, 2.0, 1.0, 0.0]])
Y = torch.tensor([0])


def test_cross_entropy_by_hand() -> None:
    assert losses.ce(P, Y).tolist() == pytest.approx([LN2])
    assert losses.ce(Q, Y).tolist() == pytest.approx([3 * LN2])


def test_uniform_cross_entropy_by_hand() -> None:
    """-(log 4/8 + log 2/8 + 2 log 1/8) / 4 = (1 + 2 + 3 + 3) / 4 log 2."""
    assert losses.uniform_ce(P).tolist() == pytest.approx([9 / 4 * LN2])


def test_margin_by_hand() -> None:
    """Negative where the image is classified rightly, and never below the label's own logit."""
    z = torch.tensor([[5.0, 2.0, 3.0], [5.0, 2.0, 3.0], [-4.0, -2.0, -3.0]])
    assert losses.margin(z, torch.tensor([0, 1, 1])).tolist() == [-2.0, 3.0, -1.0]


def test_dlr_by_hand() -> None:
    """(z_wrong - z_y) / (z_(1) - z_(3)): -2/4, 2/4, and 3/4 where y is neither of the first two."""
    z = torch.tensor([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 2.0]])
    assert losses.dlr(z[:2], torch.tensor([0, 1])).tolist() == pytest.approx([-0.5, 0.5])
    assert losses.dlr(z[2:], torch.tensor([3])).tolist() == pytest.approx([3 / 3])


def test_square_by_hand_and_its_gradients() -> None:
    """(3^2 + 0 + 1^2 + 2^2) / 4, the mean over the classes; d/dz = 2 (z - t) / C."""
    z, t = torch.tensor([[3.0, 0, 1, 2]]).requires_grad_(), torch.zeros(1, 4).requires_grad_()
    value = losses.square(t, z)
    assert value.tolist() == [3.5]
    grads = torch.autograd.grad(value.sum(), (t, z))
    assert grads[1].tolist() == [[1.5, 0.0, 0.5, 1.0]]
    assert torch.equal(grads[0], -grads[1])


def test_mart_kl_by_hand() -> None:
    """(1.0000001 - p_y(teacher)) KL = (1 - 4/8) 5/8 log 2, with y = 0."""
    assert losses.mart_kl(P, Q, Y).tolist() == pytest.approx([0.5 * 5 / 8 * LN2])


def test_boosted_cross_entropy_by_hand() -> None:
    """-log 1/8 - log(1.0001 - 1/2)."""
    expected = 3 * LN2 - log(1.0001 - 0.5)
    assert losses.boosted_ce(Q, Y).tolist() == pytest.approx([expected])


def test_kl_by_hand_and_its_order() -> None:
    """KL(p || q) = 5/8 log 2, KL(q || p) = (-2 + 4 * 1 + 2 * 1 + 0) / 8 log 2."""
    assert losses.kl(P, Q).tolist() == pytest.approx([5 / 8 * LN2])
    assert losses.kl(Q, P).tolist() == pytest.approx([4 / 8 * LN2])
    assert losses.kl(P, P + 7).tolist() == pytest.approx([0.0], abs=1e-6)


def test_kl_has_gradient_on_both_sides() -> None:
    """d/dt_c = p_c (log p_c - log q_c - KL), d/dz_c = q_c - p_c."""
    teacher, z = P.clone().requires_grad_(), Q.clone().requires_grad_()
    grads = torch.autograd.grad(losses.kl(teacher, z).sum(), (teacher, z))
    p, q = P.softmax(1), Q.softmax(1)
    torch.testing.assert_close(grads[0], p * ((p / q).log() - 5 / 8 * LN2))
    torch.testing.assert_close(grads[1], q - p)


@pytest.mark.parametrize(
    ("ours", "expected", "arguments"),
    [
        pytest.param(losses.ce, reference.cross_entropy, "zy", id="ce"),
        pytest.param(losses.uniform_ce, reference.uniform_cross_entropy, "z", id="uniform_ce"),
        pytest.param(losses.kl, reference.kl, "tz", id="kl"),
    ],
)
def test_values_and_gradients_equal_the_oracle(
    ours: Callable[..., Tensor], expected: Callable[..., Tensor], arguments: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = (
        (5 * torch.randn(33, 7, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )
    weights = torch.rand(33, generator=generator, dtype=torch.float64)
    y = torch.randint(7, (33,), generator=generator)
    values = [loss(*({"z": z, "t": t, "y": y}[a] for a in arguments)) for loss in (ours, expected)]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-13)
    inputs = [{"z": z, "t": t}[a] for a in arguments if a != "y"]
    grads = [torch.autograd.grad((weights * value).sum(), inputs) for value in values]
    for actual, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [200.0, 1e4])
@pytest.mark.parametrize("name", KINDS)
def test_saturated_logits(name: str, size: float) -> None:
    """In float32: every value equals float64's, every gradient is finite."""
    rows = [[size, -size, 0.0], [-size, size, 0.0], [0.0, 0.0, size], [-size, -size, -size]]
    z, t = torch.tensor(rows), torch.tensor(rows[1:] + rows[:1])
    y = torch.tensor([1, 1, 0, 2])
    loss = getattr(losses, name)
    z.requires_grad_(), t.requires_grad_()
    pairs = {"kl": (t, z), "square": (t, z), "mart_kl": (t, z, y)}
    args = {**pairs, "uniform_ce": (z,)}.get(name, (z, y))
    exact = [argument.double() if argument.requires_grad else argument for argument in args]
    value = loss(*args)
    # 1.0000001 is one float32 step above 1, and 1.0000001 - p_y is known to no more than a step
    step = 2**-23 * losses.kl(t, z).max().item() if name == "mart_kl" else 0
    torch.testing.assert_close(value.double(), loss(*exact), rtol=2e-5, atol=max(1e-6, step))
    inputs = [argument for argument in args if argument.requires_grad]
    for grad in torch.autograd.grad(value.sum(), inputs):
        assert grad.isfinite().all()


def test_boosted_cross_entropy_in_float32_keeps_its_guard() -> None:
    """All probability is on a wrong class: -log(1.0001 - 1) = 9.2103, without the guard inf."""
    z = torch.tensor([[0.0, 1e4]])
    guard = losses.boosted_ce(z, Y) - losses.ce(z, Y)
    assert guard.item() == pytest.approx(-log(1e-4), rel=1e-3)
