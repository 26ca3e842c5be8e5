"""Robust accuracy counts what it says, on any model, and leaves it as it was."""

import json
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcat
from fastcat.attacks.pgd import Network
from fastcat.attacks.threat import ThreatModel
from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.evaluation import EvaluationAttack, parse_attacks
from fastcat.evaluation.attacks.pgd import PGDAttack
from fastcat.evaluation.evaluate import wilson_interval
from tests.harness import tiny
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.runs import SMALL
from tests.reference.single_network import gradient

THREAT = ThreatModel(eps=0.1, step_size=0.03)


class Brightness(nn.Module):
    """Two classes by the mean pixel: robust exactly where the mean is farther than eps from 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        distance = x.flatten(1).mean(1) - 0.5
        return torch.stack([-distance, distance], 1)


def grey(means: list[float]) -> tuple[Tensor, Tensor]:
    x = torch.tensor(means)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    return x, (torch.tensor(means) > 0.5).long()


def test_accuracy_is_what_the_geometry_says() -> None:
    x, y = grey([0.1, 0.3, 0.45, 0.55, 0.58, 0.7, 0.9])
    y[0] = 1  # one wrong from the start
    loader = [(x[:4], y[:4]), (x[4:], y[4:])]
    report = fastcat.evaluate(Brightness(), loader, "clean,fgsm,pgd10,cw10", THREAT)
    assert report.n == 7
    assert report.correct == {"clean": 6, "fgsm": 3, "pgd10": 3, "cw10": 3, "worst": 3}
    assert report.accuracy("clean") == 6 / 7


def test_restarts_only_lower_the_accuracy_and_worst_is_the_intersection() -> None:
    net = tiny_net(0).eval()
    x, _ = images(1, 60)
    y = net(x).argmax(1)
    once = fastcat.evaluate(net, [(x, y)], "pgd3,cw3", ThreatModel(eps=0.3, restarts=1))
    often = fastcat.evaluate(net, [(x, y)], "pgd3,cw3", ThreatModel(eps=0.3, restarts=4))
    assert 0 < often.correct["pgd3"] <= once.correct["pgd3"] < 60
    for report in (once, often):
        assert report.correct["worst"] <= min(report.correct["pgd3"], report.correct["cw3"])


def test_the_last_iterate_is_judged_for_images_that_were_wrong_too() -> None:
    """Papers count the prediction on x_adv alone; an attack may push a wrong image to be right."""

    class Fold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1).mean(1)
            # climbing away from class 0 at 0.5 leads over the hill into class 0's land again
            return torch.stack([(v - 0.5).abs() - 0.05, torch.zeros_like(v)], 1)

    x = torch.full((1, 1, 4, 4), 0.52)
    threat = ThreatModel(eps=0.2, step_size=0.2)
    report = fastcat.evaluate(Fold(), [(x, torch.zeros(1, dtype=torch.long))], "clean,fgsm", threat)
    assert report.correct["clean"] == 0
    assert report.correct["fgsm"] == 1


def test_the_model_is_left_as_it_was() -> None:
    net = tiny_net(0).train()
    net.bn2.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    x, y = images(1, 12)
    fastcat.evaluate(net, [(x, y)], "clean,pgd2", THREAT)
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_same_seed_gives_the_same_count() -> None:
    net = tiny_net(0)
    x, y = images(1, 60)
    reports = [fastcat.evaluate(net, [(x, y)], "pgd2", THREAT, seed=seed) for seed in (5, 5)]
    assert reports[0] == reports[1]


def test_images_outside_the_box_and_empty_loaders_are_refused() -> None:
    x, y = images(1, 4)
    with pytest.raises(InputError, match=r"range from -2.* put it into the model"):
        fastcat.evaluate(tiny_net(0), [(4 * x - 2, y)], "clean", THREAT)
    with pytest.raises(InputError, match="no images"):
        fastcat.evaluate(tiny_net(0), [], "clean", THREAT)


def test_attacks_by_name() -> None:
    clean, fgsm, pgd, cw = attacks_of("clean, fgsm,pgd20,cw7")
    assert not clean.has_threat
    assert all(isinstance(each, PGDAttack) for each in (fgsm, pgd, cw))
    assert fgsm.under(THREAT) == ThreatModel(eps=0.1, step_size=0.1, steps=1)
    assert (pgd.under(THREAT).steps, cw.under(THREAT).steps) == (20, 7)
    assert cw.settings.loss == "margin"
    *started, plain = attacks_of("pgd20:start=unclipped,cw7:start=zero,pgd20:start=uniform")
    assert [attack.settings.start for attack in started] == ["unclipped", "zero"]
    assert plain.settings == pgd.settings
    with pytest.raises(InputError, match="unknown attack start 'unclippd'"):
        parse_attacks("pgd20:start=unclippd")
    for text in ("", "pgd0", "pgd20x", "nothing", "clean,", "pgd20 :steps=3"):
        with pytest.raises(InputError, match="unknown attack"):
            parse_attacks(text)


def attacks_of(text: str) -> list[Any]:
    return [each.attack for each in parse_attacks(text)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pgd", "pgd needs steps: pgd takes steps, loss=ce, start=uniform, restarts=None"),
        ("pgd:step=3", "pgd has no setting 'step': pgd takes steps"),
        ("fgsm:start=zero", "fgsm has no setting 'start': fgsm takes no settings"),
        ("pgd20:start=", "expected settings like pgd:steps=20"),
        ("pgd20:steps=10", "steps stands there twice, as 20 and 10"),
        ("pgd:steps=many", "steps is 'many', expected a whole number"),
        ("pgd20:restarts=0", "restarts is 0, expected at least 1"),
        ("pgd20:loss=mse", "unknown attack loss 'mse'"),
        ("no.such:thing", "cannot import attack 'no.such:thing'"),
        ("tests.evaluation.test_evaluation:seeded", "annotated `-> EvaluationAttack`"),
    ],
)
def test_settings_that_an_attack_cannot_have(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_attacks(text)


def test_short_forms_are_the_attacks_with_settings() -> None:
    short = attacks_of("pgd20,cw7,pgd20:start=zero")
    long = attacks_of("pgd:steps=20,cw:steps=7,pgd:start=zero:steps=20")
    assert short == long
    assert attacks_of("cw7") == attacks_of("pgd:loss=margin:steps=7")
    (restarted,) = attacks_of("pgd3:restarts=5")
    assert restarted.under(THREAT).restarts == 5


def corner(share: float = 1.0) -> EvaluationAttack:
    """Every pixel moves up by a share of eps."""

    def move(
        network: Network, x: Tensor, y: Tensor, threat: ThreatModel, generator: torch.Generator
    ) -> Tensor:
        return (x + share * threat.eps).clamp(0, 1)

    return move


def test_an_attack_of_ones_own() -> None:
    """By name with settings, and as a function; both count as what they move says."""
    net, (x, y) = tiny_net(0).eval(), images(1, 40)
    name = "tests.evaluation.test_evaluation:corner:share=0.5"
    report = fastcat.evaluate(net, [(x, y)], f"clean,{name}", THREAT)
    moved = net((x + 0.5 * THREAT.eps).clamp(0, 1)).argmax(1)
    assert report.correct[name] == int((moved == y).sum())
    again = fastcat.evaluate(net, [(x, y)], corner(0.5), THREAT)
    assert again.correct == {"move": report.correct[name]}
    with pytest.raises(InputError, match=r"up to 0\.2 away in linf: expected"):
        fastcat.evaluate(net, [(x, y)], corner(2.0), THREAT)


@pytest.mark.parametrize(("name", "loss"), [("pgd5", "ce"), ("cw5", "margin")])
def test_published_scripts_do_not_clip_their_start(name: str, loss: str) -> None:
    """The evaluation of TRADES, MART and ST, step by step, beside ours from the same noise."""
    net, x = tiny_net(0).double().eval(), images(1, 300)[0].double()
    y, noise = net(x).argmax(1), 2 * torch.rand(x.shape, dtype=x.dtype, generator=seeded()) - 1
    view = x + 0.1 * noise
    for _ in range(5):
        view = view + 0.03 * gradient(net, view, y, loss).sign()
        view = (x + (view - x).clamp(-0.1, 0.1)).clamp(0, 1)
    unclipped, clipped = attacks_of(f"{name}:start=unclipped,{name}")
    views = [attack.find(net, x, y, attack.under(THREAT), noise) for attack in (unclipped, clipped)]
    torch.testing.assert_close(views[0], view, rtol=0, atol=1e-14)
    assert (views[1] - view).abs().max() > 0.01


def test_an_attack_with_a_start_is_named_by_what_was_typed() -> None:
    x, y = images(1, 12)
    report = fastcat.evaluate(tiny_net(0), [(x, y)], "pgd2,pgd2:start=unclipped", THREAT)
    assert report.correct.keys() == {"pgd2", "pgd2:start=unclipped", "worst"}


def test_the_interval_solves_wilsons_equation() -> None:
    """Its ends are where the score test of the proportion just rejects."""
    z = NormalDist().inv_cdf(0.975)
    for correct, n in ((0, 10), (3, 10), (500, 1000), (10, 10)):
        for end in wilson_interval(correct, n):
            if 1e-9 < end < 1 - 1e-9:
                score = abs(correct / n - end) / (end * (1 - end) / n) ** 0.5
                assert score == pytest.approx(z)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(10, 10)[1] == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_eval_of_a_run_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--epochs", "1", "--out", "run"]) == 0
    capsys.readouterr()
    evaluate = ["eval", "run", "--attacks", "clean,fgsm,pgd2", "--n", "50"]
    assert main(evaluate) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "eval" / "test.json").read_text())
    assert list(record["peers"]) == ["0-trades", "1-alp"]
    for name, entry in record["peers"].items():
        assert entry["n"] == 50
        assert [threat["eps"] for threat in entry["threats"]] == ["0.1"]
        assert entry["info"]["selected"] == "best on val"
        assert list(entry["attacks"]) == ["clean", "fgsm", "pgd2", "worst"]
        assert f"{name}  tiny, best on val" in printed
        clean = entry["attacks"]["clean"]
        assert clean["ci95"][0] <= clean["accuracy"] == clean["correct"] / 50 <= clean["ci95"][1]
        assert f"{100 * clean['accuracy']:.2f}%" in printed
    # another one does not overwrite it, one peer can be chosen, one file judged alone
    assert main([*evaluate, "--peer", "1", "--weights", "last"]) == 0
    second = json.loads((tmp_path / "run" / "eval" / "test-2.json").read_text())
    assert list(second["peers"]) == ["1-alp"]
    assert second["peers"]["1-alp"]["info"]["selected"] == "last"
    weights = "run/peers/0-trades.best.safetensors"
    alone = ["eval", weights, *evaluate[2:], "--out", "alone.json"]
    assert main(alone) == 0
    alone_record = json.loads((tmp_path / "alone.json").read_text())
    assert alone_record["peers"]["0-trades"]["attacks"] == record["peers"]["0-trades"]["attacks"]
