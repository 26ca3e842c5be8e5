"""The oracle's losses against values and gradients worked out by hand and finite differences.

Shapes: B batch, C classes.
"""

from math import log

import pytest
import torch
from torch import Tensor

from tests.reference import losses

LN2 = log(2.0)

# Logits are multiples of log 2, so all probabilities are eighths:
#   row 0, y = 0: p = (4, 2, 1, 1) / 8, q = (1, 4, 2, 1) / 8, the largest wrong q is the largest q
#   row 1, y = 2: p = (1, 1, 2, 4) / 8, q = (1, 1, 4, 2) / 8, the largest wrong q is the second
# hence in units of log 2: CE(clean) = (1, 2), CE(adv) = (3, 1) and, from sum p (log p - log q),
#   KL = (4 * 2 - 2 - 1, -2 + 4) / 8 = (5, 2) / 8
CLEAN = LN2 * torch.tensor([[2.0, 1, 0, 0], [0, 0, 1, 2]], dtype=torch.float64)
ADV = LN2 * torch.tensor([[0.0, 2, 1, 0], [1, 1, 3, 2]], dtype=torch.float64)
P = torch.tensor([[4.0, 2, 1, 1], [1, 1, 2, 4]], dtype=torch.float64) / 8
Q = torch.tensor([[1.0, 4, 2, 1], [1, 1, 4, 2]], dtype=torch.float64) / 8
LOG_P_OVER_Q = LN2 * torch.tensor([[2.0, -1, -1, 0], [0, 0, -1, 1]], dtype=torch.float64)
KL_B = LN2 * torch.tensor([5.0, 2.0], dtype=torch.float64) / 8
Y = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        pytest.param(losses.natural(CLEAN, Y), {"ce": 1.5 * LN2}, id="natural"),
        pytest.param(losses.at(ADV, Y), {"ce": 2.0 * LN2}, id="at"),
        # against the uniform distribution (1 + 2 + 3 + 3) / 4 and (3 + 3 + 2 + 1) / 4 log 2
        pytest.param(
            losses.natural(CLEAN, Y, 0.2), {"ce": (0.8 * 1.5 + 0.2 * 9 / 4) * LN2}, id="smoothed"
        ),
        # 6 * (5 + 2) / 8 / 2 = 21 / 8
        pytest.param(
            losses.trades(CLEAN, ADV, Y), {"ce": 1.5 * LN2, "kl": 2.625 * LN2}, id="trades"
        ),
        # squared differences 4 + 1 + 1 and 1 + 1 + 4 + 0, mean over 8 elements
        pytest.param(
            losses.alp(ADV, CLEAN, Y, weight=3.0),
            {"ce": 1.75 * LN2, "pairing": 3.0 * 1.5 * LN2**2},
            id="alp",
        ),
        # largest wrong q: 1/2 and 1/4; p_y: 1/2 and 1/4
        pytest.param(
            losses.mart(CLEAN, ADV, Y),
            {
                "bce": 2.0 * LN2 - 0.5 * (log(0.500100000001) + log(0.750100000001)),
                "kl": 5.0 * 0.5 * (0.5000001 * 5 / 8 + 0.7500001 * 2 / 8) * LN2,
            },
            id="mart",
        ),
        # KL(p || q) averages to 7/16; KL(uniform || q) = -2 + (3 + 1 + 2 + 3) / 4 = 1/4
        pytest.param(
            {"guidance": losses.cat_guidance(ADV, [CLEAN, torch.zeros_like(ADV)])},
            {"guidance": (7 / 16 + 1 / 4) * LN2},
            id="cat",
        ),
        # KL(q || p) = (-2 + 4 * 1 + 2 * 1) / 8 and (1 * 0 + 1 * 0 + 4 * 1 - 2 * 1) / 8
        pytest.param(
            {"guidance": losses.cat_guidance(ADV, [CLEAN], own_first=True)},
            {"guidance": (4 / 8 + 2 / 8) / 2 * LN2},
            id="cat-own_first",
        ),
    ],
)
def test_values_by_hand(terms: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-14)


def test_mixed_values_by_hand() -> None:
    """With y_mixed = (1, 3) and share = (1/4, 1), a term without labels is as of plain images.

    In units of log 2: CE(clean, y) = (1, 2), CE(clean, y_mixed) = (2, 1), CE(adv, y) = (3, 1),
    CE(adv, y_mixed) = (1, 2), so clean (7/4, 2) and adv (6/4, 1).
    """
    y_mixed, share = torch.tensor([1, 3]), torch.tensor([0.25, 1.0], dtype=torch.float64)
    natural = losses.mixed(losses.natural, [CLEAN], Y, y_mixed, share)
    assert natural["ce"].item() == pytest.approx(15 / 8 * LN2, rel=1e-14)
    alp = losses.mixed(losses.alp, [ADV, CLEAN], Y, y_mixed, share, weight=3.0)
    assert alp["ce"].item() == pytest.approx((15 / 8 + 5 / 4) / 2 * LN2, rel=1e-14)
    torch.testing.assert_close(alp["pairing"], losses.alp(ADV, CLEAN, Y, weight=3.0)["pairing"])


def test_trades_kl_reaches_both_sides() -> None:
    """d KL / dz(x)_c = p_c (log p_c - log q_c - KL) / B, d KL / dz(x_adv)_c = (q_c - p_c) / B."""
    clean, adv = CLEAN.clone().requires_grad_(), ADV.clone().requires_grad_()
    grads = torch.autograd.grad(losses.trades(clean, adv, Y, beta=1.0)["kl"], (clean, adv))
    torch.testing.assert_close(grads[0], P * (LOG_P_OVER_Q - KL_B[:, None]) / 2)
    torch.testing.assert_close(grads[1], (Q - P) / 2)
    assert grads[0].abs().max() > 0.1


@pytest.mark.parametrize("name", losses.OBJECTIVES)
def test_gradients_by_finite_differences(name: str) -> None:
    """Every term, every logit: a detached factor would show up as a difference."""
    objective = losses.OBJECTIVES[name]
    few = {"natural": 1, "at": 1, "boosted": 1}
    count = {**few, "st": 3, "rslad": 3, "iad": 4}.get(name, 2)
    # the published regulariser detaches on purpose
    settings = {"reg": "js"} if name == "st" else {}
    torch.manual_seed(0)
    logits = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    y = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda *z: tuple(objective(*z, y, **settings).values()), logits)


def test_guidance_gradient_stops_at_the_teachers() -> None:
    own, teacher = ADV.clone().requires_grad_(), CLEAN.clone().requires_grad_()
    guidance = losses.cat_guidance(own, [teacher])
    own_grad, teacher_grad = torch.autograd.grad(guidance, (own, teacher), allow_unused=True)
    torch.testing.assert_close(own_grad, (Q - P) / 2)
    assert teacher_grad is None


def test_guidance_gradient_of_the_variants() -> None:
    """own_first: into the first argument alone; without detach: into both."""
    own, teacher = ADV.clone().requires_grad_(), CLEAN.clone().requires_grad_()
    guidance = losses.cat_guidance(own, [teacher], own_first=True)
    own_grad, teacher_grad = torch.autograd.grad(guidance, (own, teacher), allow_unused=True)
    reverse_B = LN2 * torch.tensor([4.0, 2.0], dtype=torch.float64) / 8
    torch.testing.assert_close(own_grad, Q * (-LOG_P_OVER_Q - reverse_B[:, None]) / 2)
    assert teacher_grad is None
    own_grad, teacher_grad = torch.autograd.grad(
        losses.mat_guidance(own, [teacher, CLEAN], detach=False), (own, teacher)
    )
    torch.testing.assert_close(own_grad, (Q - P) / 2)
    torch.testing.assert_close(teacher_grad, P * (LOG_P_OVER_Q - KL_B[:, None]) / 4)


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_saturated_logits_have_finite_gradients(name: str) -> None:
    clean = torch.tensor([[0.0, 1e4, -1e4]], dtype=torch.float64, requires_grad=True)
    adv = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.float64, requires_grad=True)
    terms = losses.OBJECTIVES[name](clean, adv, torch.tensor([1]))
    grads = torch.autograd.grad(sum(terms.values()), (clean, adv))
    assert all(torch.isfinite(t).all() for t in (*terms.values(), *grads))
