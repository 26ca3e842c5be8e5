"""`fastcat.load`: the network that was trained, and sentences where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fastcat
from fastcat.models import make_model
from fastcat.weights.file import load_weights
from tests.harness import tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two peers, "one", and "several" seeds of one peer."""
    tiny.register()
    folder = tmp_path_factory.mktemp("runs")
    settings: dict[str, Any] = {
        "arch": "tiny", "data": "digits", "eps": 0.1, "epochs": 2, "steps": 1, "val_steps": 1,
        "train_size": 40, "val_size": 20, "batch_size": 20, "threads": 1, "normalize": True,
    }  # fmt: skip
    fastcat.train(fastcat.TrainConfig(**settings, out=folder / "one"), quiet=True)
    several = fastcat.TrainConfig(**settings, peers="at", seeds="0,1", out=folder / "several")
    fastcat.train(several, quiet=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ({}, "0-trades.best"),
        ({"peer": 1}, "1-alp.best"),
        ({"peer": "1-alp", "weights": "last"}, "1-alp.last"),
    ],
)
def test_a_peer_of_a_run(runs: Path, arguments: dict[str, Any], file: str) -> None:
    path = runs / "one" / "peers" / f"{file}.safetensors"
    network = fastcat.load(runs / "one", **arguments)
    assert not network.training
    x = torch.rand(3, 1, 8, 8)
    expected = load_weights(path)[0](x)
    assert torch.equal(network(x), expected)
    assert torch.equal(fastcat.load(str(path))(x), expected)
    # normalisation is inside
    assert "normalize.mean" in network.state_dict()


@pytest.mark.slow
def test_what_is_loaded_can_be_attacked_and_evaluated(runs: Path) -> None:
    network = fastcat.load(runs / "one")
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    threat = fastcat.ThreatModel(eps=0.1, step_size=0.05, steps=2)
    x_adv = fastcat.attack(network, x, y, threat)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    report = fastcat.evaluate(network, [(x, y)], "clean,pgd2", threat)
    assert 0 <= report.accuracy("pgd2") <= report.accuracy("clean") <= 1


def test_a_checkpoint_of_others(tmp_path: Path) -> None:
    tiny.register()
    torch.manual_seed(0)
    theirs = make_model("tiny", 4, 3).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pt")
    x, before = torch.rand(2, 3, 8, 8), torch.get_rng_state()
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]
    network = fastcat.load(tmp_path / "theirs.pt", arch="tiny", classes=4, mean=mean, std=std)
    assert torch.equal(torch.get_rng_state(), before)
    scaled = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(network(x), theirs(scaled))
    assert torch.equal(fastcat.load(tmp_path / "theirs.pt", arch="tiny", classes=4)(x), theirs(x))


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        ([0.5] * 3, [0.2], "std is .*, expected 3 numbers above 0, as many as in mean"),
        ([0.5] * 3, [0.2, 0.0, 0.2], "expected 3 numbers above 0"),
        ([0.5] * 3, [0.2, -1.0, 0.2], "expected 3 numbers above 0"),
        ([float("nan")] * 3, [0.2] * 3, "mean is .*, expected finite numbers"),
        (0.5, 0.2, "mean is 0.5, expected numbers as"),
        (["a"] * 3, [0.2] * 3, "mean is .*, expected numbers as"),
        ([0.5] * 2, [0.2] * 2, "mean has 2 numbers for 3 channels"),
    ],
)
def test_a_normalisation_that_is_none(tmp_path: Path, mean: Any, std: Any, text: str) -> None:
    """Catches a network that is loaded all the same, whose logits are then NaN."""
    tiny.register()
    torch.save(make_model("tiny", 4, 3).state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(fastcat.InputError, match=text):
        fastcat.load(tmp_path / "theirs.pt", arch="tiny", classes=4, mean=mean, std=std)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("nothing", {}, "holds no weights|there is no weight file"),
        ("one", {"peer": 7}, "has no peer '7'"),
        ("one", {"weights": "first"}, "weights is 'first', expected 'best' or 'last'"),
        ("one", {"arch": "tiny"}, "which knows its networks: leave arch out"),
        ("one", {"mean": [0.5]}, "say arch too"),
        ("one", {"device": "gpu"}, "unknown device 'gpu'"),
        ("several", {}, "holds several runs: give one of them, as .*seed-0"),
        ("one/peers/0-trades.best.safetensors", {"arch": "tiny", "mean": [0.5]}, "give both"),
        ("one/peers/0-trades.best.safetensors", {"arch": "tiny", "peer": 1}, "leave them or arch"),
    ],
)
def test_what_cannot_be_loaded(runs: Path, name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(fastcat.InputError, match=text) as caught:
        fastcat.load(runs / name, **arguments)
    assert len(str(caught.value).splitlines()) == 1
