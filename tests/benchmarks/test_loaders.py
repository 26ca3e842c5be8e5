"""The race of the loaders: everyone brings every image, and nothing is left behind."""

import json
from pathlib import Path

import pytest
import torch

from fastcat.benchmarks import loaders
from fastcat.cli import main
from tests.harness.image_folders import beside, make_folder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", train=9, height=16, width=16)


@pytest.mark.slow
def test_all_loaders_bring_all_images_scaled(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    dataset = loaders.load_dataset(str(folder), tmp_path)
    (tmp_path / "place").mkdir()
    found = loaders.contestants(dataset, folder, 4, CPU, tmp_path / "place")
    assert list(found) == ["ffcv", "resident", "stream", "torch", "FFCV's own", "torchvision"]
    for name, epoch in found.items():
        batches = list(epoch())
        assert [len(x) for x in batches] == [4, 4, 4, 4, 2], name
        assert all(x.shape[1:] == (3, 16, 16) and x.dtype == torch.float32 for x in batches)
        x = torch.cat(batches)
        assert 0.3 < x.mean() < 0.55, name
        assert x.max() == 1
        assert x.min() == 0


@pytest.mark.slow
def test_the_command_writes_what_it_prints(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    arguments = f"bench --what loaders --batch-size 4 --repetitions 2 --data {folder} --out {out}"
    assert main(arguments.split()) == 0
    rows = json.loads(out.read_text())["loaders"]
    printed = capsys.readouterr().out
    for row in rows:
        assert row["contestant"] in printed
        assert row["low"] <= row["images_per_second"] <= row["high"]
        assert row["images"] == 18
    assert beside(folder) == {"bench.json"}
