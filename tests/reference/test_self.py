"""The oracle's attack and step against closed forms, finite differences and torch's optimizer.

Images are `[B, 3, H, W]` in [0, 1].
"""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference.attack import pgd
from tests.reference.step import StepResult, cat_step, sgd_update

Methods = list[tuple[str, dict[str, Any]]]

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}
ATTACK: dict[str, Any] = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 3}


def tiny_net(seed: int) -> nn.Sequential:
    """BatchNorm, convolution, BatchNorm, linear; smooth, float64, for `[B, 3, 4, 4]`."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).double()
    for norm in (net[0], net[2]):
        norm.running_mean.normal_(0.0, 0.1)
        norm.running_var.uniform_(0.5, 2.0)
    return net


def two_class_net() -> tuple[nn.Sequential, Tensor]:
    """A linear net on `[B, 3, 2, 2]` and w = W_1 - W_0, `[1, 3, 2, 2]`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    weight = net[1].weight.detach()
    return net, (weight[1] - weight[0]).view(1, 3, 2, 2)


def batch(size: int = 4, side: int = 4, restarts: int = 1, peers: int = 1) -> tuple[Tensor, ...]:
    """x in [0, 1], y in 0..4 and noise `[R, K, B, 3, side, side]` in [-1, 1]."""
    torch.manual_seed(1)
    x = torch.rand(size, 3, side, side, dtype=torch.float64)
    y = torch.randint(5, (size,))
    noise = 2 * torch.rand(restarts, peers, *x.shape, dtype=torch.float64) - 1
    return x, y, noise


def step(
    nets: Sequence[nn.Module], names: list[str], *, alpha: float = 0.3, collab: str = "cat"
) -> StepResult:
    """One step with every method's default settings on the fixed batch."""
    x, y, noise = batch(peers=len(nets))
    methods: Methods = [(name, {}) for name in names]
    return cat_step(
        nets, methods, x, y, noise, **ATTACK, alpha=alpha, collab=collab, **SGD, buffers=None
    )


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("method", ["at", "alp", "mart"])
def test_pgd_on_a_linear_net_climbs_the_cross_entropy(method: str, steps: int) -> None:
    """Two classes: the gradient's sign is -sign(w) for y = 1 and sign(w) for y = 0, everywhere."""
    net, w = two_class_net()
    x, _, noise = batch(side=2)
    x = 0.3 + 0.4 * x
    y = torch.tensor([0, 1, 1, 0])
    up = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * w.sign()
    start = x + (0.001 if method == "mart" else 0.1) * noise[0, 0]
    expected = torch.maximum(torch.minimum(start + steps * 0.04 * up, x + 0.1), x - 0.1)
    x_adv = pgd(net, x, y, method, 0.1, 0.04, steps, noise[:, 0])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-14)


def test_pgd_on_mixed_images_climbs_the_shared_cross_entropy() -> None:
    """Two classes, y = 0 and y_mixed = 1: d / dx' = (p_1 - (1 - share)) w."""
    net, w = two_class_net()
    x, _, noise = batch(side=2)
    x = 0.3 + 0.4 * x
    start = x + 0.1 * noise[0, 0]
    p_1 = net(start).softmax(dim=1)[:, 1].detach()
    # two whose prediction is pushed up, two down; all so far off that three steps cross nothing
    share = torch.where(torch.tensor([True, False, True, False]), 1 - p_1 / 4, (1 - p_1) / 4)
    side = (p_1 - (1 - share)).sign().view(-1, 1, 1, 1)
    assert side.flatten().tolist() == [1.0, -1.0, 1.0, -1.0]
    expected = (start + 3 * 0.01 * side * w.sign()).clamp(x - 0.1, x + 0.1)
    y, y_mixed = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    x_adv = pgd(net, x, y, "at", 0.1, 0.01, 3, noise[:, 0], y_mixed=y_mixed, share=share)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-14)


def test_pgd_on_a_linear_net_climbs_the_trades_kl() -> None:
    """KL grows away from x: the direction is sign(w . (start - x)) sign(w), whatever y is."""
    net, w = two_class_net()
    x, y, noise = batch(side=2)
    x = 0.3 + 0.4 * x
    side = (w * noise[0, 0]).sum(dim=(1, 2, 3), keepdim=True).sign()
    assert len(side.unique()) == 2
    expected = x + 0.001 * noise[0, 0] + 2 * 0.04 * side * w.sign()
    x_adv = pgd(net, x, y, "trades", 0.1, 0.04, 2, noise[:, 0])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-14)


def test_trades_ascends_kl_from_clean_to_adversarial() -> None:
    """Five classes, one step: d KL(p || q) / dx' = W^T (q - p); the reversed KL has other signs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).double()
    net[1].weight.data.mul_(10)
    x, y, noise = batch(side=2)
    start = x + 0.3 * noise[0, 0]
    p, q = net(x).softmax(dim=1), net(start).softmax(dim=1)
    log_ratio = q.log() - p.log()
    reversed_slope = q * (log_ratio - (q * log_ratio).sum(dim=1, keepdim=True))
    ascent = ((q - p) @ net[1].weight).view_as(x).sign()
    assert not torch.equal(ascent, (reversed_slope @ net[1].weight).view_as(x).sign())
    expected = (start + 0.1 * ascent).clamp(0, 1)
    x_adv = pgd(net, x, y, "trades", 1.0, 0.1, 1, 300 * noise[:, 0])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-14)


def test_pgd_stays_in_the_unit_box() -> None:
    net, w = two_class_net()
    x, _, noise = batch(side=2)
    x, y = x.round(), torch.zeros(4, dtype=torch.long)
    x_adv = pgd(net, x, y, "at", 0.1, 0.04, 6, noise[:, 0])
    torch.testing.assert_close(x_adv, (x + 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "scale", "clamped"),
    [("at", 0.1, True), ("alp", 0.1, True), ("trades", 0.001, False), ("mart", 0.001, False)],
)
def test_first_attacked_point(method: str, scale: float, clamped: bool) -> None:
    net, _ = two_class_net()
    x, _, noise = batch(side=2)
    x, y = x.round(), torch.zeros(4, dtype=torch.long)
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    pgd(net, x, y, method, 0.1, 0.04, 1, noise[:, 0])
    start = x + scale * noise[0, 0]
    first = next(point for point in seen if not torch.equal(point, x))
    torch.testing.assert_close(first, start.clamp(0, 1) if clamped else start, rtol=0, atol=0)


def test_restarts_keep_the_larger_final_loss_per_sample() -> None:
    """On the linear net a TRADES attack ends on the side where it started."""
    net, _ = two_class_net()
    x, y, noise = batch(size=16, side=2, restarts=3)
    x, noise = 0.3 + 0.4 * x, noise[:, 0]
    ends = [pgd(net, x, y, "trades", 0.1, 0.04, 2, noise[r : r + 1]) for r in range(3)]
    p = net(x).softmax(dim=1)
    kl = [F.kl_div(net(e).log_softmax(dim=1), p, reduction="none").sum(dim=1) for e in ends]
    order = {tuple(row) for row in torch.stack(kl, dim=1).argsort(dim=1).tolist()}
    assert (1, 2, 0) in order
    assert (0, 1, 2) in order
    winner = torch.stack(kl).argmax(dim=0)
    expected = torch.stack(ends)[winner, torch.arange(16)]
    assert torch.equal(pgd(net, x, y, "trades", 0.1, 0.04, 2, noise), expected)


def test_restarts_keep_the_earlier_of_equals() -> None:
    """A constant net: all losses are equal and no gradient moves the start."""
    net, _ = two_class_net()
    nn.init.zeros_(net[1].weight)
    x, _, noise = batch(side=2, restarts=3)
    y = torch.zeros(4, dtype=torch.long)
    x_adv = pgd(net, x, y, "at", 0.1, 0.04, 3, noise[:, 0])
    expected = torch.maximum(torch.minimum(x + 0.1 * noise[0, 0], x + 0.1), x - 0.1).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("method", ["at", "trades"])
def test_bn_train_uses_batch_statistics(method: str) -> None:
    """As a net whose BatchNorm layers have no running statistics at all."""
    net = tiny_net(0)
    stateless = copy.deepcopy(net)
    for norm in (stateless[0], stateless[2]):
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    x, y, noise = batch()
    with_batch = pgd(net, x, y, method, **ATTACK, noise=noise[:, 0], bn="train")
    assert torch.equal(with_batch, pgd(stateless, x, y, method, **ATTACK, noise=noise[:, 0]))
    assert not torch.equal(with_batch, pgd(net, x, y, method, **ATTACK, noise=noise[:, 0]))


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_attack_leaves_no_trace(bn: str) -> None:
    net = tiny_net(0).train()
    before = copy.deepcopy(net.state_dict())
    x, y, noise = batch()
    x_adv = pgd(net, x, y, "trades", **ATTACK, noise=noise[:, 0], bn=bn)
    assert not x_adv.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


CELLS = [
    # one peer
    (["natural"], [["clean"]]),
    (["at"], [["adv0"]]),
    (["trades"], [["clean", "adv0"]]),
    (["alp"], [["adv0", "clean"]]),
    (["mart"], [["clean", "adv0"]]),
    # the paper's pair
    (["trades", "alp"], [["clean", "adv0", "adv1"], ["adv1", "clean", "adv0"]]),
    # a natural peer is taught on the clean view, which mart has already and at has not
    (
        ["at", "natural", "mart"],
        [["adv0", "clean", "adv2"], ["clean", "adv0", "adv2"], ["clean", "adv2", "adv0"]],
    ),
    # two peers taught on the same view ask for it once
    (["natural", "at", "natural"], [["clean", "adv1"], ["adv1", "clean"], ["clean", "adv1"]]),
]


@pytest.mark.parametrize(("names", "order"), CELLS, ids=["-".join(names) for names, _ in CELLS])
def test_forwards_and_running_statistics_follow_the_documented_order(
    names: list[str], order: list[list[str]]
) -> None:
    """The first layer's statistics are momentum updates by the views' own means and variances."""
    nets = [tiny_net(k) for k in range(len(names))]
    stats = [(net[0].running_mean.clone(), net[0].running_var.clone()) for net in nets]
    result = step(nets, names)
    assert list(result.logits) == [(k, view) for k, row in enumerate(order) for view in row]
    for net, (mean, var), row in zip(nets, stats, order, strict=True):
        for view in row:
            pixels = result.views[view].transpose(0, 1).flatten(1)
            mean = 0.9 * mean + 0.1 * pixels.mean(dim=1)
            var = 0.9 * var + 0.1 * pixels.var(dim=1, unbiased=True)
        torch.testing.assert_close(net[0].running_mean, mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(net[0].running_var, var, rtol=1e-13, atol=0)
        assert net[0].num_batches_tracked == len(row)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_views_attack_each_peer_as_it_was_before_the_step(bn: str) -> None:
    nets = [tiny_net(0), tiny_net(1)]
    methods: Methods = [("trades", {}), ("alp", {})]
    x, y, noise = batch(restarts=2, peers=2)
    before = copy.deepcopy(nets)
    result = cat_step(
        nets, methods, x, y, noise, **ATTACK, alpha=0.3, collab="cat", **SGD, buffers=None, bn=bn
    )
    assert torch.equal(result.views["clean"], x)
    for k, (name, _) in enumerate(methods):
        expected = pgd(before[k], x, y, name, **ATTACK, noise=noise[:, k], bn=bn)
        assert torch.equal(result.views[f"adv{k}"], expected)


def test_without_collaboration_peers_are_strangers() -> None:
    names = ["trades", "alp"]
    result = step([tiny_net(0), tiny_net(1)], names, collab="none")
    assert list(result.logits) == [(0, "clean"), (0, "adv0"), (1, "adv1"), (1, "clean")]
    assert result.guidance == [0.0, 0.0]
    assert result.totals == [sum(terms.values()) for terms in result.terms]
    assert set(result.views) == {"clean", "adv0", "adv1"}


def test_totals_weigh_objective_and_guidance() -> None:
    """Recomputed with torch's losses from the logit table, peers (trades, alp, natural)."""
    _x, y, _ = batch()
    result = step([tiny_net(k) for k in range(3)], ["trades", "alp", "natural"], alpha=0.3)
    z = result.logits
    log_p = {cell: logits.log_softmax(dim=1) for cell, logits in z.items()}

    def kl(target: tuple[int, str], own: tuple[int, str]) -> Tensor:
        return F.kl_div(log_p[own], log_p[target], reduction="batchmean", log_target=True)

    own = [
        F.cross_entropy(z[0, "clean"], y) + 6.0 * kl((0, "clean"), (0, "adv0")),
        0.5 * (F.cross_entropy(z[1, "adv1"], y) + F.cross_entropy(z[1, "clean"], y))
        + F.mse_loss(z[1, "adv1"], z[1, "clean"]),
        F.cross_entropy(z[2, "clean"], y),
    ]
    for k, view in enumerate(["adv0", "adv1", "clean"]):
        guidance = sum(kl((j, view), (k, view)) for j in range(3) if j != k)
        torch.testing.assert_close(result.guidance[k], guidance)
        torch.testing.assert_close(sum(result.terms[k].values()), own[k])
        torch.testing.assert_close(result.totals[k], 0.3 * own[k] + 0.7 * guidance)


@pytest.mark.slow
@pytest.mark.parametrize("names", [["trades"], ["trades", "alp"], ["at", "natural", "mart"]])
def test_gradients_are_those_of_the_own_total_alone(names: list[str]) -> None:
    """Finite differences of peer k's total in peer k's weights; views do not move with them.

    The sign steps make the views locally constant. Undetached teachers would add the other
    peers' totals to the joint gradient.
    """
    nets = [tiny_net(k) for k in range(len(names))]
    result = step(copy.deepcopy(nets), names)
    for k in range(len(names)):
        for name in ("0.weight", "1.weight", "2.bias", "5.weight", "5.bias"):
            totals = []
            for change in (1e-6, -1e-6):
                moved = copy.deepcopy(nets)
                moved[k].get_parameter(name).data.view(-1)[0] += change
                again = step(moved, names)
                assert all(torch.equal(v, again.views[n]) for n, v in result.views.items())
                totals.append(again.totals[k].item())
            slope = (totals[0] - totals[1]) / 2e-6
            assert result.grads[k][name].view(-1)[0].item() == pytest.approx(slope, 1e-6, 1e-8)


def test_teachers_get_no_gradient() -> None:
    """On the last bias: alpha (p_k - onehot) + (1 - alpha) (p_k - p_j), averaged; no p_j term."""
    _, y, _ = batch()
    result = step([tiny_net(0), tiny_net(1)], ["natural", "natural"], alpha=0.3)
    p = [result.logits[k, "clean"].softmax(dim=1) for k in range(2)]
    onehot = F.one_hot(y, 5)
    for k in range(2):
        expected = 0.3 * (p[k] - onehot) + 0.7 * (p[k] - p[1 - k])
        torch.testing.assert_close(result.grads[k]["5.bias"], expected.mean(dim=0))


@pytest.mark.parametrize("collab", ["cat", "none"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_one_peer_is_plain_training(collab: str, nesterov: bool) -> None:
    """Two steps of TRADES with torch's losses and torch's SGD on the same views."""
    x, y, noise = batch()
    net, plain = tiny_net(0), tiny_net(0)
    settings = {**SGD, "nesterov": nesterov}
    optimizer = torch.optim.SGD(plain.parameters(), **settings)
    buffers = None
    for _ in range(2):
        result = cat_step(
            [net], [("trades", {"beta": 2.0})], x, y, noise, **ATTACK, alpha=0.05, collab=collab,
            **settings, buffers=buffers,
        )  # fmt: skip
        buffers = result.buffers
        optimizer.zero_grad()
        clean, adv = plain(x), plain(result.views["adv0"])
        kl = F.kl_div(
            adv.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True
        )
        loss = F.cross_entropy(clean, y) + 2.0 * kl
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(result.totals[0], loss.detach())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("nesterov", "after_one", "after_two"),
    [
        # g1 = 3 + 0.5 * 2 = 4, buf1 = 4, w = 2 - 0.1 * 4 = 1.6
        # g2 = 1 + 0.5 * 1.6 = 1.8, buf2 = 0.9 * 4 + 1.8 = 5.4, w = 1.6 - 0.54
        pytest.param(False, 1.6, 1.06, id="heavy-ball"),
        # w = 2 - 0.1 * (4 + 0.9 * 4) = 1.24
        # g2 = 1 + 0.5 * 1.24 = 1.62, buf2 = 3.6 + 1.62 = 5.22, w = 1.24 - 0.1 * (1.62 + 4.698)
        pytest.param(True, 1.24, 0.6082, id="nesterov"),
    ],
)
def test_sgd_by_hand(nesterov: bool, after_one: float, after_two: float) -> None:
    w = {"w": torch.tensor(2.0, dtype=torch.float64), "unused": torch.tensor(7.0)}
    settings: dict[str, Any] = {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.5,
        "nesterov": nesterov,
    }
    buffers: dict[str, Tensor] = {}
    for grad, expected in ((3.0, after_one), (1.0, after_two)):
        grads = {"w": torch.tensor(grad, dtype=torch.float64)}
        buffers = sgd_update(w, grads, buffers, **settings)
        assert w["w"].item() == pytest.approx(expected, rel=1e-14)
    assert w["unused"] == 7.0
