"""SGD and averages of weights against their formulas, and against torch."""

import contextlib
import copy
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.schedules import make_schedule
from fastcat.step.sgd import FlatSGD
from tests.harness.networks import CLASSES, images, tiny_net
from tests.reference.step import sgd_update

SETTINGS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.05, "nesterov": False}


def descend(net: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A step on images and labels of its own."""
    x, y = images(step, 6)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x.to(next(net.parameters()).dtype)), y).backward()
    if isinstance(optimizer, FlatSGD):
        optimizer.gather()
    optimizer.step()


def assert_equal_weights(net: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    others = dict(other.named_parameters())
    for name, p in net.named_parameters():
        assert p.shape == others[name].shape
        assert p.stride() == others[name].stride()
        error = (p - others[name]).abs().max().item()
        assert error <= tolerance * others[name].abs().max().item(), f"{name} is off by {error:.3g}"


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
def test_sgd_against_its_formula(nesterov: bool) -> None:
    """g = grad + wd w, buf = m buf + g, w -= lr (g + m buf) with nesterov, else w -= lr buf.

    All parameters take part, BatchNorm's and biases too, while the rate changes from step to step.
    """
    net = tiny_net(0).double()
    settings = {**SETTINGS, "nesterov": nesterov}
    optimizer = FlatSGD(net, lr=123.0, **settings)
    assert list(map(id, optimizer.parameters)) == list(map(id, net.parameters()))

    twin = copy.deepcopy(net)
    params, buffers = dict(twin.named_parameters()), {}
    generator = torch.Generator().manual_seed(0)
    for lr in (0.1, 0.1, 0.02):
        optimizer.set_lr(lr)
        grads: dict[str, Tensor] = {}
        for name, p in net.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            grads[name] = p.grad.clone()
        optimizer.gather()
        optimizer.step()
        buffers = sgd_update(params, grads, buffers, lr=lr, **settings)
        for name, p in net.named_parameters():
            torch.testing.assert_close(p, params[name], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SETTINGS, id="heavy-ball"),
        pytest.param({**SETTINGS, "nesterov": True}, id="nesterov"),
        pytest.param({**SETTINGS, "weight_decay": 0.0}, id="no-decay"),
        pytest.param({**SETTINGS, "momentum": 0.0}, id="no-momentum"),
    ],
)
def test_five_steps_equal_torch(settings: dict[str, Any], layout: torch.memory_format) -> None:
    """Catches gradients gathered in another layout than the weights', and a stale rate."""
    ours, theirs = (tiny_net(0).double().to(memory_format=layout) for _ in range(2))
    optimizer = FlatSGD(ours, lr=0.1, **settings)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, **settings)
    for step in range(5):
        lr = 0.1 / (1 + step)
        optimizer.set_lr(lr)
        expected.param_groups[0]["lr"] = lr
        descend(ours, optimizer, step)
        descend(theirs, expected, step)
    assert_equal_weights(ours, theirs, 1e-12)
    momentum = optimizer.views(optimizer.momentum_buffer)
    for p, q, buffer in zip(ours.parameters(), theirs.parameters(), momentum, strict=True):
        assert buffer.stride() == p.stride()
        if settings["momentum"]:
            torch.testing.assert_close(
                buffer, expected.state[q]["momentum_buffer"], rtol=1e-12, atol=1e-14
            )


@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy-ball", "nesterov"])
def test_batch_norm_may_be_spared_weight_decay(nesterov: bool) -> None:
    """As torch does it in two groups. Catches a linear layer's bias that is spared with it."""
    settings = {**SETTINGS, "nesterov": nesterov}
    ours, theirs = (tiny_net(0).double() for _ in range(2))
    optimizer = FlatSGD(ours, lr=0.1, ema=0.5, norm_decay=False, **settings)
    norms = [p for m in theirs.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    others = [p for p in theirs.parameters() if all(p is not norm for norm in norms)]
    assert len(norms) >= 4
    assert any(p.dim() == 1 for p in others)
    groups = [{"params": others}, {"params": norms, "weight_decay": 0.0}]
    expected = torch.optim.SGD(groups, lr=0.1, **settings)
    for step in range(4):
        descend(ours, optimizer, step)
        descend(theirs, expected, step)
    assert_equal_weights(ours, theirs, 1e-12)


class HalfUsed(nn.Module):
    """The second of three layers takes part in every other forward; one weight is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, wide) for wide in (3, 3, CLASSES))
        self.layers[2].bias.requires_grad_(False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.layers[0](x.mean((2, 3)))
        return self.layers[2](self.layers[1](x) if self.calls % 2 else x)


def test_parameters_without_gradient_stay_with_their_momentum() -> None:
    """As in torch: no decay and no momentum moves what had no gradient this time.

    Catches weight decay of a layer that is not used, and the gradient of a step before.
    """
    torch.manual_seed(0)
    ours = HalfUsed().double()
    theirs = copy.deepcopy(ours)
    optimizer = FlatSGD(ours, lr=0.1, ema=0.9, **SETTINGS)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, **SETTINGS)
    for step in range(5):
        descend(ours, optimizer, step)
        descend(theirs, expected, step)
        assert_equal_weights(ours, theirs, 1e-12)
    assert torch.equal(ours.layers[2].bias, theirs.layers[2].bias)
    assert len(optimizer.parameters) == 5


def test_weights_are_aligned_views_of_one_buffer() -> None:
    """Catches a parameter that is a copy, two that overlap, one that convolutions read slowly."""
    net = tiny_net(0).to(memory_format=torch.channels_last)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = FlatSGD(net, lr=0.1, ema=0.9, **SETTINGS)
    seen = torch.zeros_like(optimizer.flat)
    for p, old, mark in zip(net.parameters(), before, optimizer.views(seen), strict=True):
        assert torch.equal(p, old)
        assert p.stride() == old.stride()
        assert p.is_leaf
        offset = p.data_ptr() - optimizer.flat.data_ptr()
        assert offset % 256 == 0
        assert 0 <= offset < 4 * len(optimizer.flat)
        assert not mark.any(), "two parameters share a place"
        mark.fill_(1)
    assert seen.sum() == sum(p.numel() for p in net.parameters())
    # what lies between them never moves
    descend(net, optimizer, 0)
    for tensor in (optimizer.flat, *optimizer.tensors().values()):
        assert not tensor[seen == 0].any()


def test_the_state_of_one_optimizer_continues_in_another() -> None:
    """Catches a momentum or an average that a resumed run begins anew."""
    nets = [tiny_net(0) for _ in range(2)]
    first, second = (FlatSGD(net, lr=0.1, ema=0.9, **SETTINGS) for net in nets)
    for step in range(3):
        descend(nets[0], first, step)
    state = copy.deepcopy(first.state_dict())
    descend(nets[0], first, 3)
    # loaded in place: the weights stay views, and the state that was loaded is not written to
    nets[1].load_state_dict(
        {k: v for k, v in nets[0].state_dict().items() if "running" in k}, False
    )
    for step in range(3):
        descend(nets[1], second, step)
    second.momentum_buffer.fill_(7)
    second.ema.fill_(7)
    second.load_state_dict(state)
    descend(nets[1], second, 3)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert not torch.equal(state[name], tensor)
    assert_equal_weights(*nets)


@pytest.mark.parametrize("bad", [inf, -inf, float("nan")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    """float16's loss scale is halved, the step is left out: weights, momentum, average stay.

    Catches a scaler that looks at no gradient, or at those of the step before.
    """
    net = tiny_net(0)
    optimizer = FlatSGD(net, lr=0.1, ema=0.9, **SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    twin = copy.deepcopy(net)
    expected = torch.optim.SGD(twin.parameters(), lr=0.1, **SETTINGS)
    kept: list[Tensor] = []
    for step in range(3):
        x, y = images(step, 6)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        if step == 1:
            net.conv2.weight.grad[0, 0, 0, 0] = bad
            kept = [t.clone() for t in (optimizer.flat, *optimizer.tensors().values())]
        optimizer.gather()
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            now = [optimizer.flat, *optimizer.tensors().values()]
            assert all(map(torch.equal, now, kept))
            assert scaler.get_scale() == 32.0
            twin(x)  # its BatchNorm sees the images all the same
        else:
            descend(twin, expected, step)
    assert_equal_weights(net, twin, 1e-5)


def test_a_gradient_of_a_step_before_holds_up_no_other() -> None:
    """Infinite in a layer that takes no part in the next step, which is taken all the same.

    Catches a scaler that still sees it there.
    """
    torch.manual_seed(0)
    net = HalfUsed()
    optimizer = FlatSGD(net, lr=0.1, **SETTINGS)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    moved = []
    for step in range(2):
        before = optimizer.flat.clone()
        x, y = images(step, 6)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        if step == 0:
            net.layers[1].weight.grad[0, 0] = inf
        optimizer.gather()
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(optimizer.flat, before))
    assert net.layers[1].weight.grad is None
    assert moved == [False, True]
    assert scaler.get_scale() == 32.0


def test_the_average_by_hand() -> None:
    """ema <- d ema + (1 - d) w after each step, from the first weights on."""
    net = tiny_net(0).double()
    optimizer = FlatSGD(net, lr=0.1, ema=0.75, **SETTINGS)
    expected = [p.detach().clone() for p in net.parameters()]
    for step in range(4):
        descend(net, optimizer, step)
        expected = [
            0.75 * e + 0.25 * p.detach() for e, p in zip(expected, net.parameters(), strict=True)
        ]
    with optimizer.averaged():
        for p, e in zip(net.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_averaging_puts_the_weights_back(ema: float | None) -> None:
    """Bit by bit, also after an exception: else a failed evaluation is trained on."""
    net = tiny_net(0)
    optimizer = FlatSGD(net, lr=0.1, ema=ema, **SETTINGS)
    descend(net, optimizer, 0)
    before, average = optimizer.flat.clone(), None if ema is None else optimizer.ema.clone()
    places = [p.data_ptr() for p in net.parameters()]
    for error in (None, RuntimeError, KeyboardInterrupt):
        with contextlib.suppress(RuntimeError, KeyboardInterrupt), optimizer.averaged():
            assert torch.equal(optimizer.flat, before) == (ema is None)
            if error is not None:
                raise error
        assert torch.equal(optimizer.flat, before)
        assert average is None or torch.equal(optimizer.ema, average)
    assert places == [p.data_ptr() for p in net.parameters()]


def test_rate_0_moves_nothing() -> None:
    """A schedule that begins at 0 must not train on its first step."""
    net = tiny_net(0)
    before = copy.deepcopy(dict(net.named_parameters()))
    optimizer = FlatSGD(net, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    optimizer.set_lr(0.1 * make_schedule("cyclic", 15)(0.0))
    descend(net, optimizer, 0)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_the_rate_is_read_on_the_device() -> None:
    """A captured graph replays with the tensor that it captured: it must stay the same one."""
    optimizer = FlatSGD(tiny_net(0), lr=0.1, **SETTINGS)
    place = optimizer.lr.data_ptr()
    optimizer.set_lr(0.25)
    assert (optimizer.lr.data_ptr(), optimizer.lr.item()) == (place, 0.25)
    assert optimizer.param_groups[0]["lr"] is optimizer.lr
