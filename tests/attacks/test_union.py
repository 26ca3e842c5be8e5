"""One view under several threat models: by brute force, and what must hold of every view."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.objectives import make_objective
from fastcat.step.algorithm import attack_views, start_noise
from fastcat.step.team import Team
from tests.harness.comparison import assert_same
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.teams import team_of
from tests.harness.traces import everything
from tests.reference.losses import cross_entropy

pytestmark = pytest.mark.usefixtures("one_thread")

PROPERTY = settings(max_examples=12, deadline=None, derandomize=True)
radii = st.tuples(st.floats(0.005, 0.2), st.floats(0.05, 2), st.floats(0.5, 12))


def models(eps: tuple[float, float, float], steps: int = 3) -> tuple[ThreatModel, ...]:
    norms = zip(("linf", "l2", "l1"), eps, strict=True)
    return tuple(ThreatModel(norm=norm, eps=e, step_size=e / 2, steps=steps) for norm, e in norms)


def team(*threats: Threats, net: int = 0, method: str = "at", **settings: Any) -> Team:
    """Peers of the same weights."""
    objective = make_objective(method, settings)
    nets: list[nn.Module] = [tiny_net(net) for _ in threats]
    names = [method] * len(threats)
    return team_of([objective] * len(threats), nets, names, collab="none", threats=threats)


def batch(seed: int) -> Batch:
    x, y = images(seed, 6)
    return Batch(x, y, torch.arange(len(y)))


def per_image(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [B] of a network that is tested."""
    with torch.no_grad():
        return cross_entropy(net.eval()(x), y)


@pytest.mark.slow
@PROPERTY
@given(radii, st.integers(0, 1000))
def test_max_takes_the_worst_of_each_image(eps: tuple[float, float, float], seed: int) -> None:
    """Catches a choice for the whole batch, by another loss, or of the mildest."""
    balls, given_batch = models(eps), batch(seed)
    apart = team(*(Threats((model,)) for model in balls), net=seed)
    together = team(Threats(balls, "max"), net=seed)
    noise = start_noise(apart, given_batch.x, seeded(seed))
    each = attack_views(apart, given_batch, noise)
    found = attack_views(together, given_batch, noise)
    net, y = tiny_net(seed), given_batch.y
    losses = torch.stack([per_image(net, each[f"adv{m}"], y) for m in range(3)])
    of_found = per_image(net, found["adv0"], y)
    for i, m in enumerate(found["which0"].tolist()):
        assert torch.equal(found["adv0"][i], each[f"adv{m}"][i])
    assert torch.allclose(of_found, losses.amax(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@PROPERTY
@given(radii, st.integers(0, 1000))
def test_msd_takes_the_best_of_three_steps_and_of_all_iterates(
    eps: tuple[float, float, float], seed: int
) -> None:
    """Image by image, without any of `fastcat.attacks.multi_norm`."""
    balls, given_batch = models(eps), batch(seed)
    net, x, y = tiny_net(seed).double().eval(), given_batch.x.double(), given_batch.y
    iterate, best, best_loss = x.clone(), x.clone(), torch.full((len(x),), -torch.inf).double()
    for _ in range(3):
        leaf = iterate.detach().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(net(leaf), y).sum(), leaf)
        for i in range(len(x)):
            moved = []
            for ball in balls:
                view = iterate[i : i + 1].clone()
                ball.ascend(view[None], x[i : i + 1], grad[None, i : i + 1])
                moved.append((per_image(net, view, y[i : i + 1]).item(), view[0]))
            loss, iterate[i] = max(moved, key=lambda one: one[0])
            if loss > best_loss[i]:
                best_loss[i], best[i] = loss, iterate[i]
    apart = Batch(x, y, given_batch.index)
    doubles = team_of(
        ["at"],
        [tiny_net(seed).double()],
        collab="none",
        threats=[Threats(balls, "msd")],
    )
    noise = start_noise(doubles, x, seeded(seed))
    assert (attack_views(doubles, apart, noise)["adv0"] - best).abs().max() < 1e-9


@pytest.mark.slow
@PROPERTY
@given(radii, st.integers(0, 1000), st.sampled_from(["at", "trades", "boosted"]))
def test_views_lie_in_their_balls_and_in_the_box(
    eps: tuple[float, float, float], seed: int, method: str
) -> None:
    balls, given_batch = models(eps), batch(seed)
    ways = team(*(Threats(balls, way) for way in ("avg", "max", "msd")), net=seed, method=method)
    noise = start_noise(ways, given_batch.x, seeded(seed))
    found = attack_views(ways, given_batch, noise)

    def within(view: Tensor) -> Tensor:
        """[M, B]: whether each image lies in each ball; 192 pixels, each rounded to float32."""
        distances = [ball.distance(given_batch.x, view) / ball.eps for ball in balls]
        return torch.stack(distances) <= 1 + 1e-4

    for m, ball in enumerate(balls):
        assert within(found[f"{ball.norm}.adv0"])[m].all()
    assert within(found["adv1"]).gather(0, found["which1"][None]).all()
    assert within(found["adv2"]).any(0).all(), "in the union of the balls"
    for name, view in found.items():
        assert name.startswith("which") or ((view >= 0) & (view <= 1)).all()


def test_more_steps_of_msd_are_never_milder() -> None:
    """The best iterate is kept, and the first ones are the same."""
    given_batch, net = batch(0), tiny_net(0)
    losses = []
    for steps in range(1, 6):
        of_one = team(Threats(models((0.03, 0.4, 4.0), steps), "msd"))
        noise = start_noise(of_one, given_batch.x, seeded())
        view = attack_views(of_one, given_batch, noise)["adv0"]
        losses.append(per_image(net, view, given_batch.y))
    differences = torch.stack(losses).diff(dim=0)
    assert (differences >= -1e-6).all()
    assert (differences > 1e-3).any()


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("way", ["avg", "max", "msd"])
def test_attacks_leave_no_trace(way: str, bn: str) -> None:
    of_one = team(Threats(models((0.03, 0.4, 4.0)), way), bn=bn)
    net, given_batch = of_one.peers[0].model, batch(0)
    before, x = everything(net), given_batch.x.clone()
    noise = start_noise(of_one, given_batch.x, seeded())
    found = attack_views(of_one, given_batch, noise)
    assert_same(before, everything(net))
    assert torch.equal(given_batch.x, x)
    assert not any(view.requires_grad for view in found.values())

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    of_one.peers[0].frozen = None
    hook = net.bn3.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        attack_views(of_one, given_batch, noise)
    hook.remove()
    assert_same(before, everything(net))


def test_views_keep_the_layout_of_the_images() -> None:
    """Networks are channels-last; other views would be rearranged in every forward."""
    given_batch = batch(0)
    x = given_batch.x.to(memory_format=torch.channels_last)
    balls = models((0.03, 0.4, 4.0))
    ways = team(*(Threats(balls, way) for way in ("avg", "max", "msd")))
    found = attack_views(
        ways, Batch(x, given_batch.y, given_batch.index), start_noise(ways, x, seeded())
    )
    layouts = {view.stride() for name, view in found.items() if not name.startswith("which")}
    assert layouts == {x.stride()}
