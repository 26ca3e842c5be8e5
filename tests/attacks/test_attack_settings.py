"""Settings that every method has: where its attack starts, BatchNorm's mode, what is logged."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fastcat.attacks.multi_norm import msd_start
from fastcat.attacks.pgd import PGD, attack, attack_all
from fastcat.attacks.squeeze import Squeeze
from fastcat.attacks.threat import NORMS, ThreatModel
from fastcat.batch import Batch
from fastcat.config.peers import parse_peers
from fastcat.config.threats import choose_threats
from fastcat.errors import InputError
from fastcat.objective import Objective
from fastcat.objectives import METHODS, make_objective
from fastcat.step.algorithm import attack_views, start_noise
from fastcat.terms import ce
from tests.harness.networks import images, noise_of, seeded, tiny_net
from tests.harness.teams import team_of

THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=3)
NOT_ATTACKED = ("natural", "free", "teacher")


def own(*, bn: str = "mine") -> Objective:
    """A method whose bn is no attack's."""
    return Objective(views=("clean",), inner=None, outer=ce("clean", {"mine": 0.0}.get(bn, 0.5)))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NOT_ATTACKED])
def test_every_attack_of_every_attacked_method_takes_them(name: str) -> None:
    objective = make_objective(name, {"start": "unclipped", "bn": "moving"})
    plain = make_objective(name, {})
    assert objective.attacks.keys() == plain.attacks.keys()
    for views, inner in objective.attacks.items():
        assert isinstance(inner, PGD | Squeeze)
        assert (inner.start, inner.bn) == ("unclipped", "moving")
        # and nothing else
        before = plain.attacks[views]
        rest = {key: value for key, value in vars(inner).items() if key not in ("start", "bn")}
        assert rest == {key: vars(before)[key] for key in rest}


@pytest.mark.parametrize("setting", ["start=uniform", "bn=train"])
@pytest.mark.parametrize("peer", ["natural", "free", "act:role=natural", "teacher:weights=a"])
def test_who_has_no_attack_before_the_step_takes_none(peer: str, setting: str) -> None:
    with pytest.raises(InputError, match=f"set: leave {setting.partition('=')[0]} out"):
        parse_peers(f"{peer}:{setting}", "resnet18")


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        ("mart:start=somewhere", "unknown attack start 'somewhere'"),
        ("rslad:bn=on", "unknown attack bn 'on'"),
        ("trades:start=zero", "no gradient at the image itself"),
        ("at:start=gaussian:threat=msd", "msd starts at the image itself: leave start out"),
        ("at:start=uniform:threat=max-official", "max-official starts at the image itself: leave"),
        ("at:log_forward=perhaps", "at:log_forward=perhaps is no bool"),
        ("trades:strat=uniform", "every method takes start, bn, log_forward, threat and awp"),
    ],
)
def test_what_means_nothing_is_refused(peer: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        parse_peers(peer, "resnet18")


def test_a_start_that_msd_has_anyway_is_not_refused() -> None:
    at, trades = parse_peers("at:start=zero:threat=msd,trades:start=uniform:threat=msd", "resnet18")
    assert [msd_start(peer.objective.inner) for peer in (at, trades)] == ["zero", "uniform"]


def test_a_methods_own_setting_of_the_same_name_comes_first() -> None:
    name = f"{__name__}:own"
    assert make_objective(name, {}).outer == ce("clean")
    assert make_objective(name, {"bn": "other"}).outer == ce("clean", 0.5)


@pytest.mark.parametrize("peer", ["natural", "at", "trades", "st", "pgd-cw", "free"])
def test_the_logged_forward_is_any_methods(peer: str) -> None:
    objective = make_objective(peer, {"log_forward": "true"})
    assert objective.after == ("clean",)
    assert make_objective(peer, {"log_forward": "false"}).after == ()


def test_a_start_that_is_not_clipped_is_so_before_the_first_gradient_alone() -> None:
    x, y = images(0, 5)
    seen: list[torch.Tensor] = []
    net = tiny_net(0).eval()
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    noise = THREAT.draw_noise("unclipped", x, seeded())
    assert torch.equal(noise, THREAT.draw_noise("uniform", x, seeded()))
    view = attack(net, x, y, THREAT, start="unclipped", generator=seeded())
    assert torch.equal(seen[0], x + THREAT.eps * noise)
    assert seen[0].min() < 0
    assert seen[0].max() > 1
    for image in (*seen[1:], view):
        assert image.min() >= 0
        assert image.max() <= 1
        assert (image - x).abs().max() <= THREAT.eps + 1e-6


# statistics that move


class Counted(nn.Module):
    """A network that counts its forwards by the mode of its first BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)

    @property
    def moved(self) -> int:
        return int(self.net.bn1.num_batches_tracked)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize(
    ("inner", "restarts", "forwards"),
    [
        pytest.param(PGD(), 1, 3, id="steps"),
        pytest.param(PGD(last=True), 1, 4, id="steps-and-last"),
        pytest.param(PGD(), 2, 8, id="restarts-are-compared"),
        pytest.param(PGD(last=True), 2, 8, id="restarts-and-last"),
        pytest.param(PGD(loss="kl", start="gaussian"), 1, 4, id="clean-and-steps"),
    ],
)
@pytest.mark.parametrize("bn", ["eval", "train", "moving"])
def test_moving_statistics_move_once_a_forward_and_others_never(
    inner: PGD, restarts: int, forwards: int, bn: Any
) -> None:
    x, y = images(0, 5)
    net = Counted().train()
    inner = PGD(loss=inner.loss, start=inner.start, last=inner.last, bn=bn)
    noise = torch.stack([THREAT.draw_noise(inner.start, x, seeded(r)) for r in range(restarts)])
    attack_all([net], [inner], x, y, THREAT, noise[:, None])
    assert net.moved == (forwards if bn == "moving" else 0)
    assert all(module.training for module in net.modules())
    assert net.net.bn1.track_running_stats


@pytest.mark.parametrize(
    ("name", "forwards"),
    [
        # two a step, of which l1 has twice as many, a look at where l1 ends, in one turn each
        pytest.param("avg-official", [6, 6, 2 * 6 + 1], id="avg-official"),
        # and a look at the three ends
        pytest.param("max-official", [6 + 6 + 2 * 6 + 1 + 3], id="max-official"),
        # and a look at three candidates a step
        pytest.param("msd-official", [3 * (1 + 3)], id="msd-official"),
    ],
)
@pytest.mark.parametrize("bn", ["train", "moving"])
def test_attacks_of_maini_move_statistics_as_often_as_they_forward(
    name: str, forwards: list[int], bn: str
) -> None:
    x, y = images(0, 5)
    threats = choose_threats(name, [replace(THREAT, norm=norm, eps=1.0) for norm in NORMS])
    team = team_of([make_objective("at", {"bn": bn})], names=["at"], threats=[threats])
    norm = team.peers[0].model.get_submodule("bn1")
    noise, batch = start_noise(team, x, seeded()), Batch(x, y, torch.arange(5))
    for turn, expected in enumerate(forwards):
        before = int(norm.num_batches_tracked)
        attack_views(team, batch, noise, turn)
        assert norm.num_batches_tracked - before == (expected if bn == "moving" else 0)


def test_an_attack_by_itself_never_moves_statistics() -> None:
    x, y = images(0, 5)
    with pytest.raises(InputError, match="change the model: expected eval or train"):
        attack(tiny_net(0), x, y, THREAT, bn="moving")  # type: ignore[arg-type]


def test_moving_statistics_are_those_of_the_iterates() -> None:
    """The same views as with bn=train, and running means that remember each of them."""
    x, y = images(0, 5)
    still, moving = tiny_net(0), tiny_net(0)
    noise = THREAT.draw_noise("uniform", x, seeded())[None, None]
    views = [
        attack_all([net], [PGD(bn=bn)], x, y, THREAT, noise)[0]
        for net, bn in ((still, "train"), (moving, "moving"))
    ]
    assert torch.equal(*views)
    seen: list[torch.Tensor] = []
    still.bn1.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    attack_all([still], [PGD(bn="train")], x, y, THREAT, noise)
    mean = still.bn1.running_mean.clone()
    for activations in seen:
        mean = 0.9 * mean + 0.1 * activations.mean((0, 2, 3))
    torch.testing.assert_close(moving.bn1.running_mean, mean)


def test_noise_is_drawn_for_the_start_that_was_asked_for() -> None:
    """Catches a start of standard normal noise, eps times as far, under the name of uniform."""
    x, _ = images(0, 5)
    team = team_of([make_objective("trades", {"start": "uniform"})], names=["trades"])
    assert start_noise(team, x, seeded()).abs().max() <= 1
    assert noise_of(THREAT, x, "gaussian").abs().max() > 1
