"""Objectives that read a teacher: what it costs, who it is, when terms begin, what is refused."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.pgd import PGD
from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.objective import Objective, spread
from fastcat.objectives import make_objective
from fastcat.step.algorithm import attack_views, collaborative_step, start_noise
from fastcat.step.team import Team
from fastcat.terms import ce, kl
from tests.harness import tiny
from tests.harness.networks import CLASSES, images, seeded
from tests.harness.runs import SMALL, assert_same_end
from tests.harness.teams import team_of
from tests.reference import losses as reference

pytestmark = pytest.mark.usefixtures("one_thread")

B = 6
# of about the same strength
TWO = (ThreatModel(eps=0.1, steps=2), ThreatModel(norm="l2", eps=1.07, steps=2))


def step(team: Team) -> dict[str, Tensor]:
    x, y = images(0, B)
    x = x.to(memory_format=torch.channels_last)
    noise = start_noise(team, x, seeded())
    values = collaborative_step(team, Batch(x, y, torch.arange(B)), noise)
    return dict(zip(team.loss.names, values, strict=True))


def forwards(net: nn.Module) -> list[bool]:
    """Grows by whether the network was in train mode with each of its forwards."""
    seen: list[bool] = []
    net.register_forward_pre_hook(lambda net, _: seen.append(net.training))
    return seen


@pytest.mark.parametrize("awp", [0.0, 0.02])
@pytest.mark.parametrize(
    ("method", "count"), [("ard", 1), ("rslad", 1), ("iad", 2)], ids=["ard", "rslad", "iad"]
)
def test_a_frozen_teacher_is_forwarded_once_a_view(method: str, count: int, awp: float) -> None:
    """RSLAD's attack aims at what the loss reads again, at w and at w + v."""
    team = team_of(["teacher", method], collab="none", awp=[0.0, awp])
    seen = forwards(team.members[0].model)
    step(team)
    again = count if awp and method != "rslad" else 0
    assert seen == [False] * (count + again)


def test_an_online_teacher_says_the_same_in_the_attack_and_in_the_loss() -> None:
    """Train mode; BatchNorm's statistics move once."""
    objectives = [make_objective("act", {"role": role}) for role in ("natural", "robust")]
    team = team_of(objectives, collab="none")
    net = team.members[0].model
    said: list[Tensor] = []
    net.register_forward_hook(lambda net, _, z: said.append(z.detach()))
    step(team)
    assert len(said) == 2
    assert torch.equal(*said)
    assert net.state_dict()["bn1.num_batches_tracked"] == 1


@pytest.mark.parametrize("collab", ["cat", "mat", "none"])
def test_who_reads_a_teacher_has_no_other_guidance(collab: str) -> None:
    """And guides others nevertheless."""
    teachers = "0>1" if collab == "none" else "0>1,1>2"
    team = team_of(["teacher", "rslad", "at"], collab=collab, teachers=teachers)
    names = [name for name in team.loss.names if name.endswith("guidance")]
    assert names == ([] if collab == "none" else ["2-at/guidance"])
    values = step(team)
    assert values["1-rslad/loss"] == values["1-rslad/kl"] + values["1-rslad/kl_clean"]


def test_a_term_on_a_peer_that_teaches_never_moves_it() -> None:
    """Though the objective does not call it constant, on either side."""
    at, inner = make_objective("at", {}), PGD()
    outer = ce("adv") + kl("teacher.own", "adv") + kl("adv", "teacher.own")
    reads = ("teacher.own", "teacher.clean")
    both = [at, Objective(views=("adv",), inner=inner, outer=outer, reads=reads)]
    team, alone = team_of(both, collab="none", teachers="0>1"), team_of([at], collab="none")
    # the same forwards, of which the second has no gradient
    assert [(c.view, c.grad) for c in team.cells_of(0)] == [("adv0", True), ("clean", False)]
    step(team)
    step(alone)
    assert torch.equal(team.peers[0].optimizer.flat, alone.peers[0].optimizer.flat)


LATE = ce("adv") + ce("adv").named("more") + 2.0 * kl("teacher.clean", "adv").named("late")


@pytest.mark.parametrize("own_function", [False, True])
def test_terms_count_from_their_epoch_on(own_function: bool) -> None:
    def late(z: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        return LATE(z, y)

    def method(outer: object, begins: dict[str, int]) -> Objective:
        return Objective(
            views=("adv",),
            inner=PGD(),
            outer=outer,  # type: ignore[arg-type]
            reads=("teacher.clean",),
            begins=begins,
        )

    begins = {"late": 2, "more": 1}
    team = team_of(["teacher", method(late if own_function else LATE, begins)], collab="none")
    ever = team_of(["teacher", method(LATE, {})], collab="none").loss
    z = torch.randn(len(team.blueprint.cells), B, CLASSES, generator=seeded())
    y = images(0, B)[1]
    names, found = [name.rpartition("/")[2] for name in team.loss.names], []
    for epoch in (0, 1, 2, 7):
        team.loss.set_epoch(epoch)
        values, dz = team.loss(z, y, lambda total: total)
        found.append((dict(zip(names, values.tolist(), strict=True)), dz))
    expected, dz = ever(z, y, lambda total: total)
    full = dict(zip(names, expected.tolist(), strict=True))
    for (values, _), counting in zip(found, ("ce", "ce more", *["ce more late"] * 2), strict=True):
        for name in ("ce", "more", "late"):
            assert values[name] == pytest.approx(full[name] if name in counting.split() else 0)
        assert values["loss"] == pytest.approx(sum(full[name] for name in counting.split()))
    torch.testing.assert_close(found[-1][1], dz)
    # of equal terms one or both
    torch.testing.assert_close(found[1][1], 2 * found[0][1])
    assert not torch.allclose(found[2][1], found[1][1])


def test_a_late_term_that_there_is_not_is_refused() -> None:
    objective = Objective(views=("adv",), inner=PGD(), outer=ce("adv"), begins={"kl": 1})
    with pytest.raises(
        InputError, match=r"0-own: begins names \['kl'\], expected some of \['ce'\]"
    ):
        team_of([objective])


@pytest.mark.parametrize(
    ("views", "reads", "text"),
    [
        (("adv",), ("teacher.col",), r"expected some of teacher.own, teacher.clean, teacher.adv"),
        (("adv",), ("adv",), r"reads are \('adv',\)"),
    ],
)
def test_what_a_teacher_does_not_see_is_refused(
    views: tuple[str, ...], reads: tuple[str, ...], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        Objective(views=views, inner=PGD(), outer=ce("adv"), reads=reads)


def test_a_term_on_what_is_not_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"outer reads teacher.clean, adv, .*names: \(\)"):
        Objective(views=("adv",), inner=PGD(), outer=kl("teacher.clean", "adv"))


def test_an_attack_without_a_target_has_no_teacher() -> None:
    with pytest.raises(InputError, match="attack loss ce has no teacher: expected kl"):
        PGD(loss="ce", target="teacher")
    assert PGD(loss="kl", start="zero", target="teacher").start == "zero"


# several threat models


BESIDE = Objective(
    views=("clean", "adv"),
    inner=PGD(),
    outer=ce("clean") + kl("teacher.adv", "adv") + kl("teacher.adv", "clean").named("across"),
    reads=("teacher.adv",),
    begins={"across": 3},
)


@pytest.mark.parametrize(
    "method", ["ard", "rslad", "iad", pytest.param(BESIDE, id="of-terms-on-the-adversary")]
)
def test_the_average_over_threat_models_is_that_of_the_method_on_each(
    method: str | Objective,
) -> None:
    objective = make_objective(method, {}) if isinstance(method, str) else method
    whole = spread(objective, ["linf", "l2"])
    cells = [*whole.views, *whole.reads]
    z = {cell: torch.randn(B, CLASSES, generator=seeded(n)) for n, cell in enumerate(cells)}
    y = images(0, B)[1]
    each = [
        objective.outer(
            {**z, "adv": z[f"{norm}.adv"], "teacher.adv": z.get(f"teacher.{norm}.adv", y)}, y
        )
        for norm in ("linf", "l2")
    ]
    for name, value in whole.outer(z, y).items():
        torch.testing.assert_close(value, (each[0][name] + each[1][name]) / 2)
    team = team_of(["teacher", method], threats=[Threats(()), Threats(TWO, "avg")])
    views = {"clean": "clean", "linf.adv": "linf.adv1", "l2.adv": "l2.adv1"}
    read = [views[cell.removeprefix("teacher.")] for cell in whole.reads]
    assert [cell.view for cell in team.cells_of(0)] == read
    assert step(team)[f"{team.peers[0].name}/kl"] > 0
    assert whole.begins == objective.begins


@pytest.mark.parametrize("way", ["max", "msd"])
def test_the_worst_of_threat_models_is_by_what_the_teacher_says(way: str) -> None:
    """Catches a choice by the student's own clean prediction."""
    team = team_of(["teacher", "rslad"], threats=[Threats(()), Threats(TWO, way)])
    alone = [
        team_of(["teacher", "rslad"], threats=[Threats(()), Threats((model,))]) for model in TWO
    ]
    x, y = images(0, B)
    batch = Batch(x.to(memory_format=torch.channels_last), y, torch.arange(B))
    views = attack_views(team, batch, start_noise(team, batch.x, seeded()))
    teacher, student = (member.model.eval() for member in team.members)
    target = teacher(batch.x)
    assert torch.equal(views["target0"], target)
    reached = reference.kl(target, student(views["adv1"]))
    noise = start_noise(team, batch.x, seeded())
    if way == "max":
        ends = [attack_views(a, batch, noise[:, [m]])["adv1"] for m, a in enumerate(alone)]
        every = torch.stack([reference.kl(target, student(end)) for end in ends])
        torch.testing.assert_close(reached, every.max(0).values)
        assert torch.equal(views["which1"], every.argmax(0))
        own = torch.stack([reference.kl(student(batch.x), student(end)) for end in ends])
        assert not torch.equal(own.argmax(0), every.argmax(0))
    assert (reached > reference.kl(target, student(batch.x))).all()


def test_a_teacher_with_several_views_of_its_own_is_refused() -> None:
    natural = make_objective("act", {"role": "natural"})
    threats = [Threats(TWO[:1]), Threats(TWO, "avg")]
    with pytest.raises(InputError, match=r"peer 0 reads what peer 1 says of .* are 2"):
        team_of([natural, "at"], threats=threats, teachers="1>0")


# whole runs


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    run("natural", "--peers", "at", "--epochs", "1")
    return "natural/peers/0-at.last.safetensors"


def run(out: str, *arguments: str) -> None:
    assert main(["train", *SMALL, *arguments, "--out", out]) == 0


def terms(out: str, peer: str) -> Sequence[dict[str, float]]:
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["peers"][peer]["train"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("collab", ["cat", "none"])
def test_a_term_begins_in_its_epoch_also_when_the_run_is_resumed(weights: str, collab: str) -> None:
    peers = f"teacher:weights={weights},iad:begin=1"
    run("run", "--peers", peers, "--collab", collab, "--epochs", "3")
    first, second, third = terms("run", "1-iad")
    assert (first["own"], first["loss"]) == (0, first["kl"])
    for epoch in (second, third):
        assert epoch["own"] > 0
        assert epoch["loss"] == pytest.approx(epoch["kl"] + epoch["own"])
    shutil.copytree("run", "again")
    shutil.copy("again/checkpoints/previous.pt", "again/checkpoints/last.pt")
    assert main(["resume", "again"]) == 0
    assert_same_end(Path("run"), Path("again"))


def test_methods_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert "ard takes alpha=1.0, temperature=30.0; attack start=uniform, bn=train" in out
    assert "act takes role=robust, alpha=0.9, temperature=4.0" in out
