"""The loops of several norms that we are timed beside: right, by the float64 oracle.

They start at the image, so the oracle's start noise is zero.
"""

import copy

import pytest
import torch

from fastcat.benchmarks.methods import METHODS, reference_for
from fastcat.benchmarks.reference.union import Ball as TheirBall
from fastcat.config.peers import parse_peers
from tests.harness.networks import images, tiny_net
from tests.harness.watched import ALPHA, SGD, TOLERANCE, assert_close, watched
from tests.reference.multi_norm import Ball, Learner, Task, multi_norm_step

pytestmark = pytest.mark.usefixtures("one_thread")

# of about equal strength on images of 8 x 8, and of unequal length
BALLS = [("linf", 0.041, 0.016, 3), ("l2", 0.44, 0.22, 2), ("l1", 2.4, 0.8, 4)]
SIZE = 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if "threat=" in method.peers]
)
def test_three_steps_under_several_norms_follow_the_oracle(name: str) -> None:
    method = METHODS[name]
    specs = parse_peers(method.peers, "resnet18")
    loop_type, settings = reference_for(specs, method.collab)
    nets = [tiny_net(k).double() for k in range(len(specs))]
    loop = watched(loop_type)(
        copy.deepcopy(nets),
        [spec.method for spec in specs],
        balls=[TheirBall(*ball) for ball in BALLS],
        alpha=ALPHA,
        **settings,
        **SGD,
    )
    learners = [Learner(method=spec.method, threat=spec.threat or "") for spec in specs]
    balls = [Ball(norm=n, eps=eps, step_size=a, steps=steps) for n, eps, a, steps in BALLS]
    buffers, chosen = None, set()
    for step in range(3):
        x, y = images(100 + step, SIZE)
        x = x.double()
        task = Task(learners=learners, balls=balls, x=x, y=y, collab=method.collab, alpha=ALPHA)
        task = task if len(specs) > 1 else Task(**{**vars(task), "collab": "none"})
        noise = [torch.zeros(len(balls), 1, *x.shape).double() for _ in specs]
        log = loop.step(x, y)
        result, _ = multi_norm_step(task, nets, noise, {**SGD, "nesterov": False}, buffers)
        buffers = result.buffers

        assert loop.views.keys() == result.views.keys()
        for view, expected in result.views.items():
            assert_close(loop.views[view], expected, TOLERANCE, f"view {view}")
        if name.endswith("max"):
            chosen |= set(loop.winners[0].tolist())
        values = {f"loss{k}": sum(terms.values()) for k, terms in enumerate(result.terms)}
        if len(specs) > 1:
            values["guidance"] = sum(result.guidance)
        assert list(log) == list(values)
        for key, value in values.items():
            assert log[key] == pytest.approx(value.item(), rel=TOLERANCE), key
        for k, net in enumerate(nets):
            for what, p in loop.models[k].named_parameters():
                assert_close(p.grad, result.grads[k][what], TOLERANCE, f"gradient of {what}")
            state = loop.models[k].state_dict()
            for what, value in net.state_dict().items():
                assert_close(state[what], value, TOLERANCE, f"{what} of peer {k}")
    # else `max` would be no more than the one winner
    assert not chosen or len(chosen) > 1


def test_a_prediction_that_nobody_reads_costs_a_forward_in_every_step() -> None:
    """And has a graph, as published; catches a kinder loop than there is."""
    specs = parse_peers("at:threat=avg", "resnet18")
    loop_type, settings = reference_for(specs, "cat")
    loop = watched(loop_type)([tiny_net(0)], ["at"], **settings)
    x, y = images(0, 2)
    loop.all_views(x, y)
    assert len(loop.seen) == 3 * 2 * 10
    assert all(z.requires_grad and not training for _, training, _, z in loop.seen)
    for first, second in zip(loop.seen[::2], loop.seen[1::2], strict=True):
        assert torch.equal(first[2], second[2])
