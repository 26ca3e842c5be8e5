"""Networks that begin in place are attacked, judged and trained as others; images stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastcat
from fastcat.attacks.frozen import Frozen
from fastcat.attacks.pgd import ATTACK_LOSSES, attack, logits
from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.objectives import make_objective
from fastcat.step.algorithm import attack_views, collaborative_step, start_noise
from fastcat.step.team import Team
from tests.harness.comparison import assert_same
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.teams import team_of

pytestmark = pytest.mark.usefixtures("one_thread")


class First(nn.Module):
    """A TinyNet behind a function of the images."""

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        self.function, self.net = function, tiny_net(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.function(x))


# in place, and what it computes; ReLU alone changes no value of an image
PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "normalised": (lambda x: x.sub_(0.5).div_(0.25), lambda x: (x - 0.5) / 0.25),
    "clamped": (lambda x: x.clamp_(0, 1), lambda x: x.clamp(0, 1)),
    "relu": (nn.ReLU(inplace=True), nn.ReLU()),
    "through a view": (
        lambda x: x.flatten(2).mul_(2).view_as(x),
        lambda x: 2 * x.flatten(2).view_as(x),
    ),
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@each_pair
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_attacked_and_judged(pair: tuple[Callable, Callable], loss: str) -> None:
    """Catches the error of torch for a leaf that is written to, and images changed for "kl"."""
    x, y = images(0, 5)
    before = x.clone()
    threat = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=2, restarts=2)
    ours, theirs = (
        attack(First(function), x, y, threat, loss=loss, generator=seeded()) for function in pair
    )
    assert torch.equal(ours, theirs)
    reports = [
        fastcat.evaluate(First(function), [(x, y)], "clean,fgsm,pgd2,cw2", threat)
        for function in pair
    ]
    assert reports[0] == reports[1]
    assert torch.equal(x, before)


@each_pair
def test_frozen(pair: tuple[Callable, Callable]) -> None:
    """The twin exists, and freezing changes no example."""
    x, _ = images(0, 2)
    before = x.clone()
    frozen = Frozen(First(pair[0]).eval(), torch.float32, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(frozen(x.clone()), First(pair[1]).eval()(x))


def train(team: Team, steps: int) -> list[Tensor]:
    values = []
    for step in range(steps):
        x, y = images(step, 6)
        x = x.to(memory_format=torch.channels_last)
        before = x.clone()
        batch = Batch(x, y, torch.arange(6))
        noise = start_noise(team, x, seeded(step))
        views = attack_views(team, batch, noise)
        values += [views[name] for name in sorted(views)]
        values.append(collaborative_step(team, batch, noise))
        assert torch.equal(x, before), f"step {step}"
    return values


METHODS = {
    "trades,alp": ("trades", "alp"),
    "mat": ("boosted", "boosted"),
    "st": ("st",),
    "fast": ("fast",),
    "free": ("free",),
    "own batch statistics": ("at:bn=train", "natural"),
    "distillation": ("teacher", "iad"),
    "msd": ("at",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("twin", [True, False], ids=["twin", "as it is"])
def test_trained(twin: bool, name: str) -> None:
    """To the bit the weights of the network that copies: views are read by every peer, and again.

    Catches clean images that the first peer's forward has changed for all that come after it.
    """
    objectives = []
    for text in METHODS[name]:
        method, *settings = text.split(":")
        chosen = dict(one.split("=") for one in settings)
        objectives.append(method if method == "teacher" else make_objective(method, chosen))
    names = [text.partition(":")[0] for text in METHODS[name]]
    l2 = ThreatModel(norm="l2", eps=0.5, steps=2)
    threats = Threats((ThreatModel(steps=2), l2), "msd") if name == "msd" else None
    found = []
    for function in PAIRS["normalised"]:
        team = team_of(
            objectives,
            [First(function, k) for k in range(len(names))],
            names,
            collab="none" if name in ("distillation", "own batch statistics") else "cat",
            threats=None if threats is None else [threats],
            awp=[0.01 if name == "trades,alp" and k == 0 else 0.0 for k in range(len(names))],
        )
        assert not team.remarks
        for peer in team.peers:
            if not twin:
                peer.frozen = None
            peer.begin_attacks(images(0, 6)[0])
        values = train(team, 2)
        found.append((values, [peer.model.state_dict() for peer in team.peers]))
    for ours, theirs in zip(*(values for values, _ in found), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(*(states for _, states in found), strict=True):
        assert_same(ours, theirs)


def test_only_twins_that_write_to_their_images_get_a_copy() -> None:
    """A copy in every step of an attack is work that most networks can do without."""
    x = images(0, 2)[0]
    for inplace, plain in PAIRS.values():
        assert Frozen(First(inplace), torch.float32, x).in_place
        assert not Frozen(First(plain), torch.float32, x).in_place
    twin = Frozen(tiny_net(0), torch.float32, x)
    seen: list[int] = []
    network = twin._network

    def watched(images: Tensor) -> Tensor:
        seen.append(images.data_ptr())
        return network(images)

    twin.forward = watched
    logits(twin, x)
    twin.in_place = True
    logits(twin, x)
    assert seen[0] == x.data_ptr() != seen[1]
