"""Whole runs of the trainer with small networks: what is learnt, recorded, selected and kept."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcat
from fastcat.attacks.threat import ThreatModel
from fastcat.cli import main
from fastcat.config.train import TrainConfig
from fastcat.evaluation import evaluate
from fastcat.runs.checkpoint import read_checkpoint
from fastcat.runs.trainer import Trainer
from fastcat.weights.file import load_weights
from tests.harness import tiny
from tests.harness.runs import SMALL, assert_same_end


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def small_run(*arguments: str, out: str = "run") -> list[dict[str, Any]]:
    """The epochs' records of a short run."""
    assert main(["train", *SMALL, "--epochs", "2", *arguments, "--out", out]) == 0
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_lists() -> None:
    epochs = small_run("--peers", "trades,alp,mart,at,natural")
    kept = {str(path.relative_to("run")) for path in Path("run").rglob("*") if path.is_file()}
    peers = ["0-trades", "1-alp", "2-mart", "3-at", "4-natural"]
    assert kept == {
        "config.yaml",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "steps.jsonl",
        "report.html",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        *(f"peers/{peer}.{which}.safetensors" for peer in peers for which in ("best", "last")),
    }
    terms = {
        "0-trades": ["ce", "kl"],
        "1-alp": ["ce", "pairing"],
        "2-mart": ["bce", "kl"],
        "3-at": ["ce"],
        "4-natural": ["ce"],
    }
    for number, epoch in enumerate(epochs, start=1):
        assert epoch["epoch"] == number
        assert epoch["judged_on"] == "val"
        assert list(epoch["peers"]) == peers
        for key in ("seconds", "images_per_second", "peak_memory_mib", "judging_seconds"):
            assert epoch[key] > 0
        for peer, entry in epoch["peers"].items():
            assert set(entry["train"]) == {*terms[peer], "guidance", "loss", "accuracy"}
            assert list(entry["accuracy"]) == ["clean", "fgsm", "pgd2"]
            own = sum(entry["train"][term] for term in terms[peer])
            expected = 0.05 * own + entry["train"]["guidance"]
            assert entry["train"]["loss"] == pytest.approx(expected, rel=1e-5)
    # 4 batches of which every second is recorded
    steps = [json.loads(line) for line in Path("run/steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [2, 4, 6, 8]
    log = Path("run/log.txt").read_text().splitlines()
    assert len([line for line in log if " in epoch " not in line]) == 4


def test_epoch_means_weigh_every_image_alike() -> None:
    """The last batch is ragged; a mean over batches would weigh its images more."""
    config = TrainConfig(arch="tiny", data="digits", train_size=70, val_size=20, batch_size=20)
    trainer = Trainer(config)
    sums: dict[str, float] = {}
    for inputs in trainer.loader.inputs(0):
        values = trainer.train_step(inputs).tolist()
        for name, value in zip(trainer.team.loss.names, values, strict=True):
            sums[name] = sums.get(name, 0.0) + value * inputs[0].shape[1]
    assert trainer._mean_metrics() == pytest.approx({k: v / 70 for k, v in sums.items()}, rel=1e-5)


def test_the_best_epoch_is_kept_and_says_how_it_was_chosen() -> None:
    epochs = small_run("--epochs", "6", "--lr", "0.3", "--peers", "at", "--collab", "none")
    robust = [epoch["peers"]["0-at"]["accuracy"]["pgd2"] for epoch in epochs]
    stars = [epoch["peers"]["0-at"]["best"] for epoch in epochs]
    assert stars == [value > max(robust[:i], default=-1) for i, value in enumerate(robust)]
    best = robust.index(max(robust))
    _, info = load_weights(Path("run/peers/0-at.best.safetensors"))
    assert (info.epoch, info.selected) == (best + 1, "best on val")
    _, last = load_weights(Path("run/peers/0-at.last.safetensors"))
    assert (last.epoch, last.selected) == (6, "last")
    assert read_checkpoint(Path("run/checkpoints/last.pt"))["best"]["0-at"]["epoch"] == best + 1


def test_selection_on_the_test_set_is_labelled_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    epochs = small_run("--select-on", "test", "--val-size", "None")
    printed = capsys.readouterr().out
    assert "test-clean test-fgsm test-pgd2" in printed
    assert "judged on 359 test images" in printed
    assert "val-" not in printed
    assert "best on test after epoch" in printed
    assert {epoch["judged_on"] for epoch in epochs} == {"test"}
    _, info = load_weights(Path("run/peers/0-trades.best.safetensors"))
    assert info.selected == "best on test"
    assert "on test images (chooses the best weights)" in Path("run/report.html").read_text()


@pytest.mark.slow
def test_without_selection_every_image_is_trained_on() -> None:
    epochs = small_run("--select-on", "last", "--val-size", "None", "--train-size", "None")
    assert {epoch["judged_on"] for epoch in epochs} == {None}
    assert all(entry["accuracy"] == {} for epoch in epochs for entry in epoch["peers"].values())
    assert not list(Path("run/peers").glob("*.best.*"))
    config = TrainConfig(arch="tiny", data="digits", select_on="last")
    assert Trainer(config).loader.size == 1438
    assert main(["eval", "run", "--attacks", "clean", "--n", "20"]) == 0


def test_the_learning_rate_follows_the_schedule_step_by_step() -> None:
    small_run("--schedule", "cyclic", "--lr", "0.4", "--log-every", "1", "--epochs", "2")
    steps = [json.loads(line) for line in Path("run/steps.jsonl").read_text().splitlines()]
    # 8 steps at the middles of their shares: up over 0.8 epochs, down over 1.2
    expected = [0.4 * min(t / 0.8, (2 - t) / 1.2) for t in (0.125 + i / 4 for i in range(8))]
    assert [step["lr"] for step in steps] == pytest.approx(expected)


def test_a_step_takes_rate_momentum_and_decay_where_the_settings_say() -> None:
    """With two replays of each batch. Catches a setting that is parsed and then forgotten."""
    config = TrainConfig(
        arch="tiny", peers="at", data="digits", train_size=30, val_size=10, batch_size=10, steps=1,
        epochs=4, replays=2, schedule="triangular", lr=0.4, lr_at="start", momentum=0.9,
        peak_momentum=0.7, ema=0.6, ema_warmup=0.25, threads=1,
    )  # fmt: skip
    trainer = Trainer(config)
    optimizer = trainer.peers[0].optimizer
    average = optimizer.flat.clone()
    for step in range(24):
        epoch = step // 6
        if step % 6 == 0:
            trainer.begin_epoch(epoch, {})
            inputs = trainer.inputs()
        assert trainer.current_lr() == pytest.approx(0.4 * (1 - abs(step - 12) / 12))
        trainer.train_step(next(inputs))
        assert optimizer.momentum.item() == pytest.approx(0.9 - 0.2 * (1 - abs(step - 12) / 12))
        # the sixth update is the first one that averages
        since = step + 1 - 6
        decay = 0 if since < 0 else min(0.6, (1 + since) / (10 + since))
        average = decay * average + (1 - decay) * optimizer.flat
        torch.testing.assert_close(optimizer.ema, average, rtol=1e-4, atol=1e-6)
    assert torch.equal(optimizer.lr, torch.tensor(0.4 / 12))


@pytest.mark.slow
@pytest.mark.parametrize(("lr_at", "full"), [("end", 3), ("epoch", 4)])
def test_the_rate_of_a_step_is_recorded(lr_at: str, full: int) -> None:
    """A drop after one epoch of 4 steps: at the end of the last one, or with the next epoch."""
    rates = [1.0] * full + [0.1] * (8 - full)
    epochs = small_run("--milestones", "1", "--lr", "1", "--log-every", "1", "--lr-at", lr_at)
    steps = [json.loads(line) for line in Path("run/steps.jsonl").read_text().splitlines()]
    assert [step["lr"] for step in steps] == pytest.approx(rates)
    assert [epoch["lr"] for epoch in epochs] == pytest.approx([rates[3], rates[7]])


def test_validation_has_steps_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights remember the attacker that they were trained against, as `eval` needs it."""
    judged: list[ThreatModel] = []

    def watched(network: Any, loader: Any, attacks: str, threats: Any, **settings: Any) -> Any:
        judged.extend(threats)
        return evaluate(network, loader, attacks, threats, **settings)

    monkeypatch.setattr(fastcat.runs.validate, "evaluate", watched)
    small_run("--peers", "at", "--restarts", "2", "--step-size", "0.1", "--val-step-size", "2/255")
    assert judged == [ThreatModel(eps=0.1, step_size=2 / 255, steps=2)] * 2
    _, info = load_weights(Path("run/peers/0-at.last.safetensors"))
    assert info.threats == "linf:eps=0.1:step_size=0.1:steps=2"
    config = read_checkpoint(Path("run/checkpoints/last.pt"))["config"]
    assert TrainConfig.from_dict(config).val_step_size == 2 / 255
    assert "val_step_size: 2/255" in Path("run/config.yaml").read_text().splitlines()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        small_run("--seed", seed, out=out)
    assert_same_end(Path("a"), Path("b"))
    a, c = (Path(run, "peers/0-trades.last.safetensors").read_bytes() for run in ("a", "c"))
    assert a != c


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_close_to_float32(precision: str) -> None:
    reference = small_run("--precision", "fp32", out="fp32")
    low = small_run("--precision", precision, out=precision)
    for name, entry in reference[0]["peers"].items():
        assert low[0]["peers"][name]["train"]["loss"] == pytest.approx(
            entry["train"]["loss"], rel=0.05
        )
    state = read_checkpoint(Path(precision, "checkpoints", "last.pt"))
    assert all(t.dtype != torch.float16 for t in state["peers"][0]["model"].values())
    assert bool(state["scaler"]) == (precision == "fp16")


@pytest.mark.slow
def test_the_average_is_judged_and_kept_and_the_weights_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an average that is trained on, and one that is kept but not judged."""
    judged: list[torch.Tensor] = []

    def watched(network: Any, loader: Any, *args: Any, **settings: Any) -> Any:
        judged.append(network(next(iter(loader))[0]).clone())
        return evaluate(network, loader, *args, **settings)

    monkeypatch.setattr(fastcat.runs.validate, "evaluate", watched)
    epochs = small_run("--ema", "0.9", "--peers", "at", "--collab", "none", "--lr", "0.3")
    monkeypatch.setattr(fastcat.runs.validate, "evaluate", evaluate)
    plain = small_run("--peers", "at", "--collab", "none", "--lr", "0.3", out="plain")
    state = read_checkpoint(Path("run/checkpoints/last.pt"))
    for epoch, other in zip(epochs, plain, strict=True):
        assert epoch["peers"]["0-at"]["train"] == other["peers"]["0-at"]["train"]
    trainer = Trainer(TrainConfig.from_dict(state["config"]))
    trainer.load_state_dict(state)
    (peer,) = trainer.peers
    weights = peer.optimizer.flat.clone()
    with peer.optimizer.averaged():
        averaged = {name: value.clone() for name, value in peer.model.state_dict().items()}
        with torch.no_grad():
            expected = peer.model.eval()(next(iter(trainer.validation.monitor))[0])
    torch.testing.assert_close(judged[1], expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        unlike = peer.model(next(iter(trainer.validation.monitor))[0])
    assert not torch.allclose(judged[1], unlike, rtol=0.01, atol=0.01)
    assert not torch.equal(peer.optimizer.ema, weights)
    kept, _ = load_weights(Path("run/peers/0-at.last.safetensors"))
    assert all(torch.equal(value, averaged[name]) for name, value in kept.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "torch", "ffcv"])
def test_no_number_depends_on_the_loader(name: str) -> None:
    if name == "ffcv":
        pytest.importorskip("ffcv", reason="FFCV is not installed")
    flags = ["--crop-pad", "1", "--flip", "True", "--cutout", "3", "--mixup", "0.5"]
    small_run(*flags)
    small_run(*flags, "--loader", name, out="other")
    assert_same_end(Path("run"), Path("other"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--crop-shift 3", "--cutout 3", "--mixup 1", "--cutmix 1"])
def test_every_kind_of_augmentation_trains_and_is_recorded(kind: str) -> None:
    """Catches a flag that is parsed and then forgotten."""
    small_run("--peers", "mart,at", out="plain")
    small_run("--peers", "mart,at", *kind.split())
    weights, plain = (
        read_checkpoint(Path(run, "checkpoints", "last.pt"))["peers"][0]["model"]
        for run in ("run", "plain")
    )
    assert any(not torch.equal(weights[name], plain[name]) for name in weights)
    name, value = kind.removeprefix("--").replace("-", "_").split()
    assert re.search(rf"^{name}: {value}(\.0)?$", Path("run", "config.yaml").read_text(), re.M)


@pytest.mark.slow
def test_a_mirrored_border_trains_as_another_than_a_black_one() -> None:
    small_run("--crop-pad", "2", out="black")
    small_run("--crop-pad", "2", "--crop-reflect")
    assert "crop_reflect: true" in Path("run/config.yaml").read_text().splitlines()
    ours, black = (Path(run, "peers/0-trades.last.safetensors") for run in ("run", "black"))
    assert ours.read_bytes() != black.read_bytes()


@pytest.mark.slow
def test_peers_learn_on_real_digits() -> None:
    """Chance is 10 %; descending the wrong way, or on the wrong labels, stays there."""
    config = TrainConfig(
        arch="tiny",
        peers="at,natural",
        collab="none",
        data="digits",
        eps=0.05,
        steps=2,
        val_steps=5,
        epochs=8,
        batch_size=32,
        lr=0.2,
        schedule="onecycle",
        out=Path("run"),
    )
    result = fastcat.train(config)
    assert result.best["1-natural"]["accuracy"]["clean"] > 0.6
    assert result.best["0-at"]["accuracy"]["pgd5"] > 0.3
    assert result.out == Path("run")


def test_the_api_chooses_a_new_folder_each_time() -> None:
    config = TrainConfig(arch="tiny", data="digits", train_size=20, val_size=5, batch_size=10,
                         steps=1, epochs=1)  # fmt: skip
    outs = [fastcat.train(config).out for _ in range(2)]
    assert outs == [Path("runs/digits-trades-alp"), Path("runs/digits-trades-alp-2")]


def test_the_report_is_one_static_file_with_every_curve() -> None:
    small_run()
    assert main(["eval", "run", "--attacks", "clean,pgd2", "--n", "30"]) == 0
    html = Path("run/report.html").read_text()
    for text in ("0-trades pgd2", "1-alp clean", "Training loss", "test.json", "batch_size: 20"):
        assert text in html
    assert html.count("<polyline") == 8
    assert not re.search(r"<script|src=|href=|https?://(?!www\.w3\.org)", html)


IMAGES = os.environ.get("FASTCAT_CIFAR10_FOLDER")


@pytest.mark.slow
@pytest.mark.skipif(
    IMAGES is None, reason="set FASTCAT_CIFAR10_FOLDER to an unpacked CIFAR-10 image folder"
)
def test_real_images_from_folder_to_evaluated_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in sorted(Path(str(IMAGES)).glob("*/*")):
        some = Path("images", folder.parent.name, folder.name)
        some.mkdir(parents=True)
        for file in sorted(folder.iterdir())[:40]:
            (some / file.name).symlink_to(file)
    train = (
        "train --arch resnet18 --peers trades,alp --data images --train-size 48 --val-size 16 "
        "--epochs 1 --batch-size 24 --steps 2 --val-steps 2 --out run"
    )
    assert main(train.split()) == 0
    assert main(["eval", "run", "--attacks", "clean,fgsm,pgd2", "--n", "32"]) == 0
    record = json.loads(Path("run/eval/test.json").read_text())
    assert len(record["peers"]["0-trades"]["info"]["classes"]) == 10
    assert record["peers"]["1-alp"]["n"] == 32
