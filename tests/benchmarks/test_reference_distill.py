"""The loops of distillation that we are timed beside: right, by the float64 oracle.

The attacks of ARD and IAD-I move BatchNorm's running statistics, and so do their forwards of clean
images that no term of weight reads: the oracle's are moved likewise.
"""

import copy
from typing import Any

import pytest
import torch

from fastcat.benchmarks.methods import METHODS, reference_for
from fastcat.config.peers import parse_peers
from tests.harness.networks import images, tiny_net
from tests.harness.watched import (
    ATTACK,
    SGD,
    TOLERANCE,
    assert_close,
    published_statistics,
    start_noise,
    watched,
)
from tests.reference.step import cat_step

pytestmark = pytest.mark.usefixtures("one_thread")

# forwards of the student in train mode, with three attack steps
TRACKED = {"ard": 3 + 2, "iad": 3 + 3}


@pytest.mark.parametrize("name", ["ard", "rslad", "iad", "act"])
def test_three_steps_of_distillation_follow_the_oracle(name: str) -> None:
    method = METHODS[name]
    specs = parse_peers(method.peers, "resnet18")
    methods: list[tuple[str, dict[str, Any]]] = [(spec.method, {}) for spec in specs]
    teachers: list[list[int]] = [[1], []]
    if name == "act":
        methods, teachers = [("act", {"role": "natural"}), ("act", {})], [[1], [0]]
    nets = [tiny_net(k).double() for k in range(2)]
    loop_type, settings = reference_for(specs, method.collab)
    loop = watched(loop_type)(
        copy.deepcopy(nets), [spec.method for spec in specs], **ATTACK, **SGD, **settings
    )
    buffers = None
    for step in range(3):
        x, y = images(100 + step, 11)
        x = x.double()
        noise = start_noise([name, name], x, step)
        loop.noise, loop.seen = list(noise), []
        before = copy.deepcopy(nets)
        log = loop.step(x, y)
        result = cat_step(
            nets,
            methods,
            x,
            y,
            torch.stack(noise)[None],
            alpha=1.0,
            collab="none",
            teachers=teachers,
            nesterov=False,
            buffers=buffers,
            **ATTACK,
            **SGD,
        )
        buffers = result.buffers
        if name in TRACKED:
            seen = [view for k, training, view, _ in loop.seen if k == 0 and training]
            assert len(seen) == TRACKED[name]
            published_statistics(before[0], nets[0], seen)

        for view, images_of in loop.views.items():
            assert_close(images_of, result.views[view], TOLERANCE, f"view {view}")
        losses = {f"loss{k}": sum(t.values()) for k, t in enumerate(result.terms) if t}
        assert list(log) == list(losses)
        for key, value in losses.items():
            assert log[key] == pytest.approx(value.item(), rel=TOLERANCE), key
        for k, net in enumerate(nets):
            for what, grad in result.grads[k].items() if result.terms[k] else ():
                p = loop.models[k].get_parameter(what)
                assert_close(p.grad, grad, TOLERANCE, f"gradient of {what} of peer {k}")
            state = loop.models[k].state_dict()
            for what, value in net.state_dict().items():
                assert_close(state[what], value, TOLERANCE, f"{what} of peer {k} at step {step}")


def test_a_teacher_stays_as_it_was() -> None:
    teacher = tiny_net(1)
    specs = parse_peers(METHODS["rslad"].peers, "resnet18")
    loop_type, _ = reference_for(specs, "none")
    loop = loop_type([tiny_net(0), copy.deepcopy(teacher)], ["rslad", "teacher"], **ATTACK)
    loop.step(*images(0, 5))
    assert not loop.models[1].training
    assert len(loop.optimizers) == 1
    for what, value in teacher.state_dict().items():
        assert torch.equal(loop.models[1].state_dict()[what], value), what
