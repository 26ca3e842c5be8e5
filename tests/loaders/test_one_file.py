"""A new data set or loader is one file; the wing's imports go one way."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastcat.errors import InputError
from fastcat.loaders.registry import load_dataset

ROOT = Path(__file__).parents[2] / "loaders"
# who may import whom inside the wing: only what stands further down
ORDER = (
    "convert", "contact_sheet", "inspection", "choose", "backends", "extra_file", "registry",
    "class_order", "torchvision_sets", "items", "item_labels", "datasets", "streamed", "loader",
    "augmentation", "extra", "readers", "validation_split", "formats", "class_names", "dataset",
    "labels",
)  # fmt: skip

STRIPES = '''"""Twelve images of stripes in 2 classes."""

import numpy as np

from fastcat.loaders.dataset import Dataset, Split


def stripes_2(data_dir, progress=None):
    labels = np.arange(12) % 2
    images = np.zeros((12, 8, 8, 3), np.uint8)
    images[labels == 1, ::2] = 255
    split = Split(images, labels)
    return Dataset(
        name="stripes-2", classes=("flat", "striped"), train=split, test=split, crop_pad=0,
        flip=False, digest="stripes" * 4,
    )
'''
PLAIN = '''"""Every batch read when it is asked for."""

from fastcat.loaders.readers import array_reader
from fastcat.loaders.streamed import StreamedLoader


def plain(dataset, part, sampling, device, data_dir, workers):
    split = getattr(dataset, part)
    return StreamedLoader(split, sampling, device, array_reader(split))
'''


RUN = """
import sys
from fastcat.loaders import backends, datasets

datasets.__path__.append(sys.argv[1] + "/datasets")
backends.__path__.append(sys.argv[1] + "/backends")
from fastcat.cli import main
from tests.harness import tiny

tiny.register()
sys.exit(main(sys.argv[2:]))
"""


def command(folder: Path, *arguments: str) -> str:
    """What a command prints where `folder` has a data set and a loader more."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *arguments],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.process
def test_a_data_set_and_a_loader_of_one_file_train_a_step(tmp_path: Path) -> None:
    for package, name, text in (("datasets", "stripes_2", STRIPES), ("backends", "plain", PLAIN)):
        (tmp_path / package).mkdir()
        (tmp_path / package / f"{name}.py").write_text(text)
    assert re.search(r"stripes-2 +Twelve images of", command(tmp_path, "list", "datasets"))
    assert re.search(r"plain +Every batch read when", command(tmp_path, "list", "loaders"))
    out = tmp_path / "run"
    typed = "train --data stripes-2 --loader plain --arch tiny --peers at --batch-size 4 --epochs 1"
    typed += " --steps 1 --val-steps 1 --val-size 4 --threads 1 --device cpu"
    printed = command(tmp_path, *typed.split(), "--out", str(out))
    assert "images plain" in printed
    (epoch,) = (out / "metrics.jsonl").read_text().splitlines()
    assert json.loads(epoch)["epoch"] == 1


def test_an_unknown_data_set_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set 'strips-2'"):
        load_dataset("strips-2", tmp_path)


def test_names_are_listed_without_torch_and_numpy() -> None:
    code = (
        "import sys; from fastcat.loaders.registry import *;"
        "from fastcat.registry import described;"
        "assert 'tiny-imagenet-200' in dataset_names() and 'ffcv' in loader_names();"
        "assert described(DATASETS)['svhn'].startswith('99 289 colour images');"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _imported(path: Path) -> set[str]:
    """Parts of the wing that a file imports, by the first part of their path."""
    inside = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1]
            found.add((*base, *(node.module or "").split("."))[0])
    return found


def test_imports_of_the_wing_go_down_only() -> None:
    """Catches a circle, and a format that knows of loaders."""
    wrong, parts = [], set()
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        parts.add(own)
        wrong += [
            f"{path.name} imports {other}"
            for other in _imported(path) - {own}
            if ORDER.index(other) <= ORDER.index(own)
        ]
    assert parts == set(ORDER)
    assert not wrong
