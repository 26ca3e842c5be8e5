"""The loops we are timed beside: right, by the float64 oracle.

Where the published code departs from the oracle, the oracle's networks are made to depart
likewise, so that all else must agree to rounding: the forward after a step of several peers and of
at, and the second clean forward of TRADES alone, which move running statistics and nothing else.
MART adds 1e-12 inside its logarithms, which the oracle does not.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.benchmarks.methods import reference_for
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.config.peers import parse_peers
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
from tests.reference.attack import pgd
from tests.reference.awp import add, perturbation
from tests.reference.step import cat_step, forward_and_backward

pytestmark = pytest.mark.usefixtures("one_thread")

MART_TOLERANCE = 1e-8


def at_perturbed(
    net: nn.Module,
    methods: list[tuple[str, dict[str, Any]]],
    views: dict[str, Tensor],
    y: Tensor,
    gamma: float,
) -> nn.Module:
    """The network at w + v."""
    twin = copy.deepcopy(net)
    *_, (grads,) = forward_and_backward(
        [copy.deepcopy(net)], methods, views, y, 1.0, "none", [[]], None, None
    )
    add(twin, perturbation(twin, grads, gamma), 1.0)
    return twin


@pytest.mark.slow
@pytest.mark.parametrize(
    "team",
    [
        "natural",
        "at",
        "trades",
        "alp",
        "mart",
        "boosted",
        "st",
        "at:awp=0.02",
        "trades:awp=0.01",
        "trades,alp",
        "natural,trades",
        "trades,alp,at",
        "mart,natural,natural",
        "boosted,boosted --collab mat",
        "trades,natural,boosted --collab mat",
    ],
)
def test_three_steps_follow_the_oracle(team: str) -> None:
    peers, _, collab = team.partition(" --collab ")
    collab = collab or "cat"
    specs = parse_peers(peers, "resnet18")
    methods = [spec.method for spec in specs]
    named: list[tuple[str, dict[str, Any]]] = [(method, {}) for method in methods]
    gamma = specs[0].awp
    loop_type, settings = reference_for(specs, collab)
    tolerance = MART_TOLERANCE if "mart" in methods else TOLERANCE
    nets = [tiny_net(k).double() for k in range(len(methods))]
    loop = watched(loop_type)(
        copy.deepcopy(nets), methods, alpha=ALPHA, **ATTACK, **SGD, **settings
    )
    buffers = None
    for step in range(3):
        x, y = images(100 + step, 11)
        x = x.double()
        noise = start_noise(methods, x, step)
        loop.noise = list(noise)
        before = copy.deepcopy(nets)

        log = loop.step(x, y)
        result = cat_step(
            nets,
            named,
            x,
            y,
            torch.stack(noise)[None],
            alpha=ALPHA,
            collab=collab,
            nesterov=False,
            buffers=buffers,
            awp=None if gamma is None else [gamma],
            **ATTACK,
            **SGD,
        )
        buffers = result.buffers

        assert loop.views.keys() == result.views.keys()
        for name, view in result.views.items():
            assert_close(loop.views[name], view, tolerance, f"view {name}")

        expected = {f"loss{k}": sum(terms.values()) for k, terms in enumerate(result.terms)}
        if len(methods) > 1:
            expected["guidance"] = sum(result.guidance)
        elif methods == ["trades"]:
            # not in the oracle: clean images a second time, before the step
            x_adv = result.views["adv0"]
            if gamma is None:
                published_statistics(before[0], nets[0], [x, x_adv, x])
            else:
                perturbed = at_perturbed(before[0], named, result.views, y, gamma)
                published_statistics(perturbed, nets[0], [x_adv, x, x])
        if methods == ["at"] or (len(methods) > 1 and collab == "cat"):
            # not in the oracle: a train-mode forward of the first peer, after the step
            hits = nets[0](x).argmax(1) == y
            expected["accuracy"] = hits.double().mean()
        assert list(log) == list(expected)
        for key, value in expected.items():
            assert log[key] == pytest.approx(value.item(), rel=tolerance), key

        for k, net in enumerate(nets):
            optimizer = loop.optimizers[k]
            for name, p in loop.models[k].named_parameters():
                what = f"{name} of peer {k} at step {step}"
                assert p.grad is not None
                assert_close(p.grad, result.grads[k][name], tolerance, f"gradient of {what}")
                momentum = optimizer.state[p]["momentum_buffer"]
                assert_close(momentum, result.buffers[k][name], tolerance, f"momentum of {what}")
            state = loop.models[k].state_dict()
            for name, value in net.state_dict().items():
                assert_close(state[name], value, tolerance, f"{name} of peer {k} at step {step}")


@pytest.mark.parametrize("method", ["at", "trades"])
def test_evaluation_attacks_every_method_by_cross_entropy(method: str) -> None:
    nets = [tiny_net(k).double() for k in range(2)]
    # 8/255 does not change what these networks say
    loop = watched(PlainLoop)(copy.deepcopy(nets), [method] * 2, eps=0.25, step_size=0.1)
    x, _ = images(0, 60)
    x = x.double()
    # each network is right on half of the images
    y = torch.cat([net.eval()(x[k::2]).argmax(1) for k, net in enumerate(nets)])
    x = torch.cat([x[0::2], x[1::2]])
    noise = start_noise(["at"] * 2, x, 0)
    loop.noise = list(noise)
    for k, (clean, robust) in enumerate(loop.evaluate(x, y, steps=5)):
        x_adv = pgd(nets[k], x, y, "at", 0.25, 0.1, 5, noise[k][None])
        nets[k].eval()
        assert clean == (nets[k](x).argmax(1) == y).double().mean()
        assert robust == (nets[k](x_adv).argmax(1) == y).double().mean()
        assert 0 < robust < clean
        assert loop.models[k].training
        for name, value in loop.models[k].state_dict().items():
            assert torch.equal(value, nets[k].state_dict()[name]), f"evaluation moved {name}"
