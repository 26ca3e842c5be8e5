"""Winograd's convolutions against torch's in float64, and what they may and may not take."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.kernels import _native, winograd
from fastcat.kernels.winograd import Winograd, conv3x3_reference

# images, input and output channels, height, width: whole and ragged tiles, few and many of them,
# and shares of output channels that threads do not divide evenly
SHAPES = [
    pytest.param((2, 32, 64, 8, 8), id="whole-tiles"),
    pytest.param((3, 64, 32, 9, 6), id="ragged-tiles"),
    pytest.param((9, 32, 32, 3, 5), id="smaller-than-a-tile"),
    pytest.param((1, 96, 160, 11, 12), id="odd-panels"),
    pytest.param((40, 32, 32, 8, 8), id="many-tiles"),
    pytest.param((50, 352, 352, 4, 4), id="large-weights"),
]
# besides images and weight
EXTRAS = ("bias", "residual", "relu")
EXTRA = [pytest.param(tuple(EXTRAS[:n]), id="+".join(EXTRAS[:n]) or "alone") for n in range(4)]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def arguments(
    shape: Sequence[int], extras: Sequence[str], dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Of conv3x3_reference; numbers that `dtype` holds exactly."""
    images, channels, outputs, height, width = shape
    drawn = {
        "x": normal(images, channels, height, width, seed=0),
        "weight": normal(outputs, channels, 3, 3, seed=1) / (9 * channels) ** 0.5,
        "bias": normal(outputs, seed=2) if "bias" in extras else None,
        "residual": normal(images, outputs, height, width, seed=3)
        if "residual" in extras
        else None,
    }
    tensors = {k: None if t is None else t.to(dtype) for k, t in drawn.items()}
    for name in ("x", "residual"):
        if tensors[name] is not None:
            tensors[name] = tensors[name].to(memory_format=torch.channels_last)
    return {**tensors, "relu": "relu" in extras}


def learning(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Copies that take gradients."""
    return {
        name: value.detach().to(dtype).requires_grad_() if isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def outcome(function: Any, given: dict[str, Any], grad: Tensor) -> dict[str, Tensor]:
    """The value, and the gradients of all tensors."""
    leaves = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    y = function(*given.values())
    grads = torch.autograd.grad(y, list(leaves.values()), grad.to(y.dtype))
    return {"y": y.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_as_good_as_torch(
    ours: dict[str, Tensor], plain: dict[str, Tensor], gold: dict[str, Tensor]
) -> None:
    """As in tests/harness/kernel_comparison.py, but four times what is granted in float32 there.

    It rounds more: in the root mean square 2.2 times as much in ResNet-18's layers, and 5 times
    where torch sums few pixels in parts; the largest error seen here is 2e-6 of the largest value.
    In bfloat16 the result alone is rounded, which must be done as well as torch does.
    """
    for name, value in gold.items():
        assert ours[name].dtype == plain[name].dtype, name
        plain_error = (plain[name].double() - value).abs().max().item()
        error = (ours[name].double() - value).abs().max().item()
        times = 8 if plain[name].dtype == torch.float32 else 1.5
        bound = times * plain_error + 32 * 2**-24 * max(1.0, value.abs().max().item())
        # NaN compares as false
        assert error <= bound, f"{name}: off by {error:.3g}, plain torch by {plain_error:.3g}"


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Any:
    """What torch allocates starts as NaN, so that an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize("extras", EXTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch_in_value_and_all_gradients(
    shape: Sequence[int], extras: Sequence[str], dtype: torch.dtype
) -> None:
    given = arguments(shape, extras, dtype)
    grad = normal(shape[0], shape[2], *shape[3:], seed=4).to(dtype)
    gold = outcome(conv3x3_reference, learning(given, torch.float64), grad)
    if "relu" in extras:
        # an output within rounding of zero may be on either side of the ReLU
        grad = grad * (gold["y"] > 0.05)
        gold = outcome(conv3x3_reference, learning(given, torch.float64), grad)
    plain = outcome(conv3x3_reference, learning(given, dtype), grad)
    with Winograd() as fast:
        ours = outcome(fast.convolve, learning(given, dtype), grad)
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)
    assert_as_good_as_torch(ours, plain, gold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closed_relu_lets_no_gradient_through(dtype: torch.dtype) -> None:
    """Of weights that are not trained, where the kernel looks for itself what the ReLU closed."""
    given = arguments((3, 64, 32, 9, 6), EXTRAS, dtype)
    grad = normal(3, 32, 9, 6, seed=4).to(dtype)
    gold = outcome(conv3x3_reference, learning(given, torch.float64), grad)
    grad = grad * (gold["y"] > 0.05) + 1e3 * (gold["y"] == 0)
    x, residual = (given[name].clone().requires_grad_() for name in ("x", "residual"))
    gold, plain = (
        outcome(conv3x3_reference, learning(given, kind), grad) for kind in (torch.float64, dtype)
    )
    with Winograd(trained=False) as fast:
        y = fast.convolve(x, given["weight"], given["bias"], residual, relu=True)
        dx, d_residual = torch.autograd.grad(y, (x, residual), grad)
        alone = fast.convolve(x, given["weight"], given["bias"], given["residual"], relu=True)
        (dx_alone,) = torch.autograd.grad(alone, x, grad)
    ours = {"x": dx, "residual": d_residual}
    assert_as_good_as_torch(ours, plain, {name: gold[name] for name in ours})
    assert torch.equal(dx_alone, dx)


def conv(channels: int = 32, outputs: int = 32, **settings: Any) -> nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"padding": 1, **settings}
        return nn.Conv2d(channels, outputs, 3, **settings)


def is_taken(y: Tensor) -> bool:
    assert y.grad_fn is not None
    return y.grad_fn.name() == "_ConvolutionBackward"


def test_layers_run_so_within_the_context_alone() -> None:
    net, x = conv(), normal(2, 32, 8, 8, seed=0)
    before = net(x)
    with Winograd():
        assert winograd.current() is not None
        inside = net(x)
    assert winograd.current() is None
    assert is_taken(inside)
    assert torch.equal(net(x), before)
    assert not is_taken(net(x))
    assert not torch.equal(inside, before)
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("one", [1, (1, 1), [1, 1]])
def test_strides_are_numbers_tuples_or_lists(one: Any) -> None:
    """Catches a network of a user's own that stops at a plain number."""
    net, x = conv(), normal(2, 32, 8, 8, seed=0)
    with Winograd():
        assert is_taken(F.conv2d(x, net.weight, net.bias, one, one, one, 1))
        for two in ((2, one, one, 1), (one, 2, one, 1), (one, one, 2, 1)):
            assert not is_taken(F.conv2d(x, net.weight, net.bias, *two))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        pytest.param(conv(stride=2), (8, 32, 8, 8), id="stride"),
        pytest.param(conv(padding=0), (8, 32, 8, 8), id="no-padding"),
        pytest.param(conv(padding="same"), (8, 32, 8, 8), id="padding-by-name"),
        pytest.param(conv(dilation=2, padding=2), (8, 32, 8, 8), id="dilation"),
        pytest.param(conv(groups=2), (8, 32, 8, 8), id="groups"),
        pytest.param(nn.Conv2d(32, 32, 5, padding=1), (8, 32, 8, 8), id="5x5"),
        pytest.param(conv(3), (8, 3, 8, 8), id="few-channels"),
        pytest.param(conv(32, 48 + 7), (8, 32, 8, 8), id="odd-channels"),
        pytest.param(conv(), (1, 32, 8, 8), id="few-tiles"),
        pytest.param(conv(), (99, 32, 2, 2), id="hardly-filled-tiles"),
        pytest.param(conv().double(), (8, 32, 8, 8), id="float64"),
        pytest.param(conv(), (32, 8, 8), id="no-batch"),
        pytest.param(conv(padding_mode="reflect"), (8, 32, 8, 8), id="reflected"),
    ],
)
def test_what_is_not_taken_stays_as_it_is_to_the_bit(
    net: nn.Conv2d, shape: tuple[int, ...]
) -> None:
    x = normal(*shape, seed=0).to(net.weight.dtype)
    before = net(x)
    with Winograd():
        inside = net(x)
    assert not is_taken(inside)
    assert torch.equal(inside, before)


def test_autocast_casts_images_and_autograd_casts_back() -> None:
    net, x = conv(), normal(4, 32, 8, 8, seed=0).requires_grad_()
    grads = []
    for fast in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            if fast:
                with Winograd():
                    y = net(x)
                    assert is_taken(y)
                    grads.append(torch.autograd.grad(y.float().square().sum(), (x, net.weight)))
            else:
                y = net(x)
                grads.append(torch.autograd.grad(y.float().square().sum(), (x, net.weight)))
        assert y.dtype == torch.bfloat16
    for plain, ours in zip(*grads, strict=True):
        assert ours.dtype == plain.dtype == torch.float32
        assert (ours - plain).norm() <= 0.02 * plain.norm()


def test_weights_are_transformed_once_and_anew_in_the_next_context() -> None:
    """Catches a transform for each call, and weights as they were before an update."""
    net, x = conv(), normal(4, 32, 8, 8, seed=0).requires_grad_()
    calls = []
    with pytest.MonkeyPatch.context() as patched:
        real = winograd.library().winograd_transform
        counted = lambda *args: (calls.append(args), real(*args))  # noqa: E731
        patched.setattr(winograd.library(), "winograd_transform", counted, raising=False)
        with Winograd():
            for _ in range(3):
                net(x).sum().backward()
    assert len(calls) == 2  # the second for the gradient
    with torch.no_grad():
        # as an optimizer over a flat buffer does: the parameter counts no new version
        net.weight.data.mul_(-1)
        net.bias.zero_()
        with Winograd():
            after = net(x)
    torch.testing.assert_close(after, F.conv2d(x, net.weight, None, padding=1), rtol=0, atol=1e-5)


def test_a_backward_after_the_context_is_right() -> None:
    """Catches one that reads what has become the memory of another context."""
    net, other = conv(), conv()
    with torch.no_grad():
        other.weight.mul_(-3)
    x = normal(4, 32, 8, 8, seed=0).requires_grad_()
    (expected,) = torch.autograd.grad(net(x).sum(), x)
    with Winograd():
        late = net(x)
        torch.autograd.grad(net(x).sum(), x)
    with Winograd():
        torch.autograd.grad(other(x).sum(), x)
    (dx,) = torch.autograd.grad(late.sum(), x)
    torch.testing.assert_close(dx, expected, rtol=0, atol=1e-5)


def test_memory_of_transformed_weights_is_used_again() -> None:
    net, x = conv(64, 32), normal(4, 64, 8, 8, seed=0)
    size = 4 * net.weight.numel()
    winograd._spare.clear()
    for _ in range(3):
        with Winograd(), torch.no_grad():
            net(x)
            assert not winograd._spare.get(size)
        assert len(winograd._spare[size]) == 1


def test_untrained_weights_get_no_gradients_but_images_do() -> None:
    net, x = conv(), normal(4, 32, 8, 8, seed=0).requires_grad_()
    with Winograd(trained=False):
        net(x).sum().backward()
    assert net.weight.grad is None
    assert net.bias is not None
    assert net.bias.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_changes_no_bit(shape: Sequence[int]) -> None:
    """A run that goes on elsewhere ends with the same bits."""
    given = arguments(shape, EXTRAS)
    grad = normal(shape[0], shape[2], *shape[3:], seed=4)
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with Winograd() as fast:
                ends.append(outcome(fast.convolve, learning(given, torch.float32), grad))
    finally:
        torch.set_num_threads(before)
    for name, expected in ends[0].items():
        if name != "bias":  # a sum of torch's
            assert torch.equal(ends[1][name], expected), name
            assert torch.equal(ends[2][name], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(value: float, dtype: torch.dtype) -> None:
    """A diverging run is recognised by it. Catches a rounding or a ReLU that hides it."""
    given = arguments((2, 32, 32, 8, 8), EXTRAS, dtype)
    given["x"][1, 5, 6, 2] = value
    with Winograd() as fast:
        y = fast.convolve(*given.values())
    assert not y[1, :, 5:, 1:4].isfinite().any()
    assert y[0].isfinite().all()


def test_a_nan_of_any_bits_stays_one() -> None:
    """Catches one whose bits run over when they are rounded, to minus zero."""
    given = arguments((2, 32, 32, 8, 8), ("bias",), torch.bfloat16)
    given["bias"] = torch.full((32,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    with Winograd() as fast:
        assert fast.convolve(*given.values()).isnan().all()


def test_large_numbers_do_not_overflow() -> None:
    """1e4, as of hard inputs elsewhere; float32 has room for the transforms."""
    given = arguments((2, 32, 32, 8, 8), ())
    given["x"] *= 1e4
    with Winograd() as fast:
        y = fast.convolve(*given.values())
    gold = conv3x3_reference(*learning(given, torch.float64).values())
    torch.testing.assert_close(y.double(), gold, rtol=0, atol=1e-5 * gold.abs().max().item())


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these flags are of x86_64")
@pytest.mark.parametrize("flags", [["-mno-avx512f"], ["-mno-avx512f", "-mno-avx2", "-mno-fma"]])
def test_cpus_with_shorter_vectors_compute_the_same(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a loop that holds for one length of vectors alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = _native.load("winograd", flags)
    assert built.winograd_panel() < 32
    monkeypatch.setattr(winograd, "library", lambda: built)
    for shape in ((3, 32, 48, 9, 6), (40, 32, 32, 8, 8)):
        for dtype in (torch.float32, torch.bfloat16):
            given = arguments(shape, ("bias", "residual"), dtype)
            grad = normal(shape[0], shape[2], *shape[3:], seed=4).to(dtype)
            gold, plain = (
                outcome(conv3x3_reference, learning(given, kind), grad)
                for kind in (torch.float64, dtype)
            )
            with Winograd() as fast:
                assert_as_good_as_torch(
                    outcome(fast.convolve, learning(given, dtype), grad), plain, gold
                )
