"""PGD: what it finds lies in ball and box and is worse, and the attacked network never notices."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.attacks.pgd import (
    ATTACK_LOSSES,
    PGD,
    at_least_float32,
    attack,
    attack_all,
)
from fastcat.attacks.threat import Start, ThreatModel
from fastcat.errors import InputError
from tests.harness.attack_losses import climbed
from tests.harness.networks import CLASSES, images, mixing, seeded, tiny_net

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)
# x + eps is rounded to float32, and so is the difference
ROUNDING = 2**-23

Trained = tuple[nn.Module, Tensor, Tensor]


class Watched(nn.Module):
    """A network that keeps each batch it is shown."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.net(x)


def constant_logits(x: Tensor) -> Tensor:
    """Logits that do not depend on x, so that every gradient is zero."""
    return 0 * x.flatten(1)[:, :CLASSES] + torch.arange(CLASSES)


def assert_allowed(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    assert (x_adv - x).abs().max() <= threat.eps + ROUNDING
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


# ball and box


@pytest.mark.parametrize("size", [1, 7], ids=["one-image", "seven-images"])
@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_every_iterate_lies_in_ball_and_box(loss: str, start: Start, size: int) -> None:
    x, y = images(0, size)
    net = Watched(tiny_net(0).eval())
    if (loss, start) == ("kl", "zero"):
        # the KL is least where the two predictions are equal: no direction leads away
        with pytest.raises(InputError, match="no gradient at the image itself"):
            attack(net, x, y, THREAT, loss=loss, start=start)
        return
    x_adv = attack(net, x, y, THREAT, loss=loss, start=start, generator=seeded())
    iterates = net.seen[1:] if loss == "kl" else net.seen  # the target's forward of x comes first
    assert len(iterates) == THREAT.steps
    # a Gaussian start leaves the box by a thousandth, and is never returned
    for iterate in iterates[1 if start == "gaussian" else 0 :]:
        assert_allowed(iterate, x, THREAT)
    assert_allowed(x_adv, x, THREAT)
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert x_adv.isfinite().all()
    # it also uses the ball: steps of 3/255 that keep their sign end on the edge of 8/255
    assert (x_adv - x).abs().max() >= THREAT.eps - ROUNDING


@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
def test_zero_gradient_leaves_the_start_where_it_is(start: Start) -> None:
    x, y = images(0, 3)
    x_adv = attack(constant_logits, x, y, THREAT, start=start, generator=seeded())
    noise = THREAT.draw_noise(start, x, seeded())
    scale = {"zero": 0.0, "uniform": THREAT.eps, "gaussian": 0.001}[start]
    torch.testing.assert_close(x_adv, (x + scale * noise).clamp(0, 1), rtol=0, atol=ROUNDING)
    assert_allowed(x_adv, x, THREAT)


# it is worse


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A network in eval mode that knows its 64 images: each class is bright in its own place."""
    x, y = images(3, 64)
    x = 0.5 + 0.1 * (x - 0.5)
    for i, label in enumerate(y.tolist()):
        x[i, label % 3, label : label + 3, label : label + 3] += 0.2
    net, generator = tiny_net(3), seeded()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        # noisy images, or the network would be less sure of them than of the noise
        F.cross_entropy(net(x + 0.01 * torch.randn(x.shape, generator=generator)), y).backward()
        optimizer.step()
    net.requires_grad_(False).eval()
    return net, x, y


@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_attack_raises_its_loss_of_every_image(trained: Trained, loss: str, start: Start) -> None:
    net, x, y = trained
    assert (net(x).argmax(1) == y).float().mean() > 0.95
    x_adv = attack(net, x, y, THREAT, loss=loss, start=start, generator=seeded())
    before, after = (climbed(loss, net, x, view, y) for view in (x, x_adv))
    assert (after > before).all()
    # random noise of the same size does almost nothing
    noisy = (x + THREAT.eps * THREAT.draw_noise("uniform", x, seeded()).sign()).clamp(0, 1)
    gain, noise_gain = (after - before).mean(), (climbed(loss, net, x, noisy, y) - before).mean()
    assert gain > 5 * noise_gain.abs()
    assert (net(x_adv).argmax(1) == y).float().mean() < 0.9


def test_more_steps_raise_the_loss_further(trained: Trained) -> None:
    net, x, y = trained
    means = []
    for steps in (1, 3, 10):
        threat = ThreatModel(eps=8 / 255, step_size=2 / 255, steps=steps)
        x_adv = attack(net, x, y, threat, start="zero")
        means.append(F.cross_entropy(net(x_adv), y).item())
    assert means == sorted(means)
    assert means[-1] > 1.5 * means[0]


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_of_restarts_each_image_keeps_the_worst(trained: Trained, loss: str) -> None:
    """From the very noise of three single attacks; no image is worse off with fewer restarts."""
    net, x, y = trained
    threat = ThreatModel(eps=8 / 255, step_size=4 / 255, steps=1, restarts=3)
    inners = [PGD(loss=loss), PGD(loss=loss, start="gaussian")]
    noise = torch.stack(
        [
            torch.stack([THREAT.draw_noise(i.start, x, seeded(10 * r)) for i in inners])
            for r in range(3)
        ]
    )
    best = attack_all([net, net], inners, x, y, threat, noise)
    singles = [attack_all([net, net], inners, x, y, threat, noise[r : r + 1]) for r in range(3)]
    for k in range(2):
        losses = torch.stack([climbed(loss, net, x, single[k], y) for single in singles])
        winner = losses.argmax(0)
        assert len(winner.unique()) == 3, "every restart must win somewhere to show anything"
        expected = torch.stack([singles[r][k, i] for i, r in enumerate(winner.tolist())])
        assert torch.equal(best[k], expected)
        assert (climbed(loss, net, x, best[k], y) >= losses - 1e-6).all()


def test_restarts_draw_one_noise_after_the_other(trained: Trained) -> None:
    net, x, y = trained
    generator = seeded()
    single = ThreatModel(eps=8 / 255, step_size=4 / 255, steps=1)
    ends = [attack(net, x, y, single, generator=generator) for _ in range(3)]
    threat = ThreatModel(eps=8 / 255, step_size=4 / 255, steps=1, restarts=3)
    best = attack(net, x, y, threat, generator=seeded())
    worst = torch.stack([climbed("ce", net, x, end, y) for end in ends]).amax(0)
    torch.testing.assert_close(climbed("ce", net, x, best, y), worst, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1.0, math.nan], ids=["equal", "nan"])
def test_of_equal_restarts_the_first_is_kept(factor: float) -> None:
    """Also where no loss is a number: the clean image would be no attack at all."""
    x, y = images(0, 3)

    def net(x: Tensor) -> Tensor:
        return factor * constant_logits(x)

    noise = torch.stack([THREAT.draw_noise("uniform", x, seeded(r)) for r in range(3)])[:, None]
    restarts, inners = ThreatModel(steps=1, restarts=3), [PGD(start="uniform")]
    best = attack_all([net], inners, x, y, restarts, noise)
    assert torch.equal(best, attack_all([net], inners, x, y, ThreatModel(steps=1), noise[:1]))
    assert not torch.equal(best[0], x)


def test_networks_attacked_together_are_attacked_as_alone() -> None:
    x, y = images(0, 5)
    nets = [tiny_net(k) for k in range(3)]
    inners = [
        PGD(loss="kl", start="gaussian"), PGD(bn="train"), PGD(loss="margin", start="zero")
    ]  # fmt: skip
    noise = torch.stack([THREAT.draw_noise(inner.start, x, seeded()) for inner in inners])[None]
    together = attack_all(nets, inners, x, y, THREAT, noise)
    for k in range(3):
        alone = attack_all([nets[k]], [inners[k]], x, y, THREAT, noise[:, k : k + 1])[0]
        assert torch.equal(together[k], alone)
        assert not torch.equal(together[k], together[(k + 1) % 3])


# images mixed of two


def mixed_by(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each image mixed with the next: images, labels mixed in, shares."""
    _, share = mixing(0, len(x))
    part = share.view(-1, 1, 1, 1)
    return part * x + (1 - part) * x.roll(-1, 0), y.roll(-1), share


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_of_restarts_each_mixed_image_keeps_the_worst_for_both_labels(
    trained: Trained, loss: str
) -> None:
    """Catches a ranking by one label alone, which would keep other restarts."""
    net, x, y = trained
    x, y_mixed, share = mixed_by(x, y)
    threat = ThreatModel(eps=8 / 255, step_size=4 / 255, steps=1, restarts=3)
    inners = [PGD(loss=loss)]
    noise = torch.stack([THREAT.draw_noise("uniform", x[None], seeded(r)) for r in range(3)])
    best, *singles = (
        attack_all([net], inners, x, y, threat, some, 1.0, y_mixed, share)[0]
        for some in (noise, *noise.split(1))
    )
    by_own, by_other = (
        torch.stack([climbed(loss, net, x, single, labels) for single in singles])
        for labels in (y, y_mixed)
    )
    winner = (share * by_own + (1 - share) * by_other).argmax(0)
    for other in (by_own, by_other):
        assert torch.equal(winner, other.argmax(0)) == (loss == "kl")
    assert torch.equal(best, torch.stack(singles)[winner, torch.arange(len(x))])


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_an_attack_climbs_both_labels_as_far_as_they_share_an_image(
    trained: Trained, loss: str
) -> None:
    """One step along the sign of the gradient, in float64, where rounding decides no sign."""
    net, x, y = trained
    x, y_mixed, share = mixed_by(x, y)
    net, x = copy.deepcopy(net).double(), x.double()
    one = ThreatModel(eps=8 / 255, step_size=1 / 255, steps=1)
    noise = one.draw_noise("uniform", x, seeded())[None, None]
    x_adv = attack_all([net], [PGD(loss=loss)], x, y, one, noise, 1.0, y_mixed, share)[0]
    start = one.start(x, "uniform", noise[0, 0]).requires_grad_()
    share = share.double()
    by_both = share * climbed(loss, net, x, start, y)
    by_both = by_both + (1 - share) * climbed(loss, net, x, start, y_mixed)
    (grad,) = torch.autograd.grad(by_both.sum(), start)
    expected = (start.detach() + grad.sign() / 255).clamp(x - 8 / 255, x + 8 / 255).clamp(0, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


def test_an_image_all_its_own_is_attacked_as_a_plain_one() -> None:
    """To the bit, and so are all where no label is read."""
    x, y = images(0, 7)
    y_mixed, share = mixing(0, 7)
    threat = ThreatModel(steps=3, restarts=2)
    nets = [tiny_net(0), tiny_net(1)]
    inners = [PGD(), PGD(loss="kl", start="gaussian")]
    noise = torch.stack(
        [torch.stack([threat.draw_noise(i.start, x, seeded(r)) for i in inners]) for r in range(2)]
    )
    plain = attack_all(nets, inners, x, y, threat, noise)
    whole = attack_all(nets, inners, x, y, threat, noise, 1.0, y_mixed, torch.ones(7))
    assert torch.equal(whole, plain)
    mixed = attack_all(nets, inners, x, y, threat, noise, 1.0, y_mixed, share)
    assert torch.equal(mixed[1], plain[1])
    changed = (mixed[0] != plain[0]).flatten(1).any(1)
    assert torch.equal(changed, (share < 1) & (y_mixed != y))


# BatchNorm and precision


def stateless(net: nn.Module) -> nn.Module:
    """A copy whose BatchNorm knows only the statistics of the batch."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return net


@pytest.mark.parametrize("mode", [True, False], ids=["from-train-mode", "from-eval-mode"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_bn_decides_the_statistics_whatever_mode_the_network_is_in(loss: str, mode: bool) -> None:
    x, y = images(0, 6)
    net = tiny_net(0)
    by_running, by_batch = (
        attack(plain.__call__, x, y, THREAT, loss=loss, generator=seeded())
        for plain in (copy.deepcopy(net).eval(), stateless(net))
    )
    assert not torch.equal(by_running, by_batch)
    net.train(mode)
    for bn, expected in (("eval", by_running), ("train", by_batch)):
        x_adv = attack(net, x, y, THREAT, loss=loss, bn=bn, generator=seeded())
        assert torch.equal(x_adv, expected), bn


def test_half_precision_networks_are_judged_in_float32() -> None:
    x, y = images(0, 5)
    net = tiny_net(0).eval()
    assert at_least_float32(net(x).bfloat16()).dtype == torch.float32
    assert at_least_float32(net.double()(x.double())).dtype == torch.float64
    net.float()
    x_adv = attack(lambda x: net(x).half(), x, y, THREAT, generator=seeded())
    assert x_adv.dtype == torch.float32
    assert_allowed(x_adv, x, THREAT)


def test_scale_of_the_loss_changes_no_sign() -> None:
    x, y = images(0, 5)
    net = tiny_net(0).eval()
    noise = THREAT.draw_noise("uniform", x, seeded())[None, None]
    views = [attack_all([net], [PGD()], x, y, THREAT, noise, scale) for scale in (1.0, 256.0)]
    assert torch.equal(*views)
