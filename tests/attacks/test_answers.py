"""NaN is no answer: not in evaluations, not in validation, not where the worst view is chosen."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastcat
from fastcat.attacks.multi_norm import worst
from fastcat.attacks.pgd import PGD, attack_all
from fastcat.attacks.squeeze import select
from fastcat.attacks.threat import ThreatModel
from fastcat.batch import Batch
from fastcat.cli import main
from fastcat.guard import NO_ANSWER, CheckedNetwork, answers
from fastcat.models import ARCHS
from fastcat.report.html import doubts
from fastcat.report.records import PeerEvaluation
from tests.harness.networks import CLASSES, images
from tests.harness.runs import SMALL
from tests.harness.teams import team_of
from tests.harness.tiny import Tiny

NAN, INF = math.nan, math.inf
THREAT = ThreatModel(eps=0.1, step_size=0.2, steps=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_logit_answers_where_it_is_a_number(dtype: torch.dtype) -> None:
    rows = {
        (1.0, 3.0, 2.0): 1,
        (2.0, 2.0, 1.0): 0,
        (-INF, -5.0, -INF): 1,  # classes that are masked out
        (NAN, NAN, NAN): NO_ANSWER,
        (1.0, 3.0, NAN): NO_ANSWER,
        (INF, 0.0, 0.0): NO_ANSWER,  # softmax is NaN
        (INF, INF, 0.0): NO_ANSWER,
        (-INF, -INF, -INF): NO_ANSWER,
    }
    z = torch.tensor(list(rows), dtype=dtype)
    assert answers(z).tolist() == list(rows.values())
    assert answers(torch.stack([z, z.flip(0)])).tolist() == [
        [*rows.values()],
        [*rows.values()][::-1],
    ]


class Brightness(nn.Module):
    """Two classes by the mean pixel; `broken` times its logits just beyond 0.48, and beyond 0.8."""

    def __init__(self, broken: float) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        z = torch.stack([0.5 - mean, mean - 0.5], 1)
        at_fault = ((mean > 0.48) & (mean < 0.53)) | (mean > 0.8)
        return torch.where(at_fault, self.broken, 1.0)[:, None] * z


def grey(*means: float) -> Tensor:
    return torch.tensor(means)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()


@pytest.mark.parametrize("broken", [NAN, INF])
def test_images_without_an_answer_count_as_wrong_and_are_counted(broken: float) -> None:
    """Catches NaN as class 0, and an attack that breaks the network counted as one that fails."""
    # safe; fooled by an attack; NaN under one; NaN as they are
    x, y = grey(0.2, 0.45, 0.41, 0.9, 0.95), torch.tensor([0, 0, 0, 0, 1])
    loader = [(x[:2], y[:2]), (x[2:], y[2:])]
    report = fastcat.evaluate(Brightness(broken), loader, "clean,fgsm,pgd2,cw2", THREAT)
    assert report.correct == {"clean": 3, "fgsm": 1, "pgd2": 1, "cw2": 1, "worst": 1}
    assert report.unanswered == {"clean": 2, "fgsm": 3, "pgd2": 3, "cw2": 3, "worst": 3}
    assert report.to_dict()["attacks"]["pgd2"]["unanswered"] == 3


def test_with_restarts_one_without_an_answer_is_enough() -> None:
    """An image that some starts break is not attacked again, and not lost again."""

    class Often(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.stack([x.flatten(1).sum(1), torch.zeros(len(x))], 1) + 9.0
            # by the random start alone
            return torch.where(x[:, 0, 0, :1] > 0.5, NAN, 1.0) * z

    x, y = grey(*[0.5] * 40), torch.zeros(40, dtype=torch.int64)
    counts = []
    for restarts in (1, 4):
        threat = ThreatModel(eps=0.1, step_size=1e-6, restarts=restarts)
        report = fastcat.evaluate(Often(), [(x, y)], "pgd1", threat)
        assert report.correct["pgd1"] + report.unanswered["pgd1"] == 40
        counts.append(report.correct["pgd1"])
    assert 0 < counts[1] < counts[0] < 40


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "boosted_ce"])
@pytest.mark.parametrize("broken", [NAN, INF])
def test_what_is_no_answer_is_the_largest_loss(loss: str, broken: float) -> None:
    """Also where the loss itself is -inf, as the margin of an infinite logit of the label is."""
    z = torch.tensor([[5.0, 0, 0], [broken, 0, 0], [0.0, 5, 0]])

    def network(x: Tensor) -> Tensor:
        return z[(10 * x[:, 0, 0, 0]).round().long()] + 0 * x.flatten(1).sum(1, keepdim=True)

    x, y = grey(0.0, 0.0), torch.zeros(2, dtype=torch.int64)
    candidates = torch.stack([grey(0.0, 0.2), grey(0.1, 0.1), grey(0.2, 0.0)])
    batch = Batch(x, y, torch.arange(2))
    views, places = worst(network, PGD(loss=loss), batch, candidates)
    assert places.tolist() == [1, 1]
    assert torch.equal(views, candidates[1])
    # of restarts that begin at these places the same is kept
    threat = ThreatModel(eps=0.3, step_size=1e-6, steps=1, restarts=3)
    noise = (candidates - x) / threat.eps
    found = attack_all([network], [PGD(loss=loss)], x, y, threat, noise[:, None])[0]
    assert (10 * found[:, 0, 0, 0]).round().tolist() == [1, 1]


def test_squeeze_takes_nan_for_the_hardest_view_and_never_for_the_easiest() -> None:
    z = torch.zeros(3, 3, 2)
    for place in range(3):
        z[place, place] = NAN
    upper, lower = select(z, torch.zeros(3, dtype=torch.int64))
    assert upper.tolist() == [0, 1, 2]
    assert (lower != upper).all()


def test_training_accuracy_counts_no_nan() -> None:
    team = team_of(["natural"], collab="none")
    y = torch.zeros(4, dtype=torch.int64)
    z = torch.full((1, 4, CLASSES), NAN)
    accuracy = team.loss.names.index("0-natural/accuracy")
    assert team.loss(z, y, lambda scale: scale)[0][accuracy] == 0
    z[0, 1:] = torch.tensor([1.0, 0, 0, 0, 0])
    assert team.loss(z, y, lambda scale: scale)[0][accuracy] == 0.75


class Silent(Tiny):
    """NaN in eval mode, for images that the test picks: weights and training are sound."""

    when: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if self.training else torch.where(type(self).when(x), NAN, 1.0)[:, None] * z


@pytest.fixture
def silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ARCHS, "tiny", Silent)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Silent, "when", lambda x: x[:, 0].sum((1, 2)) > 0, raising=False)
    return tmp_path


@pytest.mark.slow
def test_eval_says_how_many_answers_there_are(
    silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Silent(10, 1).state_dict(), "nan.pt")
    arguments = ["--arch", "tiny", "--data", "digits", "--n", "30", "--attacks", "clean,pgd2"]
    assert main(["eval", "nan.pt", *arguments, "--out", "found.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  0.00%") == 3
    line = next(line for line in printed.splitlines() if line.startswith("note: nan: NaN"))
    assert "of 30 images they are 30 under clean, 30 under pgd2, 30 under worst" in line
    entry = json.loads(Path("found.json").read_text())["peers"]["nan"]
    assert [result["unanswered"] for result in entry["attacks"].values()] == [30, 30, 30]


@pytest.mark.slow
def test_training_names_a_peer_that_gives_no_answers(
    silent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the lines, the record and the report; its answers are no class, so it has not one."""
    run = ["train", *SMALL, "--peers", "natural", "--collab", "none", "--epochs", "1"]
    assert main([*run, "--out", "run"]) == 0
    entry = json.loads(Path("run/metrics.jsonl").read_text())["peers"]["0-natural"]
    assert entry["accuracy"] == {"clean": 0, "fgsm": 0, "pgd2": 0}
    assert entry["unanswered"] == {"clean": 20, "fgsm": 20, "pgd2": 20}
    assert entry["commonest"]["share"] == 0
    assert set(entry["signs"]) == {"no answer"}
    line = (
        "0-natural in epoch 1: no answer: NaN or infinite logits for images of 20: 20 under clean"
    )
    assert line in " ".join(capsys.readouterr().out.split())
    assert line in Path("run/report.html").read_text()
    assert main(["eval", "run", "--attacks", "clean", "--n", "7"]) == 0
    assert "of 7 images they are 7 under clean" in Path("run/report.html").read_text()
    capsys.readouterr()
    assert main([*run, "--on-collapse", "stop", "--out", "stopped"]) == 2
    assert "no answer" in capsys.readouterr().err


def test_images_of_zero_contrast_are_answered_beside_others() -> None:
    """Unanswered images take nothing from those of the same batch."""
    x, _ = images(0, 6)
    x[::2] = 0
    net = Silent(CLASSES, 3).eval()
    Silent.when = staticmethod(lambda x: x.flatten(1).sum(1) > 0)  # type: ignore[method-assign]
    y = answers(net(x))
    assert (y == NO_ANSWER).tolist() == [False, True] * 3
    report = fastcat.evaluate(net, [(x, y.clamp(min=0))], "clean", THREAT)
    assert (report.correct["clean"], report.unanswered["clean"]) == (3, 3)


class Masked(nn.Module):
    """Right answers, with a NaN gradient where the first pixel is 0: sqrt has none there."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3)) + x[:, 0, 0, 0].sqrt() * 0
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_images_that_no_attack_can_move_are_counted() -> None:
    """They would pass for robust: NaN moves no pixel."""
    x = torch.full((4, 1, 2, 2), 0.45)
    x[1:3, 0, 0, 0] = 0
    y = torch.zeros(4, dtype=torch.long)
    with pytest.warns(RuntimeWarning, match="gradients have NaN for 2 of 4 images"):
        x_adv = fastcat.attack(Masked(), x, y, THREAT, start="zero")
    assert not x_adv[1:3, 0, 0, 0].any()
    batches = [(x, y), (x[:1], y[:1])]
    report = fastcat.evaluate(Masked(), batches, "clean,fgsm", THREAT)
    assert report.without_gradient == report.to_dict()["without_gradient"] == 2
    beside = {"weights": "", "info": {}, "threats": [], "restarts": 1}
    (line,) = doubts("0-at", PeerEvaluation.read({**beside, **report.to_dict()}))
    assert "gradients have NaN for 2 of 5 images" in line
    assert fastcat.evaluate(Masked(), batches[1:], "clean,fgsm", THREAT).without_gradient == 0
    # a later step or attack that is free of it takes nothing back
    network = CheckedNetwork(Masked(), x, y)
    for count in (1, 2, 0):
        grad = torch.zeros_like(x)
        grad[:count] = NAN
        network.look_at(grad)
    assert network.without_gradient == 2
