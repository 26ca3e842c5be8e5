"""The vocabulary of losses against the oracle: temperature, smoothing, and who is constant."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastcat.batch import by_share
from fastcat.errors import InputError
from fastcat.kernels import _gradients, losses
from fastcat.kernels.multi_peer_loss import multi_peer_loss
from fastcat.terms import Sum, Term, ce, kl, term_rows
from tests.reference import losses as reference

B, C = 9, 6
CELLS = ("teacher", "student")
SIDES = [None, "teacher", "student"]


def table(size: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (size * torch.randn(2, B, C, generator=generator, dtype=torch.float64)).to(dtype)


def labels(seed: int = 1) -> Tensor:
    return torch.randint(C, (B,), generator=torch.Generator().manual_seed(seed))


def by_kernel(total: Sum, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms and its gradient, as the op computes both at once."""
    weights = torch.tensor([term.weight for term in total.terms], dtype=z.dtype)
    rows = term_rows(total.terms, CELLS)
    values, dz = multi_peer_loss(z, y, rows, (weights / len(y))[:, None].expand(-1, len(y)))
    return weights @ values.mean(1), dz


def assert_is(total: Sum, expected: Callable[..., Tensor], z: Tensor, y: Tensor) -> None:
    """By the op's gradient and by autograd through the Sum: both are those of `expected`."""
    leaf = z.clone().requires_grad_()
    wanted = expected(leaf[0], leaf[1])
    (wanted_dz,) = torch.autograd.grad(wanted, leaf)
    value, dz = by_kernel(total, z, y)
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dz, wanted_dz, rtol=1e-11, atol=1e-14)
    named = total(dict(zip(CELLS, leaf, strict=True)), y)
    torch.testing.assert_close(torch.autograd.grad(sum(named.values()), leaf)[0], wanted_dz)


@pytest.mark.parametrize("constant", SIDES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
def test_kl_at_a_temperature(temperature: float, constant: str | None) -> None:
    """Catches T^2 in the term, a gradient without 1 / T, and gradient into the constant side."""

    def expected(teacher: Tensor, student: Tensor) -> Tensor:
        teacher = teacher.detach() if constant == "teacher" else teacher
        student = student.detach() if constant == "student" else student
        return reference.kl(teacher / temperature, student / temperature).sum() / B

    total = kl(*CELLS, constant=constant, temperature=temperature)
    assert_is(total, expected, table(), labels())
    _, dz = by_kernel(total, table(), labels())
    for name, grad in zip(CELLS, dz, strict=True):
        assert grad.any() == (name != constant), name


def test_gradient_at_a_temperature_by_hand() -> None:
    """d/dz = (q - p) / T, p and q at T; times T^2 it keeps its size as T grows (Hinton et al.)."""
    z = table()
    _, dz = by_kernel(kl(*CELLS, temperature=4.0), z, labels())
    p, q = (z / 4).softmax(2)
    torch.testing.assert_close(dz[1], (q - p) / 4 / B)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_temperature_1_changes_no_bit(dtype: torch.dtype) -> None:
    z, y = table(dtype=dtype), labels()
    wide = z if dtype == torch.float64 else z.float()
    values, dz = multi_peer_loss(z, y, term_rows(kl(*CELLS).terms, CELLS), wide.new_ones(1, B))
    assert torch.equal(values[0], losses.kl(*wide))
    assert torch.equal(dz, torch.stack(_gradients.kl(*wide)).to(dtype))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy(smoothing: float) -> None:
    """One value by name. Catches the label's own share of the uniform part left out."""
    y = labels()
    total = ce("teacher", smoothing) + 3.0 * ce("student", smoothing)

    def expected(one: Tensor, other: Tensor) -> Tensor:
        both = reference.smoothed(one, y, smoothing) + 3.0 * reference.smoothed(other, y, smoothing)
        return both.sum() / B

    assert_is(total, expected, table(), y)
    assert list(total(dict(zip(CELLS, table(), strict=True)), y)) == ["ce"]
    assert len(ce("student", smoothing).terms) == (2 if smoothing else 1)


def test_smoothing_is_torchs() -> None:
    y, z = labels(), table()[0]
    expected = torch.nn.functional.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(ce("z", 0.1)({"z": z}, y)["ce"], expected)


def test_uniform_part_of_mixed_images_is_counted_once() -> None:
    """share * loss(y) + (1 - share) * loss(y_mixed) of a loss without labels is the loss."""
    z, y, y_mixed = table(), labels(), labels(2)
    share = torch.linspace(0, 1, B)
    rows = term_rows([Term("ce", "uniform_ce", "student")], CELLS)
    own, other = (multi_peer_loss(z, by, rows, z.new_ones(1, B)) for by in (y, y_mixed))
    assert torch.equal(by_share(own[0], other[0], share), own[0])
    assert torch.equal(by_share(own[1], other[1], share[:, None]), own[1])
    assert not own[1][0].any()


@pytest.mark.parametrize("temperature", [0.001, 4.0, 1000.0])
def test_saturated_logits_are_finite_in_float32(temperature: float) -> None:
    """Also where the temperature makes them 1e7. Catches a probability that underflows in a log."""
    rows = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 1e4], [-1e4, -1e4, -1e4]])
    z, y = torch.stack([rows, rows.roll(1, 0)]), torch.tensor([1, 1, 0, 2])
    total = ce("student", 0.1) + kl(*CELLS, temperature=temperature)
    value, dz = by_kernel(total, z, y)
    exact, exact_dz = by_kernel(total, z.double(), y)
    assert dz.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(dz.double(), exact_dz, rtol=1e-4, atol=1e-5 * exact_dz.abs().max())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda: kl(*CELLS, temperature=0.0), "temperature is 0, expected", id="cold"),
        pytest.param(lambda: kl(*CELLS, temperature=float("inf")), "temperature is inf", id="hot"),
        pytest.param(lambda: kl(*CELLS, temperature=float("nan")), "temperature is nan", id="nan"),
        pytest.param(lambda: ce("z", 1.0), "smoothing is 1, expected a share", id="all-smooth"),
        pytest.param(lambda: ce("z", -0.1), "smoothing is -0.1, expected", id="sharpened"),
    ],
)
def test_what_means_nothing_is_refused(make: Callable[[], Sum], text: str) -> None:
    with pytest.raises(InputError, match=text):
        make()
