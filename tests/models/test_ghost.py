"""Ghost batch normalisation against its formula, and all that it must leave as it is."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.modes import attack_mode
from fastcat.errors import InputError
from fastcat.models import make_model
from fastcat.models.ghost import split_norms
from tests.harness.networks import images, tiny_net
from tests.reference.ghost import use_ghost_norms

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_state(net: nn.Module, other: nn.Module) -> None:
    state, expected = net.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
@pytest.mark.parametrize(
    ("size", "groups"),
    [(4, (4, 4)), (2, (2, 2, 2, 2)), (8, (8,)), (4, (6, 5)), (3, (4, 4, 3)), (9, (5,)), (1, (1,))],
)
def test_three_forwards_equal_the_formula(
    size: int, groups: Sequence[int], momentum: float
) -> None:
    """Outputs, gradients, running statistics and their counters; ragged batches among them."""
    net = tiny_net(0).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    expected = copy.deepcopy(net)
    net.to(memory_format=torch.channels_last)
    split_norms(net, size)
    use_ghost_norms(expected, groups)
    for step in range(3):
        x = images(step, sum(groups))[0].double().requires_grad_()
        x_last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        dz = torch.linspace(-1, 2, 5 * len(x), dtype=x.dtype).view(len(x), 5)
        z, z_expected = net(x_last), expected(x)
        torch.testing.assert_close(z, z_expected, rtol=1e-11, atol=1e-11)
        found = torch.autograd.grad(z, [x_last, *net.parameters()], dz)
        grads = torch.autograd.grad(z_expected, [x, *expected.parameters()], dz)
        for ours, theirs in zip(found, grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
        assert_same_state(net, expected)
    assert all(m.momentum == momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_groups_are_not_the_whole_batch() -> None:
    """Otherwise all of the above would hold of a layer that splits nothing."""
    net, x = tiny_net(0), images(0, 8)[0]
    whole = net(x)
    split_norms(net, 4)
    assert not torch.allclose(net(x), whole, rtol=0.01, atol=0.01)
    torch.testing.assert_close(net(x)[:4], net(x[:4]))


def test_one_group_changes_no_bit() -> None:
    net = tiny_net(0)
    expected = copy.deepcopy(net)
    split_norms(net, 8)
    x = images(0, 8)[0]
    assert torch.equal(net(x), expected(x))
    assert all(map(torch.equal, net.state_dict().values(), expected.state_dict().values()))


@pytest.mark.slow
def test_eval_mode_and_the_twin_are_those_of_a_plain_network() -> None:
    net, x = make_model("preactresnet18", 5, 3), images(0, 8, 16)[0]
    plain = copy.deepcopy(net)
    split_norms(net, 2)
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert_same_state(net, plain)
    twin, expected = Frozen(net, torch.float32, x), Frozen(plain, torch.float32, x)
    assert len(twin._maps) == len(expected._maps)
    assert torch.equal(twin(x), expected(x))


def test_attacks_on_statistics_of_the_batch_leave_the_running_ones_alone() -> None:
    net, x = tiny_net(0), images(0, 8)[0]
    split_norms(net, 4)
    before = copy.deepcopy(net)
    with attack_mode(net, "train"):
        z = net(x)
    assert_same_state(net, before)
    torch.testing.assert_close(z, net(x))


class NormWithReLU(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a subclass whose forward does more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_subclasses_do_what_else_they_do() -> None:
    norm, x = NormWithReLU(3), images(0, 8)[0]
    split_norms(norm, 4)
    out = norm(x)
    assert out.min() == 0
    torch.testing.assert_close(out, torch.cat([NormWithReLU(3)(part) for part in x.split(4)]))


def test_copies_are_networks_of_their_own() -> None:
    net, x = tiny_net(0), images(0, 8)[0]
    split_norms(net, 4)
    before = copy.deepcopy(net)
    copy.deepcopy(net)(x)
    assert_same_state(net, before)


@pytest.mark.slow
@pytest.mark.compile
def test_it_is_compiled_in_one_piece_and_once() -> None:
    net, x = tiny_net(0), images(0, 8)[0]
    split_norms(net, 4)
    expected = copy.deepcopy(net)
    torch._dynamo.reset()
    with torch.compiler.set_stance("default"):
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=False)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(3):
                torch.testing.assert_close(compiled(x), expected(x))
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name])


def test_bf16_keeps_statistics_in_float32() -> None:
    net, x = tiny_net(0), images(0, 8)[0].to(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    split_norms(net, 4)
    seen: list[Tensor] = []
    net.bn2.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        net(x).float().sum().backward()
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert net.bn2.running_var.dtype == torch.float32
    assert net.bn2.weight.grad.isfinite().all()


def test_a_network_without_batchnorm_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no BatchNorm2d to split"):
        split_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm1d(4)), 4)
