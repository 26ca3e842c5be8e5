"""BatchNorm of several batches at once against torch's own, batch after batch, in float64."""

import pytest
import torch
from torch import Tensor, nn

from fastcat.kernels.batch_norm import BACKWARD, BATCH_NORM

GROUPS, IMAGES, CHANNELS = 3, 4, 5


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ["alone", "relu", "residual"])
def test_is_batchnorm_batch_after_batch(kind: str) -> None:
    relu, has_residual = kind != "alone", kind == "residual"
    norm = nn.BatchNorm2d(CHANNELS, momentum=0.3).double()
    for seed, tensor in enumerate((norm.weight, norm.bias, norm.running_mean)):
        tensor.data.copy_(drawn(seed, CHANNELS))
    mine = [norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()]
    shape = (GROUPS * IMAGES, CHANNELS, 3, 2)
    x, residual, dy, other_dy = (drawn(10 + n, *shape) for n in range(4))
    x.requires_grad_()
    residual.requires_grad_()
    parts = zip(x.chunk(GROUPS), residual.chunk(GROUPS), strict=True)
    expected = torch.cat([norm(one) + (more if has_residual else 0) for one, more in parts])
    expected = expected.relu() if relu else expected
    weight, bias = norm.weight.detach(), norm.bias.detach()
    y, mean, inverse = BATCH_NORM(
        x.detach(), weight, bias, *mine, residual.detach() if has_residual else None,
        0.3, norm.eps, GROUPS, relu, True,
    )  # fmt: skip
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    theirs = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    for ours, moved in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, moved, rtol=1e-12, atol=1e-12)

    wanted = [x, norm.weight, norm.bias, *([residual] if has_residual else [])]
    right = torch.autograd.grad(((dy + other_dy) * expected).sum(), wanted)
    dx, kept, dweight, dbias = BACKWARD(
        dy, other_dy, x.detach(), y if has_residual else None, weight, bias, mean, inverse, relu,
        has_residual,
    )  # fmt: skip
    found = [dx, dweight, dbias, *([kept] if has_residual else [])]
    for ours, value in zip(found, right, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-10, atol=1e-12)


def test_running_statistics_that_do_not_move_stay() -> None:
    moving = [torch.zeros(CHANNELS), torch.ones(CHANNELS), torch.tensor(3)]
    before = [one.clone() for one in moving]
    x = drawn(0, GROUPS * IMAGES, CHANNELS, 2, 2).float()
    ones = torch.ones(CHANNELS)
    BATCH_NORM(x, ones, ones, *moving, None, 0.1, 1e-5, GROUPS, True, False)
    for ours, old in zip(moving, before, strict=True):
        assert torch.equal(ours, old)
