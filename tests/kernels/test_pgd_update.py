"""PGD's update against exact arithmetic, and what must hold of every step."""

from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcat.kernels.pgd_update import NORMS, pgd_update, project_l1, project_l2

getcontext().prec = 50

# many ties, zeros and boundaries, and numbers that share no digits
entries = st.one_of(st.integers(-4, 4).map(lambda n: n / 4), st.floats(-1, 1, width=32))
vectors = st.lists(entries, min_size=1, max_size=12)
radii = st.one_of(st.integers(1, 12).map(lambda n: n / 4), st.floats(2**-10, 4, width=32))
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True)


def image(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, 1, -1)


def length(delta: Tensor, norm: str) -> Tensor:
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(delta, order, dim=(2, 3, 4))


@PROPERTY
@given(vectors, radii)
def test_l1_projection_is_exact(values: list[float], eps: float) -> None:
    """Among the soft thresholds that some set of the largest entries gives, one has length eps."""
    sizes = sorted((abs(Fraction(value)) for value in values), reverse=True)
    theta = Fraction(0)
    if sum(sizes) > Fraction(eps):
        for count in range(1, len(sizes) + 1):
            theta = (sum(sizes[:count]) - Fraction(eps)) / count
            if sum(max(size - theta, 0) for size in sizes) == Fraction(eps):
                break
        else:
            raise AssertionError("no threshold")
    exact = [
        float(max(abs(Fraction(value)) - theta, 0)) * (1 if value > 0 else -1) for value in values
    ]
    assert (project_l1(image(values), eps) - image(exact)).abs().max() < 1e-14


@PROPERTY
@given(vectors, radii)
def test_l2_projection_is_exact(values: list[float], eps: float) -> None:
    norm = sum(Decimal(value) ** 2 for value in values).sqrt()
    shrink = min(Decimal(1), Decimal(eps) / norm) if norm else Decimal(1)
    exact = [float(Decimal(value) * shrink) for value in values]
    assert (project_l2(image(values), eps) - image(exact)).abs().max() < 1e-14


@pytest.mark.slow
@PROPERTY
@given(
    st.sampled_from(NORMS),
    st.booleans(),
    st.integers(0, 2**31),
    radii,
    st.floats(2**-6, 3, width=32),
)
def test_a_step_stays_in_the_ball_and_the_box(
    norm: str, box_first: bool, seed: int, eps: float, step_size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((2, 3, 4, 3), generator=generator).mul(1.5).sub(0.25).clamp(0, 1)
    x_adv = x.repeat(2, 1, 1, 1, 1)
    for _ in range(3):
        grad = torch.randn(x_adv.shape, generator=generator)
        pgd_update(x_adv, None, x, grad, norm, eps, step_size, 4, box_first)
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
        # 36 pixels, each rounded to float32
        assert (length(x_adv - x, norm) <= eps + 36 * 2**-23).all()


@pytest.mark.parametrize(
    ("box_first", "moves"),
    [
        # (0.6, 0.8) is halved, then clipped
        (False, [0.3, 0.1]),
        # clipped to (0.5, 0.1), then shortened from the root of 0.26
        (True, [0.25 / 0.26**0.5, 0.05 / 0.26**0.5]),
    ],
)
def test_the_box_first_keeps_more_of_the_length(box_first: bool, moves: list[float]) -> None:
    """By hand: one step in a ball of 0.5, where the second pixel has room for 0.1."""
    x_adv = image([0.5, 0.9])
    pgd_update(x_adv, None, image([0.5, 0.9])[0], image([3, 4]), "l2", 0.5, 1.0, 20, box_first)
    assert (x_adv - image([0.5, 0.9]) - image(moves)).abs().max() < 1e-15


@pytest.mark.parametrize("norm", NORMS)
def test_from_inside_the_ball_a_step_has_the_step_size(norm: str) -> None:
    x = torch.full((1, 3, 6, 5), 0.5)
    x_adv = x.repeat(1, 1, 1, 1, 1)
    grad = torch.randn(x_adv.shape, generator=torch.Generator().manual_seed(0))
    pgd_update(x_adv, None, x, grad, norm, 1.0, 0.25)
    assert length(x_adv - x, norm) == pytest.approx(0.25, rel=1e-5)
    assert ((x_adv - x) * grad >= 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_gradient_that_says_nothing_moves_nothing(norm: str, value: float) -> None:
    x = torch.rand((1, 3, 6, 5), generator=torch.Generator().manual_seed(0))
    x_adv = x.repeat(1, 1, 1, 1, 1)
    pgd_update(x_adv, None, x, torch.full_like(x_adv, value), norm, 0.5, 0.25)
    assert torch.equal(x_adv[0], x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("value", "like"), [(float("nan"), 0.0), (-float("inf"), -1e30)])
def test_a_nan_counts_as_zero_and_infinity_as_much(norm: str, value: float, like: float) -> None:
    x = torch.full((1, 3, 6, 5), 0.5)
    grad = torch.randn((1, *x.shape), generator=torch.Generator().manual_seed(0))
    moved = [x.repeat(1, 1, 1, 1, 1) for _ in range(2)]
    for x_adv, entry in zip(moved, (value, like), strict=True):
        grad[..., 2] = entry
        pgd_update(x_adv, None, x, grad, norm, 1.0, 0.25)
    assert torch.equal(*moved)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
def test_the_gradients_scale_is_of_no_account(norm: str, factor: float) -> None:
    """A confident network's gradients are so small that their squares are 0."""
    x = torch.full((1, 3, 6, 5), 0.5)
    grad = torch.randn((1, *x.shape), generator=torch.Generator().manual_seed(0))
    moved = [x.repeat(1, 1, 1, 1, 1) for _ in range(2)]
    pgd_update(moved[0], None, x, grad, norm, 1.0, 0.25)
    pgd_update(moved[1], None, x, grad * factor, norm, 1.0, 0.25)
    assert torch.equal(*moved)


@pytest.mark.parametrize(
    ("x", "grad", "moves"),
    [
        # the two largest, whatever their sign, as there is room for 0.1
        ([0.5, 0.15, 0.85, 0.5], [1, -3, 2, 0.5], [0, -0.1, 0.1, 0]),
        # all ties with the last share the step
        ([0.5, 0.5, 0.5, 0.5], [1, -3, 1, 0.5], [0.2 / 3, -0.2 / 3, 0.2 / 3, 0]),
        # no room for 0.1: the next in line moves
        ([0.5, 0.05, 0.95, 0.5], [1, -3, 2, 0.5], [0.1, 0, 0, 0.1]),
        # fewer than two can move
        ([1.0, 0.0, 0.5, 0.5], [1, -3, 2, 0], [0, 0, 0.2, 0]),
        ([1.0, 0.0, 1.0, 0.5], [1, -3, 2, 0], [0, 0, 0, 0]),
    ],
)
def test_an_l1_step_moves_the_largest_with_room(
    x: list[float], grad: list[float], moves: list[float]
) -> None:
    x_adv = image(x)
    pgd_update(x_adv, None, image(x)[0], image(grad), "l1", 1.0, 0.2, 2)
    assert (x_adv - image(x) - image(moves)).abs().max() < 1e-15


def test_an_unknown_norm_is_refused() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="unknown norm 'L2': expected one of linf, l2, l1"):
        pgd_update(x[None], None, x, x[None], "L2", 1.0, 1.0)
