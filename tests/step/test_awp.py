"""Weight perturbation: which weights, how far, and that nothing of it stays behind."""

from math import inf, nan
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import fastcat.step.algorithm
from fastcat.batch import Batch
from fastcat.config.peers import parse_peers
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.precision import make_precision
from fastcat.runs.trainer import Trainer
from fastcat.step.algorithm import collaborative_step, perturbed, start_noise
from fastcat.step.awp import WeightPerturbation
from fastcat.step.team import Team
from tests.harness import tiny
from tests.harness.comparison import assert_same
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.teams import SGD, peer_of, team_of
from tests.harness.traces import everything

pytestmark = pytest.mark.usefixtures("one_thread")

GAMMA = 0.02


def batch(seed: int = 0) -> Batch:
    x, y = images(seed, 7)
    return Batch(x.to(memory_format=torch.channels_last), y, torch.arange(7))


def take_step(team: Team, seed: int = 0) -> Tensor:
    return collaborative_step(team, batch(seed), start_noise(team, batch(seed).x, seeded(seed)))


def weights_of(team: Team) -> dict[str, Tensor]:
    """By "0 conv1.weight"."""
    return {
        f"{k} {name}": p.detach().clone()
        for k, peer in enumerate(team.peers)
        for name, p in peer.model.named_parameters()
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("methods", ["trades", "at", "trades alp", "natural mart"])
def test_at_rate_0_the_weights_keep_every_bit(methods: str, precision: str) -> None:
    """Catches w + v - v, whose roundings are an update of their own."""
    team = team_of(
        methods.split(),
        awp=[GAMMA] * len(methods.split()),
        precision=make_precision(precision, torch.device("cpu")),
        lr=0.0,
        ema=0.5,
    )
    if precision == "fp16":
        # the scale that a run finds by itself after some skipped steps
        team.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = weights_of(team)
    for seed in range(2):
        take_step(team, seed)
    assert_same(before, weights_of(team))
    for peer in team.peers:
        assert torch.equal(peer.optimizer.ema, peer.optimizer.flat)
        assert peer.optimizer.momentum_buffer.any()


def test_convolutions_and_linear_layers_move_by_gamma_of_their_size_and_nothing_else() -> None:
    team = team_of(["trades", "alp"], awp=[GAMMA, 0.0])
    before, views = weights_of(team), {f"adv{k}": images(k + 1, 7)[0] for k in range(2)}
    with perturbed(team, batch(), {"clean": batch().x, **views}):
        now = weights_of(team)
    assert_same(before, weights_of(team))
    for name, w in before.items():
        length = (now[name] - w).norm()
        if w.dim() > 1 and name.startswith("0"):
            torch.testing.assert_close(length, GAMMA * w.norm(), rtol=1e-4, atol=0)
        else:
            assert length == 0, name


def test_the_perturbed_loss_is_larger() -> None:
    """Catches a perturbation that descends, to first order."""
    plain, raised = (team_of(["trades", "alp"], awp=[g, g]) for g in (0.0, 0.003))
    for name, low, high in zip(plain.loss.names, take_step(plain), take_step(raised), strict=True):
        assert not name.endswith("/loss") or high > low, name


def test_strength_0_changes_no_bit() -> None:
    """So a warm-up is the plain method, in one captured graph."""
    plain, warming = team_of(["trades", "alp"]), team_of(["trades", "alp"], awp=[GAMMA] * 2)
    for peer in warming.peers:
        assert peer.awp is not None
        peer.awp.set_active(False)
    for seed in range(2):
        assert torch.equal(take_step(plain, seed), take_step(warming, seed))
    for ours, theirs in zip(warming.peers, plain.peers, strict=True):
        assert_same(ours.model.state_dict(), theirs.model.state_dict())
        assert torch.equal(ours.optimizer.momentum_buffer, theirs.optimizer.momentum_buffer)


def test_running_statistics_move_at_the_perturbed_weights_once_a_cell() -> None:
    """Catches a pass for the gradient that moves them, and one that comes too late."""
    team, twin = team_of(["trades", "alp"], awp=[GAMMA] * 2), team_of(["trades", "alp"])
    views = {"clean": batch().x, **{f"adv{k}": images(k + 1, 7)[0] for k in range(2)}}
    before = [everything(peer.model) for peer in team.peers]
    with perturbed(team, batch(), views):
        for peer, other, old in zip(team.peers, twin.peers, before, strict=True):
            now = everything(peer.model)
            moved = {name for name in old if not _same(old[name], now[name])}
            assert moved == {f"state {n}" for n, p in peer.model.named_parameters() if p.dim() > 1}
            other.model.load_state_dict(peer.model.state_dict())
    with mock.patch.object(fastcat.step.algorithm, "attack_views", return_value=views):
        take_step(team)
    fastcat.step.algorithm.forward(twin, views)
    for peer, other in zip(team.peers, twin.peers, strict=True):
        buffers = dict(peer.model.named_buffers())
        assert buffers["bn1.num_batches_tracked"] == 3
        assert_same(buffers, dict(other.model.named_buffers()))


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("place", ["pass", "forward", "descend"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_step_leaves_the_weights_as_they_were(
    place: str, error: type[BaseException]
) -> None:
    """Catches weights that stay perturbed, and weights of a step before that come back."""
    team = team_of(["trades", "alp"], awp=[GAMMA] * 2)
    take_step(team)
    before = weights_of(team)
    forward, calls = fastcat.step.algorithm.forward, iter(("pass", "forward"))

    def fails(*args: Any) -> Any:
        if next(calls) == place:
            raise error("in the middle")
        return forward(*args)

    step = error if place == "descend" else team.scaler.step
    with (
        mock.patch.object(fastcat.step.algorithm, "forward", fails),
        mock.patch.object(team.scaler, "step", side_effect=step),
        pytest.raises(error),
    ):
        take_step(team, 1)
    assert_same(before, weights_of(team))
    assert all(module.training for peer in team.peers for module in peer.model.modules())


@pytest.mark.parametrize(("bad", "moves"), [(0.0, False), (nan, True), (inf, True), (-inf, True)])
def test_gradients_that_are_zero_or_not_finite_perturb_nothing_into_nan(
    bad: float, moves: bool
) -> None:
    """A NaN here would reach BatchNorm's statistics, which no skipped step takes back."""
    peer = peer_of("0-at", team_of(["at"]).peers[0].objective, tiny_net(0))
    awp = WeightPerturbation(peer.model, peer.optimizer, GAMMA)
    for p in peer.model.parameters():
        p.grad = torch.zeros_like(p)
    peer.model.conv1.weight.grad[0, 0, 0, 0] = bad
    peer.model.conv2.weight.grad[:] = 1.0 if moves else 0.0
    before = peer.optimizer.flat.clone()
    peer.optimizer.gather()
    awp.perturb()
    assert peer.optimizer.flat.isfinite().all()
    assert torch.equal(peer.optimizer.flat, before) != moves
    awp.undo()
    assert torch.equal(peer.optimizer.flat, before)


def test_weight_decay_sees_the_perturbed_weights_under_any_loss_scale() -> None:
    peer = peer_of("0-at", team_of(["at"]).peers[0].objective, tiny_net(0))
    awp = WeightPerturbation(peer.model, peer.optimizer, 0.5)
    for p in peer.model.parameters():
        p.grad = torch.ones_like(p)
    peer.optimizer.gather()
    awp.perturb()
    v = peer.optimizer.flat - awp.kept
    peer.optimizer.gather()
    awp.restore(lambda t: 8 * t)
    expected = (peer.optimizer.flat != 0) + 8 * SGD["weight_decay"] * v
    torch.testing.assert_close(peer.optimizer.flat.grad, expected)


# settings


def test_gamma_of_all_peers_and_of_one() -> None:
    peers = parse_peers("trades:awp=0.005:beta=3,alp,at:awp=0@prn18", "resnet18")
    assert [peer.awp for peer in peers] == [0.005, None, 0.0]
    for text in ("big", "-1", "nan", "inf"):
        with pytest.raises(InputError, match=rf"awp is {text}, expected a gamma like 0\.005"):
            parse_peers(f"trades:awp={text}", "resnet18")


def test_the_warm_up_counts_finished_epochs() -> None:
    tiny.register()
    config = TrainConfig(
        arch="tiny", data="digits", peers="trades,at:awp=0,alp:awp=0.5", awp=0.01, awp_warmup=1,
        train_size=40, val_size=20, batch_size=20, steps=1,
    )  # fmt: skip
    trainer = Trainer(config)
    strengths = []
    for epoch in range(2):
        trainer.epoch, trainer.step = epoch, 0
        trainer.train_step(next(iter(trainer.loader.inputs(epoch))))
        strengths.append([p.awp and round(p.awp.strength.item(), 6) for p in trainer.peers])
    assert strengths == [[0.0, None, 0.0], [0.01, None, 0.5]]
