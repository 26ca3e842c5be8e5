"""Files are whole or absent; weights travel with all that is needed to use them."""

import os
from pathlib import Path

import pytest
import torch

from fastcat.errors import InputError
from fastcat.files import write_atomically, write_text
from fastcat.runs.checkpoint import load_last_checkpoint, read_checkpoint, save_checkpoint
from fastcat.weights.file import WeightsInfo, load_weights, save_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_the_last_two_checkpoints_are_kept(run: Path) -> None:
    for epoch in range(3):
        save_checkpoint(run, {"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    assert read_checkpoint(run / "checkpoints" / "last.pt")["epoch"] == 2
    assert read_checkpoint(run / "checkpoints" / "previous.pt")["epoch"] == 1
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.pt", "previous.pt"}


def test_a_checkpoint_can_be_loaded_at_every_moment_of_saving(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any call to the system leaves the newest or the one before."""
    save_checkpoint(run, {"epoch": 0})
    save_checkpoint(run, {"epoch": 1})
    seen = []
    replace, fsync, link = os.replace, os.fsync, os.link

    def look(call):  # type: ignore[no-untyped-def]
        def wrapped(*arguments):  # type: ignore[no-untyped-def]
            seen.append(load_last_checkpoint(run)[0]["epoch"])
            call(*arguments)
            seen.append(load_last_checkpoint(run)[0]["epoch"])

        return wrapped

    monkeypatch.setattr(os, "replace", look(replace))
    monkeypatch.setattr(os, "fsync", look(fsync))
    monkeypatch.setattr(os, "link", look(link))
    save_checkpoint(run, {"epoch": 2})
    # fsync, rename of the new file, link, previous.pt, last.pt: before and after each
    assert seen == [1] * 9 + [2]
    assert read_checkpoint(run / "checkpoints" / "previous.pt")["epoch"] == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_good_checkpoint_stays_while_others_follow(
    links: bool, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system has no hard links."""

    def refuse(*_: object) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for epoch, good in enumerate((True, True, False, False)):
        save_checkpoint(run, {"epoch": epoch}, good)
    epochs = {p.name: read_checkpoint(p)["epoch"] for p in (run / "checkpoints").iterdir()}
    assert epochs == {"good.pt": 1, "previous.pt": 2, "last.pt": 3}


def test_tensors_keep_their_memory_layout(run: Path) -> None:
    weight = torch.rand(4, 3, 3, 3).to(memory_format=torch.channels_last)
    save_checkpoint(run, {"weight": weight})
    loaded = read_checkpoint(run / "checkpoints" / "last.pt")["weight"]
    assert torch.equal(loaded, weight)
    assert loaded.stride() == weight.stride()


def test_a_writer_that_fails_leaves_the_file_and_no_debris(tmp_path: Path) -> None:
    write_text(tmp_path / "config.yaml", "epochs: 3\n")

    def fail(file):  # type: ignore[no-untyped-def]
        file.write(b"epo")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "config.yaml", fail)
    assert (tmp_path / "config.yaml").read_text() == "epochs: 3\n"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(InputError, match=r"cannot write .*Not a directory"):
        write_text(tmp_path / "config.yaml" / "x", "")


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [None, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))])
def test_a_weight_file_rebuilds_its_network(
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None, tmp_path: Path
) -> None:
    mean, std = normalize or (None, None)
    info = WeightsInfo(
        peer="0-trades",
        arch="preactresnet18",
        data="pets",
        classes=("cat", "dog", "owl"),
        channels=3,
        mean=mean,
        std=std,
        threats="linf:eps=8/255:step_size=2/255",
        epoch=7,
        selected="best on val",
    )
    model = info.build().to(memory_format=torch.channels_last).eval()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), info)
    loaded, same_info = load_weights(tmp_path / "w.safetensors")
    assert same_info == info
    assert not loaded.training
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x))
    names = set(model.state_dict())
    assert ("net.conv1.weight" if normalize else "conv1.weight") in names
