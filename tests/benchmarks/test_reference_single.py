"""The loops of one network that we are timed beside, FGSM and CAT's PGD with CW: right, by float64.

FGSM's published attack moves BatchNorm's running statistics, so the oracle's are moved likewise.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastcat.benchmarks.reference.fast import FastLoop, NFgsmLoop
from fastcat.benchmarks.reference.free import FreeLoop
from fastcat.benchmarks.reference.pgd_cw import PgdCwLoop
from fastcat.benchmarks.reference.plain import PlainLoop
from tests.harness.networks import images, tiny_net
from tests.harness.watched import (
    ALPHA,
    ATTACK,
    SGD,
    TOLERANCE,
    assert_close,
    published_statistics,
    start_noise,
    watched,
)
from tests.reference import single_network as reference
from tests.reference.attack import attack_copy
from tests.reference.losses import cross_entropy
from tests.reference.step import sgd_update

pytestmark = pytest.mark.usefixtures("one_thread")

EPS, STEP, STEPS = ATTACK["eps"], ATTACK["step_size"], ATTACK["steps"]


def fast(net: nn.Module, x: Tensor, y: Tensor, noise: Tensor, n: bool) -> tuple[Tensor, Tensor]:
    """The view and the loss; of net, which is left in train mode, the statistics are moved."""
    attack, reach = (reference.n_fgsm, 2) if n else (reference.fgsm_rs, 1)
    view = attack(attack_copy(net, "train"), x, y, noise, EPS)
    published_statistics(net, net, [(x + reach * EPS * noise).clamp(0, 1)])
    return view, cross_entropy(net.train()(view), y).mean()


@pytest.mark.parametrize(
    ("loop_type", "method"), [(FastLoop, "fast"), (NFgsmLoop, "fast"), (PgdCwLoop, "pgd-cw")]
)
def test_three_steps_of_one_network_follow_the_oracle(
    loop_type: type[PlainLoop], method: str
) -> None:
    net = tiny_net(0).double()
    loop = watched(loop_type)([copy.deepcopy(net)], [method], alpha=ALPHA, **ATTACK, **SGD)
    params = dict(net.named_parameters())
    buffers: dict[str, Tensor] = {}
    for step in range(3):
        x, y = images(100 + step, 11)
        x = x.double()
        (noise,) = start_noise([method], x, step)
        loop.noise = [noise]
        log = loop.step(x, y)
        if method == "fast":
            views = {}
            views["adv0"], loss = fast(net, x, y, noise, loop_type is NFgsmLoop)
        else:
            views = {
                f"{name}0": reference.pgd(net, x, y, start, EPS, STEP, STEPS, climbed)
                for name, start, climbed in (("adv", noise, "ce"), ("cw", noise.flip(0), "margin"))
            }
            net.train()
            z = [net(view) for view in views.values()]
            loss = torch.stack(list(reference.pgd_cw_loss(*z, y, ALPHA).values())).sum()
        assert loop.views.keys() == {"clean", *views}
        for name, view in views.items():
            assert_close(loop.views[name], view, TOLERANCE, f"view {name}")
        assert log == {"loss0": pytest.approx(loss.item(), rel=TOLERANCE)}
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        buffers = sgd_update(params, grads, buffers, nesterov=False, **SGD)
        state = loop.models[0].state_dict()
        for name, value in net.state_dict().items():
            assert_close(state[name], value, TOLERANCE, f"{name} at step {step}")


def test_three_steps_of_free_follow_the_oracle() -> None:
    net = tiny_net(0).double()
    loop = FreeLoop([copy.deepcopy(net)], ["free"], **ATTACK, **SGD)
    params = dict(net.named_parameters())
    buffers: dict[str, Tensor] = {}
    delta = torch.zeros(11, 3, 8, 8, dtype=torch.float64)
    for step, size in enumerate((11, 11, 7)):
        x, y = images(100 + step, size)
        view = (x.double() + delta[:size]).requires_grad_()
        log = loop.step(x.double(), y)
        loss = cross_entropy(net(view), y).mean()
        assert log == {"loss0": pytest.approx(loss.item(), rel=TOLERANCE)}
        grad, *grads = torch.autograd.grad(loss, [view, *params.values()])
        buffers = sgd_update(
            params, dict(zip(params, grads, strict=True)), buffers, nesterov=False, **SGD
        )
        delta = reference.free_delta(delta, grad, x.double(), EPS)
        assert loop.delta is not None
        assert_close(loop.delta, delta, TOLERANCE, f"delta at step {step}")
        state = loop.models[0].state_dict()
        for name, value in net.state_dict().items():
            assert_close(state[name], value, TOLERANCE, f"{name} at step {step}")
