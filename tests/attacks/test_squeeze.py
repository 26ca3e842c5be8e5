"""Squeeze Training: which of three is upper and lower, two views in the ball, and no trace."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.squeeze import Squeeze, pick, select, squeeze
from fastcat.attacks.threat import ThreatModel
from fastcat.batch import Batch
from fastcat.errors import InputError
from fastcat.objective import Objective
from fastcat.objectives import make_objective
from fastcat.precision import make_precision
from fastcat.step.algorithm import attack_views, collaborative_step, start_noise
from tests.harness.comparison import assert_same
from tests.harness.engines import Interrupted
from tests.harness.networks import CLASSES, images, noise_of, seeded, tiny_net
from tests.harness.teams import team_of
from tests.harness.traces import everything, mixed_net
from tests.reference import losses as reference

pytestmark = pytest.mark.usefixtures("one_thread")


def test_roles_by_hand() -> None:
    """Images whose p_y is lowest on adv, clean and col; then equals, which adv and col take."""
    z = torch.tensor([[0.0, 1, 2, 3], [1.0, 0, 2, 3], [2.0, 2, 0, 3]])
    z = torch.stack([z, torch.zeros(3, 4)], 2)
    upper, lower = select(z, torch.zeros(4, dtype=torch.int64))
    assert upper.tolist() == [0, 1, 2, 0]
    assert lower.tolist() == [2, 2, 1, 2]
    names = torch.tensor([[0.0] * 4, [1.0] * 4, [2.0] * 4])
    assert pick(names, upper).tolist() == upper.tolist()
    sure = torch.tensor([[[30.0, 0]], [[31.0, 0]], [[29.0, 0]]])
    assert [int(place) for place in select(sure, torch.tensor([0]))] == [2, 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["gaussian", "uniform"])
@pytest.mark.parametrize("bn", ["train", "eval"])
def test_both_views_stay_in_ball_and_box_after_every_step(norm: str, start: Any, bn: Any) -> None:
    eps = 8 / 255 if norm == "linf" else 0.5
    x, y = images(0, 9)
    for steps in range(1, 6):
        threat = ThreatModel(norm=norm, eps=eps, step_size=0.4 * eps, steps=steps)
        views = squeeze(
            tiny_net(0), Squeeze(start=start, bn=bn), x, y, threat, noise_of(threat, x, start)
        )
        assert views.shape == (2, *x.shape)
        for view in views:
            assert view.min() >= 0
            assert view.max() <= 1
            assert threat.distance(x, view).max() <= eps + 1e-6
            assert not view.requires_grad


def test_the_views_end_up_harder_and_easier_than_the_images() -> None:
    x, y = images(0, 32)
    threat, net = ThreatModel(steps=5), tiny_net(0).eval()
    adv, col = squeeze(net, Squeeze(bn="eval"), x, y, threat, noise_of(threat, x, "gaussian"))
    adv_ce, ce, col_ce = (reference.cross_entropy(net(view), y) for view in (adv, x, col))
    assert (adv_ce > ce).double().mean() > 0.9
    assert (col_ce < ce).double().mean() > 0.9


def test_a_network_that_tells_nothing_apart_moves_nothing() -> None:
    """All three equally likely: no gradient, no NaN."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    nn.init.zeros_(net[1].weight)
    x, y = images(0, 5)
    x = 0.1 + 0.8 * x
    threat = ThreatModel(steps=3)
    noise = noise_of(threat, x, "gaussian")
    adv, col = squeeze(net, Squeeze(), x, y, threat, noise)
    assert torch.equal(adv, threat.start(x, "gaussian", noise[0]))
    assert torch.equal(col, threat.start(x, "gaussian", noise[1]))


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_it_leaves_no_trace(bn: Any) -> None:
    net, (x, y) = mixed_net(), images(0, 5)
    before, x_before = everything(net), x.clone()
    threat = ThreatModel(steps=2)
    squeeze(net, Squeeze(bn=bn), x, y, threat, noise_of(threat, x, "gaussian"))
    assert_same(before, everything(net))
    assert torch.equal(x, x_before)
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize("calls", [1, 2, 5])
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_interrupted_it_leaves_no_trace(bn: Any, calls: int) -> None:
    net, (x, y) = mixed_net(), images(0, 5)
    before, count = everything(net), iter(range(1, 100))

    def fail(*_: Any) -> None:
        if next(count) == calls:
            raise Interrupted

    hook = net[2].bn3.register_forward_hook(fail)
    threat = ThreatModel(steps=3)
    with pytest.raises(Interrupted):
        squeeze(net, Squeeze(bn=bn), x, y, threat, noise_of(threat, x, "gaussian"))
    hook.remove()
    assert_same(before, everything(net))


def test_on_a_frozen_twin_it_is_the_same() -> None:
    net, (x, y) = tiny_net(0, nn.SiLU).double(), images(0, 6)
    x = x.double()
    twin, threat = Frozen(net, torch.float64, x), ThreatModel(steps=3)
    noise = noise_of(threat, x, "gaussian")
    ours, theirs = (squeeze(n, Squeeze(bn="eval"), x, y, threat, noise) for n in (twin, net))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_gradients_of_the_published_regulariser_and_of_the_others() -> None:
    """symmkl: 0.5 (p_upper - p_lower) / B, not the gradient of the symmetric KL."""
    generator = torch.Generator().manual_seed(0)
    three = torch.randn(3, 9, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(6, (9,), generator=generator)
    z = dict(zip(("adv", "clean", "col"), three.requires_grad_().unbind(), strict=True))
    upper, lower = select(three.detach(), y)
    terms = make_objective("st", {"beta": "2"}).outer(z, y)
    (grad,) = torch.autograd.grad(terms["squeeze"], three)
    p = three.detach().softmax(2)
    pull = (pick(p, upper) - pick(p, lower)) / 9
    for c in range(3):
        sign = (upper == c).double() - (lower == c).double()
        torch.testing.assert_close(grad[c], sign[:, None] * pull)
    for reg in ("symmkl", "js", "l2"):
        ours = make_objective("st", {"reg": reg}).outer(z, y)["squeeze"]
        expected = reference.st(z["clean"], z["adv"], z["col"], y, reg=reg)["squeeze"]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
        for mine, theirs in zip(
            torch.autograd.grad(ours, three, retain_graph=True),
            torch.autograd.grad(expected, three, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


# beside others


def test_other_peers_are_attacked_as_without_it() -> None:
    """To the bit, from the same noise."""
    x, y = images(0, 6)
    batch = Batch(x, y, torch.arange(6))
    nets = [tiny_net(k) for k in range(3)]
    team = team_of(["trades", "st", "alp"], nets)
    noise = start_noise(team, x, seeded())
    assert noise.shape == (1, 4, *x.shape)
    views = attack_views(team, batch, noise)
    assert sorted(views) == ["adv0", "adv1", "adv2", "clean", "col1"]
    alone = team_of(["trades", "alp"], [nets[0], nets[2]])
    theirs = attack_views(alone, batch, noise[:, [0, 3]])
    assert torch.equal(views["adv0"], theirs["adv0"])
    assert torch.equal(views["adv2"], theirs["adv1"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_half_precision_trains_and_keeps_views_float32(bn: str, precision: str) -> None:
    half = make_precision(precision, torch.device("cpu"))
    team = team_of([make_objective("st", {"bn": bn}), "alp"], names=["st", "alp"], precision=half)
    x, y = images(0, 6)
    batch, noise = Batch(x, y, torch.arange(6)), start_noise(team, x, seeded())
    views = attack_views(team, batch, noise)
    assert views["adv0"].dtype == views["col0"].dtype == torch.float32
    assert (views["adv0"] - x).abs().mean() > 0.2 * 8 / 255
    assert collaborative_step(team, batch, noise).isfinite().all()


def test_several_starts_and_mixed_images_are_refused() -> None:
    with pytest.raises(InputError, match="one start: type --restarts 1"):
        team_of(["st", "at"], threat=ThreatModel(restarts=2))
    with pytest.raises(InputError, match="cannot train on mixed images"):
        team_of(["st", "at"], mixed=True)


def test_views_that_do_not_fit_their_attack_are_refused() -> None:
    st, at = make_objective("st", {}), make_objective("at", {})
    for views, inner, untracked, text in (
        (("adv", "col"), at.inner, (), "finds: clean, adv$"),
        (("clean", "adv"), st.inner, (), "finds: clean, adv, col$"),
        (("adv",), at.inner, ("clean",), "untracked are"),
    ):
        with pytest.raises(InputError, match=text):
            Objective(views=views, inner=inner, outer=at.outer, untracked=untracked)


# as the public code has it


def as_published(
    net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, noise: Tensor
) -> tuple[Tensor, Tensor, int]:
    """The attack of the public code, in whole batches, and in how many steps points stayed.

    Roles by p_y, of equals clean. A step in which clean has no role in the batch moves adv by the
    gradient of upper and col by that of lower, wherever these are.
    """
    adv, col = (x + 0.001 * noise_v for noise_v in noise)
    stayed = 0
    for _ in range(threat.steps):
        points = [point.detach().requires_grad_() for point in (x, col, adv)]
        z = [net(point) for point in points]
        p_y = torch.stack([z_v.softmax(1)[torch.arange(len(y)), y] for z_v in z])
        upper, lower = p_y.argmin(0), p_y.argmax(0)
        rows = [torch.stack([z[v][i] for i, v in enumerate(role)]) for role in (upper, lower)]
        loss = reference.symmetric(*rows).sum()
        grads = torch.autograd.grad(loss, points, materialize_grads=True)
        clean_has_a_role = bool(((upper == 0) | (lower == 0)).any())
        stayed += not clean_has_a_role and not torch.equal(upper, torch.full_like(upper, 2))
        ends = []
        for role, own in ((upper, adv), (lower, col)):
            point = torch.stack([points[v][i].detach() for i, v in enumerate(role)])
            grad = torch.stack([grads[v][i] for i, v in enumerate(role)])
            moved = (point if clean_has_a_role else own) + threat.step * grad.sign()
            ends.append(moved.clamp(x - threat.eps, x + threat.eps).clamp(0, 1).detach())
        adv, col = ends
    return adv, col, stayed


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_official_attack_is_that_of_the_public_code(size: int) -> None:
    """At small batches, where a step without the clean image is often one of swapped roles."""
    net = tiny_net(0, nn.SiLU).double().eval()
    threat, differ, stayed = ThreatModel(steps=4), 0, 0
    for seed in range(12):
        x, y = images(seed, size)
        x = x.double()
        noise = noise_of(threat, x, "gaussian")
        *expected, steps = as_published(net, x, y, threat, noise)
        official = squeeze(net, Squeeze(bn="eval", official=True), x, y, threat, noise)
        torch.testing.assert_close(official, torch.stack(expected), rtol=0, atol=1e-12)
        plain = squeeze(net, Squeeze(bn="eval"), x, y, threat, noise)
        differ += not torch.allclose(plain, official, rtol=0, atol=1e-6)
        stayed += steps
    assert (differ > 0) == (stayed > 0)
    if size == 1:
        assert stayed > 0, "the case must occur to show anything"


def test_official_ties_go_to_the_clean_image_and_put_both_views_on_it() -> None:
    """Three images that float32 is sure of: p_y is 1, whatever is done to them."""
    net = tiny_net(0).eval()
    x, _ = images(0, 3)
    net.linear.weight.data *= 2000
    threat = ThreatModel(steps=3)
    noise = noise_of(threat, x, "gaussian")
    with torch.no_grad():
        p, y = net(x).softmax(1).max(1)
    assert (p == 1).all()
    official = squeeze(net, Squeeze(bn="eval", official=True), x, y, threat, noise)
    assert torch.equal(official, x.expand(2, *x.shape))
    assert (
        squeeze(net, Squeeze(bn="eval"), x, y, threat, noise) - x
    ).abs().max() > 0.5 * threat.eps


def test_roles_of_sure_and_of_hopeless_images_are_those_of_float64() -> None:
    """Catches a choice by p_y, 1 or 0 for all three, and one by its logarithm, which is 0."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 200, 6, generator=generator)
    y = torch.randint(6, (200,), generator=generator)
    for shift in (30.0, -200.0):
        far = z + shift * nn.functional.one_hot(y, 6)
        ours, exact = (torch.stack(select(logits, y)) for logits in (far, far.double()))
        assert (ours == exact).double().mean() > 0.99
        by_p = torch.stack(select(far, y, official=True))
        assert (by_p == 1).all(), "equals, of which clean is taken"
        log_p = far.log_softmax(2).gather(2, y.expand(3, -1)[..., None]).squeeze(2)
        assert (log_p == 0).all() == (shift > 0)
