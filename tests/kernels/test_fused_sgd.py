"""The fused update against torch.optim.SGD, rate and momentum changing from step to step."""

import pytest
import torch

from fastcat.kernels.fused_sgd import fused_sgd


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_steps_as_torchs_sgd_under_a_schedule(nesterov: bool, weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(50, dtype=torch.float64, generator=generator)

    param, ema = draw(), draw()
    theirs, their_ema = torch.nn.Parameter(param.clone()), ema.clone()
    buffer, low = torch.zeros_like(param), torch.zeros_like(param, dtype=torch.float16)
    sgd = torch.optim.SGD(
        [theirs], lr=1.0, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay
    )
    for lr, momentum in ((0.1, 0.9), (0.2, 0.8), (0.05, 0.95)):
        grad = draw()
        sgd.param_groups[0].update(lr=lr, momentum=momentum)
        theirs.grad = grad.clone()
        sgd.step()
        their_ema.lerp_(theirs.detach(), 1 - 0.99)
        fused_sgd(
            param,
            8 * grad,
            buffer,
            torch.tensor(lr, dtype=torch.float64),
            weight_decay,
            torch.tensor(momentum, dtype=torch.float64),
            nesterov,
            grad_scale=torch.tensor(8.0),
            found_inf=torch.tensor(0.0),
            ema=ema,
            ema_shares=torch.tensor([0.99, 0.01], dtype=torch.float64),
            low=low,
        )
        torch.testing.assert_close(param, theirs.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(ema, their_ema, rtol=1e-13, atol=1e-13)
        assert torch.equal(low, param.half())


def test_an_infinite_gradient_changes_nothing() -> None:
    buffers = [torch.full((3,), value) for value in (1.0, 2.0, 3.0, 4.0)]
    param, buffer, ema, low = (value.clone() for value in buffers)
    fused_sgd(
        param,
        torch.tensor([float("inf"), 1.0, float("nan")]),
        buffer,
        torch.tensor(0.1),
        0.01,
        torch.tensor(0.9),
        found_inf=torch.tensor(1.0),
        ema=ema,
        ema_shares=torch.tensor([0.5, 0.5]),
        low=low,
    )
    assert all(map(torch.equal, (param, buffer, ema, low), buffers))
