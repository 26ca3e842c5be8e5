"""The affine map before a ReLU against BatchNorm, and its gradient."""

import torch
from torch import nn

from fastcat.kernels.affine_relu import affine_relu


def test_is_batchnorm_in_evaluation_mode_and_a_relu() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(5).double().eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor.data.copy_(0.1 + torch.rand(5, generator=generator))
    x = torch.randn((2, 5, 3, 4), dtype=torch.float64, generator=generator, requires_grad=True)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shift = (norm.bias - norm.running_mean * scale).detach()
    y, expected = affine_relu(x, scale, shift), norm(x).relu()
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    (dx,) = torch.autograd.grad((weight * y).sum(), x)
    (expected_dx,) = torch.autograd.grad((weight * expected).sum(), x)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-13, atol=1e-13)


def test_the_gradient_is_that_of_the_value_and_reaches_x_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 3, 2, 2), dtype=torch.float64, generator=generator, requires_grad=True)
    scale, shift = torch.randn((2, 3), dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: affine_relu(x, scale, shift), x)
    scale.requires_grad_()
    # an expanded gradient, as of a sum
    affine_relu(x, scale, shift).sum().backward()
    assert scale.grad is None
    assert x.grad is not None
    assert x.grad.stride() == x.stride()
