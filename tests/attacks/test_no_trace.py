"""An attacked network never notices: gradients, statistics, modes are bit-equal afterwards."""

import copy
from typing import Any

import pytest
import torch

from fastcat.attacks.modes import attack_mode
from fastcat.attacks.pgd import PGD, attack, attack_all
from fastcat.attacks.threat import ThreatModel
from fastcat.errors import InputError
from tests.harness.comparison import assert_same
from tests.harness.engines import Interrupted
from tests.harness.networks import images, seeded
from tests.harness.traces import everything, mixed_net

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("loss", ["ce", "kl", "margin"])
def test_attack_leaves_no_trace(loss: str, bn: Any, restarts: int) -> None:
    net, (x, y) = mixed_net(), images(0, 5)
    before, old_grads = everything(net), [p.grad for p in net.parameters()]
    x_before, y_before, random_state = x.clone(), y.clone(), torch.get_rng_state()
    threat = ThreatModel(eps=8 / 255, steps=2, restarts=restarts)
    x_adv = attack(net, x, y, threat, loss=loss, bn=bn, generator=seeded())
    assert_same(before, everything(net))
    assert all(p.grad is old for p, old in zip(net.parameters(), old_grads, strict=True))
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    assert not x.requires_grad
    assert x.grad is None
    assert not x_adv.requires_grad
    assert x_adv.grad_fn is None
    if bn == "eval":  # in train mode the dropout draws
        assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("error", [RuntimeError, Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_an_interrupted_attack_leaves_no_trace(
    calls: int, bn: Any, error: type[BaseException]
) -> None:
    """The network fails in its first forward (the target of the KL), its second, or its fourth."""
    net, (x, y) = mixed_net(), images(0, 5)
    before = everything(net)
    left = iter(range(calls))

    def fail(*_: Any) -> None:
        next(left)
        if len(list(copy.copy(left))) == 0:
            raise error("in the middle")

    hook = net[2].bn3.register_forward_hook(fail)
    # what is raised in a network is told in a sentence, an interruption passes
    seen = InputError if issubclass(error, Exception) else error
    with pytest.raises(seen, match="in the middle"):
        attack(net, x, y, THREAT, loss="kl", bn=bn, generator=seeded())
    hook.remove()
    assert_same(before, everything(net))


def test_when_one_of_two_networks_fails_both_are_restored() -> None:
    nets, (x, y) = [mixed_net(), mixed_net()], images(0, 5)
    before = [everything(net) for net in nets]

    def fail(*_: Any) -> None:
        raise RuntimeError("second peer")

    hook = nets[1].register_forward_pre_hook(fail)
    noise = THREAT.draw_noise("uniform", x, seeded()).expand(1, 2, *x.shape)
    with pytest.raises(RuntimeError, match="second peer"):
        attack_all(nets, [PGD(bn="train"), PGD()], x, y, THREAT, noise)
    hook.remove()
    for net, old in zip(nets, before, strict=True):
        assert_same(old, everything(net))


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_during_the_attack_the_network_is_in_the_mode_asked_for(bn: str) -> None:
    net = mixed_net()
    with attack_mode(net, bn):
        assert all(module.training == (bn == "train") for module in net.modules())
        moments = copy.deepcopy(net.state_dict())
        net(images(0, 4)[0])
        assert all(torch.equal(net.state_dict()[name], value) for name, value in moments.items())


def test_one_network_twice_in_an_attack_is_restored() -> None:
    net, (x, y) = mixed_net(), images(0, 5)
    before = everything(net)
    noise = THREAT.draw_noise("uniform", x, seeded()).expand(1, 2, *x.shape)
    attack_all([net, net], [PGD(bn="train"), PGD(bn="train")], x, y, THREAT, noise)
    assert_same(before, everything(net))
