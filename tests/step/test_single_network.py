"""Fast-AT, Free-AT, PGD and CW on one network, CAT's logged forward; all against float64.

Tolerances are those of test_parity.py; float32 gets the oracle's views, and a smooth network.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fastcat.step.algorithm
from fastcat.attacks.free import FreeAttack
from fastcat.attacks.threat import WAYS, ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.objectives import make_objective
from fastcat.runs.checkpoint import read_checkpoint
from fastcat.step.algorithm import attack_views, collaborative_step, start_noise
from fastcat.step.team import Team
from tests.harness import tiny
from tests.harness.comparison import FLOAT32_TOLERANCE, FLOAT64_TOLERANCE, assert_close
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.runs import SMALL, assert_same_end
from tests.harness.teams import SGD, team_of
from tests.reference import single_network as reference
from tests.reference.attack import attack_copy
from tests.reference.losses import cross_entropy
from tests.reference.step import sgd_update

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 8 / 255
# neither its steps nor its step size are Fast-AT's
THREAT = ThreatModel(eps=EPS, step_size=1 / 255, steps=4)
TOLERANCE = {torch.float64: FLOAT64_TOLERANCE, torch.float32: FLOAT32_TOLERANCE}


def each_dtype(subject: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "dtype",
        [
            pytest.param(torch.float64, marks=pytest.mark.measured("float64", subject)),
            pytest.param(torch.float32, marks=pytest.mark.measured("float32", subject)),
        ],
        ids=str,
    )


def networks(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Ours in dtype and the oracle's in float64, of the same weights."""
    net = tiny_net(0, nn.ReLU if dtype is torch.float64 else nn.SiLU)
    return copy.deepcopy(net).to(dtype), net.double()


def take_step(
    team: Team, batch: Batch, noise: Tensor, expected: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The terms of a step in dtype; its views must be the expected ones, in float32 they are given.

    batch, noise, expected: of float64.
    """
    own = Batch(batch.x.to(dtype), batch.y, batch.indices)
    given = {name: view.to(dtype) for name, view in expected.items()}
    if dtype is torch.float64:
        found = attack_views(team, own, noise)
        for name, view in given.items():
            assert_close(found[name], view, FLOAT64_TOLERANCE, f"view {name}")
        given = found
    with mock.patch.object(fastcat.step.algorithm, "attack_views", return_value=given):
        values = collaborative_step(team, own, noise.to(dtype))
    return dict(zip(team.loss.names, values, strict=True))


def update(
    net: nn.Module, loss: Callable[[nn.Module], dict[str, Tensor]], buffers: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One plain step of SGD on the sum of the terms; the terms and the new momentum."""
    net.train()
    params = dict(net.named_parameters())
    terms = loss(net)
    grads = torch.autograd.grad(torch.stack(list(terms.values())).sum(), list(params.values()))
    new = sgd_update(params, dict(zip(params, grads, strict=True)), buffers, **SGD)
    return {name: term.detach() for name, term in terms.items()}, new


def assert_same_state(ours: nn.Module, theirs: nn.Module, tolerance: float) -> None:
    for (name, tensor), expected in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert_close(tensor, expected, tolerance, name)


@each_dtype("fast")
@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("variant", ["rs", "n"])
def test_fast_at_over_three_steps(variant: str, bn: str, dtype: torch.dtype) -> None:
    ours, theirs = networks(dtype)
    objective = make_objective("fast", {"variant": variant, "bn": bn})
    team = team_of([objective], [ours], ["fast"], threat=THREAT)
    attack = {"rs": reference.fgsm_rs, "n": reference.n_fgsm}[variant]
    buffers: dict[str, Tensor] = {}
    for step in range(3):
        x, y = images(step, 6)
        x = x.double()
        noise = start_noise(team, x, seeded(step))
        view = attack(attack_copy(theirs, bn), x, y, noise[0, 0], EPS)
        values = take_step(team, Batch(x, y, torch.arange(6)), noise, {"adv0": view}, dtype)

        def loss(net: nn.Module, view: Tensor = view, y: Tensor = y) -> dict[str, Tensor]:
            return {"ce": cross_entropy(net(view), y).mean()}

        terms, buffers = update(theirs, loss, buffers)
        assert_close(values["0-fast/ce"], terms["ce"], TOLERANCE[dtype], "ce")
        assert_same_state(ours, theirs, TOLERANCE[dtype])
    largest = (view - x).abs().max().item()
    assert largest == pytest.approx(EPS) if variant == "rs" else 2 * EPS < largest <= 3 * EPS


@each_dtype("pgd-cw")
def test_pgd_and_cw_teach_each_other_over_three_steps(dtype: torch.dtype) -> None:
    ours, theirs = networks(dtype)
    objective = make_objective("pgd-cw", {"alpha": "0.3"})
    team = team_of([objective], [ours], ["pgd-cw"], threat=THREAT)
    assert [cell.view for cell in team.blueprint.cells] == ["adv0", "cw0"]
    buffers: dict[str, Tensor] = {}
    for step in range(3):
        x, y = images(step, 6)
        x = x.double()
        noise = start_noise(team, x, seeded(step))
        views = {
            f"{name}0": reference.pgd(theirs, x, y, noise[0, n], EPS, 1 / 255, 4, loss)
            for n, (name, loss) in enumerate((("adv", "ce"), ("cw", "margin")))
        }
        assert not torch.equal(views["adv0"], views["cw0"])
        values = take_step(team, Batch(x, y, torch.arange(6)), noise, views, dtype)

        def loss(
            net: nn.Module, views: dict[str, Tensor] = views, y: Tensor = y
        ) -> dict[str, Tensor]:
            return reference.pgd_cw_loss(net(views["adv0"]), net(views["cw0"]), y, 0.3)

        terms, buffers = update(theirs, loss, buffers)
        for name, term in terms.items():
            assert_close(values[f"0-pgd-cw/{name}"], term, TOLERANCE[dtype], name)
        assert_same_state(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("way", WAYS)
def test_methods_with_two_attacks_are_refused_under_several_threats(way: str) -> None:
    models = (ThreatModel(), ThreatModel(norm="l2", eps=0.5))
    with pytest.raises(InputError, match="for methods with one adversarial view"):
        team_of(["pgd-cw"], threats=[Threats(models, way)])


def test_the_logged_forward_moves_statistics_after_the_update_and_nothing_else() -> None:
    x, y = images(0, 6)
    batch = Batch(x.double(), y, torch.arange(6))
    nets = []
    for settings in ({}, {"log_forward": "true"}):
        net = tiny_net(0).double()
        objectives = [make_objective("trades", settings), make_objective("alp", {})]
        team = team_of(objectives, [net, tiny_net(1).double()], ["trades", "alp"])
        collaborative_step(team, batch, start_noise(team, batch.x, seeded()))
        nets.append(net)
    plain, logged = nets
    assert all(map(torch.equal, plain.parameters(), logged.parameters()))
    plain.train()(batch.x)
    assert_same_state(logged, plain, FLOAT64_TOLERANCE)


def free_team(net: nn.Module, awp: float = 0.0) -> Team:
    team = team_of(["free"], [net], awp=[awp], threat=THREAT)
    (peer,) = team.peers
    peer.begin_attacks(torch.zeros(6, 3, 8, 8, dtype=net.linear.weight.dtype))
    return team


@each_dtype("free")
def test_free_at_over_replays_and_a_ragged_batch(dtype: torch.dtype) -> None:
    ours, theirs = networks(dtype)
    team = free_team(ours)
    (peer,) = team.peers
    delta = torch.zeros(6, 3, 8, 8, dtype=torch.float64)
    buffers: dict[str, Tensor] = {}
    for step in range(6):
        # three steps on each of two batches, the second of four images
        x, y = (part[: 6 - 2 * (step // 3)] for part in images(step // 3, 6))
        x = x.double()
        batch = Batch(x.to(dtype), y, torch.arange(len(y)))
        noise = start_noise(team, batch.x, seeded())
        assert noise.numel() == 0
        values = dict(zip(team.loss.names, collaborative_step(team, batch, noise), strict=True))
        view = (x + delta[: len(x)]).requires_grad_()

        def loss(net: nn.Module, view: Tensor = view, y: Tensor = y) -> dict[str, Tensor]:
            return {"ce": cross_entropy(net(view), y).mean()}

        grad = torch.autograd.grad(loss(copy.deepcopy(theirs).train())["ce"], view)[0]
        terms, buffers = update(theirs, loss, buffers)
        delta = reference.free_delta(delta, grad, x, EPS)
        assert_close(values["0-free/ce"], terms["ce"], TOLERANCE[dtype], "ce")
        assert_same_state(ours, theirs, TOLERANCE[dtype])
        if dtype is torch.float64:
            torch.testing.assert_close(peer.attack_state["carried"], delta, rtol=0, atol=1e-15)
        else:
            peer.attack_state["carried"].copy_(delta)
    assert delta.abs().max().item() == pytest.approx(EPS)


def test_free_at_has_no_restarts() -> None:
    with pytest.raises(InputError, match="type --restarts 1"):
        team_of(["free"], threat=ThreatModel(restarts=2))


def test_free_at_carries_one_gradient_under_awp() -> None:
    """Catches the gradient of the perturbation's own pass left in the view."""
    x, y = images(0, 6)
    batch = Batch(x.double(), y, torch.arange(6))
    team = free_team(tiny_net(0).double(), awp=0.5)
    (peer,) = team.peers
    seen = []

    def note(self: FreeAttack, task: object, views: dict[str, Tensor], *_: object) -> None:
        seen.append(views["adv0"].grad.clone())

    with mock.patch.object(FreeAttack, "after_backward", note):
        collaborative_step(team, batch, start_noise(team, batch.x, seeded()))
    net = tiny_net(0).double()
    assert peer.awp is not None
    view = batch.x.clone().requires_grad_()
    first = torch.autograd.grad(cross_entropy(net(view), y).mean(), [view, *net.parameters()])
    with torch.no_grad():
        for p, g in zip(net.parameters(), first[1:], strict=True):
            if p.dim() > 1:
                p += 0.5 * p.norm() * g / g.norm()
    expected = torch.autograd.grad(cross_entropy(net(view), y).mean(), view)[0]
    torch.testing.assert_close(seen, [expected])


@pytest.mark.slow
def test_a_run_of_free_at_replays_batches_and_resumes_inside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    run = ["train", "--peers", "free,at", *SMALL, "--epochs", "2", "--replays", "3"]
    assert main([*run, "--save-every", "5", "--out", "whole"]) == 0
    lines = [json.loads(line) for line in Path("whole", "steps.jsonl").read_text().splitlines()]
    # four batches an epoch
    assert lines[-1]["step"] == 24
    shutil.copytree("whole", "again")
    Path("again", "checkpoints", "last.pt").unlink()
    state = read_checkpoint(Path("again", "checkpoints", "previous.pt"))
    assert (state["epoch"], state["step"]) == (1, 10), "inside of a batch's steps"
    assert state["peers"][0]["carried"].abs().max() > 0
    assert main(["resume", "again"]) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "again")
    means = [json.loads(line) for line in Path("whole", "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= epoch["peers"]["0-free"]["train"]["accuracy"] <= 1 for epoch in means)
