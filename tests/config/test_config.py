"""Settings: peers as text, pixels as fractions, YAML in and out, and a frozen command line."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fastcat.cli import main
from fastcat.config.peers import parse_peers
from fastcat.config.pixels import format_pixels, parse_pixels
from fastcat.config.train import TrainConfig
from fastcat.config.yaml_file import to_yaml
from fastcat.errors import InputError
from tests.harness import tiny
from tests.harness.runs import SMALL, assert_same_end


@given(st.floats(min_value=1e-6, max_value=1.0))
def test_pixels_survive_being_written_down(value: float) -> None:
    assert parse_pixels(format_pixels(value)) == value


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [("8/255", 8 / 255, "8/255"), ("0.031", 0.031, "0.031"), (" 2 / 255 ", 2 / 255, "2/255")],
)
def test_pixels(text: str, value: float, written: str) -> None:
    assert parse_pixels(text) == value
    assert format_pixels(value) == written


def test_peers_have_methods_settings_and_architectures_of_their_own() -> None:
    peers = parse_peers("trades:beta=3, alp:weight=0.5,at:bn=train@PRN18,natural", "ResNet-34")
    assert [peer.method for peer in peers] == ["trades", "alp", "at", "natural"]
    assert [peer.arch for peer in peers] == ["resnet34", "resnet34", "preactresnet18", "resnet34"]
    assert peers[2].objective.inner is not None
    assert peers[2].objective.inner.bn == "train"
    assert peers[3].objective.inner is None


def test_a_method_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(
        "from fastcat.objectives.natural import Objective, natural\n"
        "def mine(*, depth: int = 3) -> Objective:\n    assert depth == 5\n    return natural()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (peer,) = parse_peers("my_losses:mine:depth=5@resnet18", "resnet34")
    assert (peer.method, peer.arch, peer.objective.views) == ("mine", "resnet18", ("clean",))
    with pytest.raises(InputError, match=r"cannot import method 'my_losses:theirs'"):
        parse_peers("my_losses:theirs", "resnet18")


@pytest.mark.slow
def test_the_saved_configuration_repeats_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    settings = ["--epochs", "1", "--normalize", "--flip", "True", "--nesterov", "--alpha", "0.2"]
    assert main(["train", *SMALL, *settings, "--out", "first"]) == 0
    again = ["train", "--config", "first/config.yaml", "--out", "second"]
    assert main(again) == 0
    assert_same_end(tmp_path / "first", tmp_path / "second")
    first, second = (
        yaml.safe_load(Path(r, "config.yaml").read_text()) for r in ("first", "second")
    )
    assert {**first, "out": "second"} == second
    assert first["eps"] == "0.1"


def test_the_command_line_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("epochs: 7\nseed: 3\nnormalize: true\nval-steps: 2\n")
    arguments = [*SMALL, "--epochs", "1", "--no-normalize"]
    assert main(["train", "--config", "c.yaml", *arguments, "--out", "run"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["epochs"], config["seed"], config["normalize"]) == (1, 3, False)


def test_plain_values_give_the_configuration_back() -> None:
    config = TrainConfig(peers="trades:beta=2,at", eps=0.05, out=Path("runs/x"), milestones="2,3")
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert yaml.safe_load(to_yaml(config))["out"] == "runs/x"


def test_the_command_line_is_frozen() -> None:
    """Scripts rely on these names; a new one is added here on purpose."""
    names = " ".join(field.name for field in dataclasses.fields(TrainConfig))
    assert names == (
        "arch peers collab alpha teachers "
        "data data_dir class_order train_size val_size batch_size loader workers "
        "extra extra_fraction normalize "
        "crop_pad crop_reflect flip crop_shift cutout mixup cutmix "
        "norm eps step_size steps restarts threats val_steps val_step_size "
        "epochs replays lr schedule milestones lr_decay lr_points lr_at warmup_epochs momentum "
        "peak_momentum nesterov weight_decay norm_decay bn_groups ema ema_warmup swa awp "
        "awp_warmup "
        "out seed seeds select_on precision device sgd engine threads log_every save_every "
        "on_collapse"
    )


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert text.count("(default: ") == len(dataclasses.fields(TrainConfig))
