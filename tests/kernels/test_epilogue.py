"""The end of a residual block against torch's own operations, and its gradient."""

import torch
from torch import Tensor

from fastcat.kernels.epilogue import epilogue, masked_sum


def values(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def test_is_the_end_of_a_residual_block() -> None:
    conv, residual = values((2, 3, 4, 5), 0), values((2, 3, 4, 5), 1)
    bias, residual_bias = values((3,), 2), values((3,), 3)
    plain = conv + bias.view(1, 3, 1, 1)
    for given, expected in (
        ((), plain),
        ((residual,), plain + residual),
        ((residual, residual_bias), plain + (residual + residual_bias.view(1, 3, 1, 1))),
    ):
        out = conv.clone()
        assert epilogue(out, bias, *given) is None
        torch.testing.assert_close(out, expected.relu(), rtol=1e-13, atol=1e-13)


def test_the_masked_sum_is_the_gradient_of_a_relu_that_two_read() -> None:
    x = values((2, 3, 4, 5), 0).requires_grad_()
    first, second = values((2, 3, 4, 5), 1), values((2, 3, 4, 5), 2)
    y = x.relu()
    for weights, given in ((first + second, (first, second)), (first, (first,))):
        (expected,) = torch.autograd.grad((weights * y).sum(), x, retain_graph=True)
        torch.testing.assert_close(masked_sum(y.detach(), *given), expected, rtol=0, atol=1e-15)
