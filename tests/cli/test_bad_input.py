"""Whatever is wrong with the input: one sentence, exit status 2, nothing lost.

Long, being the one list of what can be typed wrongly.
"""

import contextlib
import os
import pickle
import re
import resource
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcat.cli import main
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.runs.checkpoint import read_checkpoint, save_checkpoint
from fastcat.runs.trainer import Trainer
from tests.harness import tiny
from tests.harness.runs import SMALL


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The sentence that `fastcat ARGUMENTS` ends with, after checking that it is one."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastcat: ")
    assert error.count("\n") == 1, "more than one line"
    assert "Traceback" not in error
    return error


def image_folder(root: Path, *classes: str, side: int = 8, images: int = 6) -> Path:
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = np.full((side, side, 3), 20 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


TWO_THREATS = "--threats linf:eps=0.1,l2:eps=0.5"
SETTINGS = {
    "unknown peer": ("--peers tardes,alp", "'tardes'.*did you mean 'trades'"),
    "empty peer": ("--peers trades,,alp", "expected methods like trades,alp"),
    "unknown setting": ("--peers trades:bta=6", "no setting 'bta'.*beta=6.0"),
    "setting of the wrong type": ("--peers trades:beta=six", "beta=six is no float"),
    "setting without value": ("--peers trades:beta=", "settings like trades:beta=6"),
    "setting twice": ("--peers trades:beta=6:beta=1", "beta stands there twice, as 6 and 1"),
    "setting of a collaboration twice": (
        "--collab cat:own_first=true:own-first=false",
        "own_first stands there twice",
    ),
    "negative setting": ("--peers alp:weight=-1", "weight=-1: expected"),
    "a function that is no method": ("--peers os:getcwd", "annotated .-> Objective."),
    "code in a setting": ("--peers 'os:system:command=touch x'", "annotated .-> Objective."),
    "unknown bn mode": ("--peers at:bn=off", "unknown attack bn .off.: .*eval"),
    "unknown arch": ("--arch resnet81", "'resnet81'.*did you mean 'resnet18'"),
    "unknown arch of a peer": ("--peers at@resnt34", "did you mean 'resnet34'"),
    "the home of nobody": ("--data ~nobody-here/images", "cannot be a path"),
    "unknown data": ("--data cifr10", "'cifr10'.*did you mean 'cifar10'"),
    "unknown collaboration": ("--collab catt", "'catt'.*did you mean 'cat'"),
    "unknown setting of a collaboration": ("--collab cat:own=true", "cat takes own_first=False"),
    "setting of a collaboration without value": ("--collab mat:detach", "cat:own_first=true"),
    "eps in grey levels": ("--eps 8", "type 8/255"),
    "eps negative": ("--eps -0.1", "for example 8/255"),
    "eps zero": ("--eps 0", "for example 8/255"),
    "eps no number": ("--eps big", "for example 8/255"),
    "eps beyond all grey levels": ("--eps 300", "for example 8/255"),
    "eps beyond all numbers": ("--eps 1e400", "for example 8/255"),
    "eps divided by zero": ("--eps 8/0", "for example 8/255"),
    "eps not a number": ("--eps nan", "for example 8/255"),
    "step size in grey levels": ("--step-size 2", "type 2/255"),
    "steps 0": ("--steps 0", "at least 1"),
    "restarts 0": ("--restarts 0", "at least 1"),
    "l2 with the radius of linf": ("--norm l2 --eps 8/255", "a radius of linf: type --eps too"),
    "threats without radius": ("--threats l2", "l2 has no radius: type for example l2:eps=0.5"),
    "threats of an unknown norm": ("--threats l3:eps=1", "unknown norm 'l3': known are"),
    "threats in grey levels": ("--threats linf:eps=8,l2:eps=1", "type 8/255"),
    "a norm twice": ("--threats l2:eps=1,l2:eps=2", "a norm stands there twice"),
    "generalist of one threat": ("--peers at:threat=avg", "several threat models: .* --threats"),
    "no such threat": (f"--peers at:threat=l1 {TWO_THREATS}", "there is no threat 'l1': known"),
    "a way with a slip": (f"--peers at:threat=mx {TWO_THREATS}", "did you mean 'max'"),
    "threat of nobody": (
        f"--peers natural:threat=max,at {TWO_THREATS}",
        "natural is not attacked: leave threat out",
    ),
    "threat of a teacher": ("--peers at,teacher:weights=a.st:threat=linf", "is not attacked"),
    "two views under avg": (f"--peers st:threat=avg {TWO_THREATS}", "one adversarial view"),
    "two views under max": (f"--peers st:threat=max {TWO_THREATS}", "one adversarial view"),
    "two views under msd": (f"--peers st:threat=msd {TWO_THREATS}", "one adversarial view"),
    "restarts of msd": (f"--peers at:threat=msd --restarts 2 {TWO_THREATS}", "msd starts once"),
    "restarts of max-official": (
        f"--peers at:threat=max-official --restarts 2 {TWO_THREATS}",
        "max-official has the starts of its code: type --restarts 1",
    ),
    "official in another loss": (
        f"--peers trades:threat=msd-official {TWO_THREATS}",
        "climbs cross-entropy, .* peer 0 does not: type threat=msd, or a method like at",
    ),
    "official with two views": (f"--peers st:threat=max-official {TWO_THREATS}", "one adversarial"),
    "official average in company": (
        f"--peers at:threat=avg-official,boosted:threat=linf --collab mat-mp {TWO_THREATS}",
        "several times a batch: train it alone, or type threat=avg",
    ),
    "official average of another loss": (
        f"--peers boosted:threat=avg-official {TWO_THREATS}",
        "peer 0 does not: type threat=avg",
    ),
    "official of one threat": ("--peers at:threat=max-official", "several threat models: .*"),
    "code of another norm": ("--threats linf:eps=0.1:code=rice", "is for l2, not for linf: leave"),
    "code of nobody": (
        "--threats l2:eps=0.5:code=rise",
        "unknown code 'rise': did you mean 'rice'",
    ),
    "code without a name": ("--threats l2:eps=0.5:code", "expected settings like l2:eps=0.5"),
    "no specialist": (
        f"--peers at:threat=avg,at:threat=linf --collab mat-mp {TWO_THREATS}",
        "nobody who teaches peer 0 specialises in l2: add a peer like boosted:threat=l2",
    ),
    "a specialist who is not attacked": (
        f"--peers at:threat=avg,natural,at:threat=l2 --collab mat-mp {TWO_THREATS}",
        "nobody who teaches peer 0 specialises in linf",
    ),
    "a specialist who is a teacher": (
        f"--peers at:threat=avg,teacher:weights=a.st,at:threat=l2 --collab mat-mp {TWO_THREATS}",
        "nobody who teaches peer 0 specialises in linf",
    ),
    "a specialist who does not teach": (
        f"--peers at:threat=max,at,at:threat=l2 --collab mat-mp --teachers 1>0 {TWO_THREATS}",
        "nobody who teaches peer 0 specialises in l2",
    ),
    "alpha above 1": ("--alpha 1.5", r"\[0, 1\]"),
    "alpha negative": ("--alpha -0.1", r"\[0, 1\]"),
    "alpha without guidance": ("--collab none --alpha 0.5", "none"),
    "alpha of mat above 1": ("--collab mat --alpha 2", r"\[0, 1\]"),
    "teachers no pairs": ("--teachers everyone", "expected all, ring, or .* like 0>1,1>2"),
    "teachers empty": ("--teachers ''", "expected all, ring, or .* like 0>1,1>2"),
    "teachers the wrong way": ("--teachers 0<1", "expected all, ring, or .* like 0>1,1>2"),
    "teachers of nobody": ("--teachers 0>", "expected all, ring, or .* like 0>1,1>2"),
    "no such teacher": ("--teachers 0>1,7>0", "no peer 7, expected numbers from 0 to 1 like"),
    "teaching oneself": ("--teachers 1>1", "1>1 teaches itself, expected others like 0>1"),
    "teachers side by side": ("--collab none --teachers ring", "nobody teaches: type --collab cat"),
    "teacher without weights": ("--peers at,teacher", "teacher:weights: expected a weight file"),
    "teacher with a setting": ("--peers at,teacher:beta=1", "teacher has no setting 'beta'"),
    "teacher that is not there": ("--peers at,teacher:weights=a.st", "no weight file .*a.st"),
    "teacher in the home of nobody": ("--peers at,teacher:weights=~nobody-x/a", "cannot be a path"),
    "teacher alone": ("--peers teacher:weights=a.st", "nobody is trained: type peers beside"),
    "teacher side by side": ("--peers at,teacher:weights=a.st --collab none", "nobody teaches"),
    "a method's teacher missing": ("--peers rslad", "peer 0 .* and has 0: add teacher:weights="),
    "a method's teacher one of two": (
        "--peers at,teacher:weights=a.st,rslad,iad --collab none",
        "peer 2 learns from one teacher by its method, and has 3: say .*'1>2,1>3'",
    ),
    "a method's teacher not said": (
        "--peers act:role=natural,act --teachers 0>1",
        "peer 0 learns from one teacher by its method, and has 0: say .*'1>0,0>1'",
    ),
    "a method's teacher side by side with at": (
        "--peers teacher:weights=a.st,rslad,at --teachers 0>1,1>2 --collab none",
        "nobody teaches",
    ),
    "a method's loss of its own on mixed images": (
        "--peers natural,iad --mixup 1",
        "1-iad cannot train on mixed images",
    ),
    "teacher that is taught": (
        "--peers at,teacher:weights=a.st --teachers 0>1",
        "peer 1 is not trained and learns from nobody, .* like 1>0",
    ),
    "teacher that teaches nobody": (
        "--peers at,at,teacher:weights=a.st --teachers 0>1",
        "peer 2 is not trained and teaches nobody, .* like 2>0",
    ),
    "epochs 0": ("--epochs 0", "epochs is 0, expected at least 1"),
    "lr 0": ("--lr 0", "more than 0"),
    "lr decay 1": ("--lr-decay 1", r"lr-decay is 1, expected a factor in \(0, 1\)"),
    "lr decay of a cosine": ("--lr-decay 0.2 --schedule cosine", "belongs to --schedule multistep"),
    "lr points of a cosine": (
        "--schedule cosine --lr-points 0:1,2:0",
        "lr-points belong to --schedule linear, not to cosine",
    ),
    "lr points that descend": ("--schedule linear --lr-points 2:1,1:0", "epochs that ascend"),
    "peak momentum 1": ("--schedule cyclic --peak-momentum 1", r"peak-momentum is 1, .* \[0, 1\)"),
    "peak momentum without a peak": ("--peak-momentum 0.8", "cyclic, triangular or onecycle, not"),
    "lr not a number": ("--lr nan", "more than 0"),
    "lr infinite": ("--lr inf", "more than 0"),
    "warm-up without end": ("--warmup-epochs inf", "at least 0"),
    "momentum 1": ("--momentum 1", r"\[0, 1\)"),
    "negative weight decay": ("--weight-decay -1", "at least 0"),
    "nesterov without momentum": ("--nesterov --momentum 0", "above 0"),
    "bn groups 0": ("--bn-groups 0", "bn-groups is 0, expected at least 1"),
    "bn groups of unequal size": ("--bn-groups 3", "divides --batch-size 20 into groups of 2"),
    "bn groups of one image": ("--bn-groups 20", "divides --batch-size 20 into groups of 2"),
    "ema 1": ("--ema 1", r"ema is 1, expected a decay in \[0, 1\)"),
    "ema negative": ("--ema -0.5", r"\[0, 1\)"),
    "ema not a number": ("--ema nan", r"\[0, 1\)"),
    "ema warm-up 1": ("--ema 0.9 --ema-warmup 1", r"ema-warmup is 1, .* in \[0, 1\) and"),
    "ema warm-up without ema": ("--ema-warmup 0.025", "--ema with it: type --ema 0.995"),
    "swa 0": ("--swa 0", "swa is 0, expected at least 1"),
    "swa after the end": ("--swa 201", "swa is 201, expected at most the 200 --epochs"),
    "two averages": ("--swa 1 --ema 0.9", "choose one of them"),
    "awp negative": ("--awp -0.1", "awp is -0.1, expected at least 0"),
    "awp not a number": ("--peers trades:awp=much", "awp is much, expected a gamma like 0.005"),
    "awp warm-up negative": ("--awp-warmup -1", "awp-warmup is -1, expected at least 0"),
    "graph without a GPU": ("--engine graph --device cpu", "'graph' needs a GPU: type --engine"),
    "both without a GPU": ("--engine compile+graph --device cpu", "needs a GPU: type --engine"),
    "no such extra images": ("--extra nowhere.npz", "nowhere.npz cannot be read"),
    "extra images of no kind": ("--extra nonsense", "no data set 'nonsense'"),
    "no room for extra images": ("--extra a.npz --extra-fraction 0.01", "is 0 images, expected 1"),
    "two ways of shifting": ("--crop-pad 2 --crop-shift 2", "both move the image"),
    "two ways of mixing": ("--mixup 1 --cutmix 1", "choose one of them"),
    "shifted out of sight": ("--crop-shift 8", "images are 8 x 8 pixels: expected less than 8"),
    "padded out of sight": ("--crop-pad 9", "crop-pad is 9, .* expected less than 9"),
    "more threads than can be": ("--threads 100000000000", "expected at most 1024"),
    "an infinite setting": ("--peers trades:beta=inf", "trades:beta=inf is no float"),
    "a hole as large as the image": ("--cutout 9", "expected less than 8"),
    "negative mixup": ("--mixup -1", "at least 0"),
    "mirrored from beyond": ("--crop-pad 8 --crop-reflect", "mirror at most 7: type --crop-pad 7"),
    "mirrored and shifted": ("--crop-reflect --crop-shift 2", "belongs to --crop-pad, not to"),
    "validation steps in 255ths": ("--val-step-size 2", "type 2/255"),
    "validation steps of several": (
        "--val-step-size 2/255 --threats linf:eps=0.1,l2:eps=1",
        "--val-step-size is for one attacker",
    ),
    "batch of 1": ("--batch-size 1", "at least 2"),
    "batch larger than the data": ("--batch-size 4000", "larger than the 70 training images"),
    "more images than there are": ("--train-size 100000", "more than the 1438 there are"),
    "nothing to select on": ("--val-size 0", "--select-on last"),
    "milestones for cosine": ("--schedule cosine --milestones 2", "multistep"),
    "descending milestones": ("--milestones 20,10", "ascending"),
    "milestones no numbers": ("--milestones ten", "like 100,150"),
    "seeds no numbers": ("--seeds 0,one", "seeds is '0,one', expected .* like 0,1,2"),
    "seeds negative": ("--seeds 1,-2", "seeds is '1,-2', expected .* like 0,1,2"),
    "seeds empty": ("--seeds ''", "seeds is '', expected .* like 0,1,2"),
    "a seed twice": ("--seeds 1,2,01", "expected different whole numbers like 0,1,2"),
    "seed and seeds": ("--seed 3 --seeds 1,2", "seed is 3 and seeds is 1,2: leave one of them"),
    "seeds of a run that cannot be": ("--seeds 1,2 --cutout 9", "expected less than 8"),
    "unknown device": ("--device tpu9", "cpu, cuda"),
    "no such gpu": ("--device cuda:99", "no GPU"),
}


@pytest.mark.parametrize(("arguments", "expected"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_are_refused_before_anything_is_written(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # an option given twice counts as it was given last
    error = refusal(capsys, "train", *SMALL, "--out", "run", *shlex.split(arguments))
    assert re.search(expected, error)
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "unknown command": ("trian", "did you mean 'train'"),
    "resume nothing": ("resume nowhere", "not a run"),
    "eval nothing": ("eval nowhere", "no weights"),
    "unknown data command": ("data covert", "'data covert'.*did you mean 'convert'"),
    "unknown topic": ("list method", "did you mean 'methods'"),
    "config without file": ("train --config", "expected a YAML file"),
    "recipe without name": ("train --recipe", "expected a name of"),
    "unknown recipe": ("train --recipe cat-papr", "recipe 'cat-papr'.*did you mean 'cat-paper'"),
    "config that is not there": ("train --config nowhere.yaml", "cannot read nowhere.yaml"),
}


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS.values(), ids=COMMANDS.keys())
def test_commands(arguments: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(expected, refusal(capsys, *shlex.split(arguments)))


DATA = {
    "out without an ending": ("convert pets out", "neither .packed nor .beton: type out.packed"),
    "out that is there": ("convert pets pets.packed", "exists already.*rm -r"),
    "out in no folder": ("convert pets no/out.packed", "type mkdir -p"),
    "unknown source": ("convert cifr10 out.packed", "no 'cifr10' .*did you mean 'cifar10'"),
    "no such folder": ("convert ./dogs out.packed", "dogs does not exist"),
    "a file that is no source": ("convert notes.txt out.packed", "no 'notes.txt' to convert"),
    "unknown torchvision": ("convert torchvision:MNST out.packed", "type torchvision:MNIST"),
    "images of two sizes": (
        "convert sizes out.packed",
        "data convert .*sizes.packed --resize",
    ),
    "no image to keep": (
        "convert broken out.packed --resize 8 --skip-unreadable",
        "no image of class 'cat' in the train split",
    ),
    "resize 0": ("convert pets out.packed --resize 0", "--resize is 0, expected a side"),
    "resize beyond all use": ("convert pets out.packed --resize 99999", "from 1 to 4096"),
    "share of a folder": ("convert pets out.packed --test-fraction 0.2", "leave --test-frac"),
    "share of nothing": (
        "convert one.npz out.packed --test-fraction 0",
        "is 0.0, expected a share",
    ),
    "one split only": ("convert one.npz out.packed", "type fastcat data .*--test-fraction"),
    "info on nothing": ("info nothing", "no data set 'nothing'"),
    "info on a damaged pack": ("info empty.packed", "pack.json is missing or damaged.*rm -r"),
    "verify a damaged pack": ("verify empty.packed", "pack.json is missing or damaged.*rm -r"),
    "sheet of another format": ("info digits --sheet x.gif", "ending in .png: type x.png"),
    "sheet that is there": ("info digits --sheet there.png", "exists already"),
    "sheet in no folder": ("info digits --sheet no/x.png", "cannot write no/x.png"),
    "torchvision as it is": ("info torchvision:MNIST", "data convert torchvision:MNIST mnist.pack"),
    "training on one split": ("verify one.npz", "type fastcat data convert .*--test-fraction"),
}


@pytest.mark.parametrize(("arguments", "expected"), DATA.values(), ids=DATA.keys())
def test_data(
    arguments: str, expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image_folder(tmp_path / "pets", "cat", "dog")
    sizes = image_folder(tmp_path / "sizes", "cat", "dog")
    Image.new("RGB", (9, 9)).save(sizes / "train" / "dog" / "0.jpg")
    broken = image_folder(tmp_path / "broken", "cat", "dog")
    for path in (broken / "train" / "cat").iterdir():
        path.write_bytes(b"no image")
    np.savez(tmp_path / "one.npz", image=np.zeros((6, 4, 4), np.uint8), label=np.arange(6) % 2)
    for name in ("pets.packed", "empty.packed"):
        (tmp_path / name).mkdir()
    for name in ("notes.txt", "there.png"):
        (tmp_path / name).write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(expected, refusal(capsys, "data", *shlex.split(arguments)))
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.png").read_text() == "years of work"


def test_data_alone_shows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert main(["data", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"fastcat data {name}" in out for name in ("convert", "info", "verify"))


def test_an_unknown_option_exits_with_2_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--epoch", "3"])
    assert stopped.value.code == 2
    assert "--epochs" in "".join(capsys.readouterr())


def test_folders_of_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def train_on(folder: Path) -> str:
        return refusal(capsys, "train", *SMALL, "--data", folder, "--out", "run")

    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in train_on(empty)
    assert "one class" in train_on(image_folder(tmp_path / "single", "cat"))
    mixed = image_folder(tmp_path / "mixed", "cat", "dog")
    (mixed / "train" / "cat" / "notes.txt").write_text("no image")
    assert "notes.txt" in train_on(mixed)
    sizes = image_folder(tmp_path / "sizes", "cat", "dog")
    Image.new("RGB", (9, 9)).save(sizes / "train" / "dog" / "0.jpg")
    assert re.search("0.jpg.*9", train_on(sizes))
    cut = image_folder(tmp_path / "cut", "cat", "dog", side=32)
    jpeg = cut / "test" / "dog" / "3.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-20])
    assert "3.jpg" in train_on(cut)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_never_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "exists already" in refusal(capsys, "train", *SMALL, "--out", "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    assert "exists already" in refusal(capsys, "train", *SMALL, "--out", "file")


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    # not a permission bit, which root may ignore
    error = refusal(capsys, "train", *SMALL, "--out", "/proc/fastcat/run")
    assert "cannot write /proc/fastcat/run" in error


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    """A finished run of one epoch."""
    assert main(["train", *SMALL, "--epochs", "1", "--out", "run"]) == 0
    capsys.readouterr()
    return tmp_path / "run"


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes into any file, as a full disk does."""
    former_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, former_handler)


def test_a_full_disk_keeps_the_former_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.pt"
    before = last.read_bytes()
    state = read_checkpoint(last)
    names = {path for path in run.rglob("*") if path.is_file()}
    with (
        files_up_to(len(before) // 2),
        pytest.raises(InputError, match=r"cannot write .*fresh\.pt"),
    ):
        save_checkpoint(run, state)
    assert last.read_bytes() == before
    assert {path for path in run.rglob("*") if path.is_file()} == names
    with files_up_to(len(before) // 2):
        error = refusal(capsys, "train", *SMALL, "--epochs", "1", "--out", "second")
    assert "cannot write second/checkpoints/fresh.pt" in error
    assert "remove it" in refusal(capsys, "train", *SMALL, "--out", "second")


def test_checkpoints_that_are_no_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, previous = run / "checkpoints" / "last.pt", run / "checkpoints" / "previous.pt"
    whole = last.read_bytes()
    previous.unlink()
    last.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(capsys, "resume", run)
    last.write_bytes(b"")
    assert "damaged" in refusal(capsys, "resume", run)
    last.write_bytes(b"not a checkpoint")
    assert "damaged or not a checkpoint" in refusal(capsys, "resume", run)
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}}, last)
    assert "not a checkpoint of this version" in refusal(capsys, "resume", run)
    last.write_bytes(whole)
    state = read_checkpoint(last)
    for changed in (
        {},
        {"config": {}},
        {**state, "config": {**state["config"], "epochz": 3}},
        {**state, "peers": []},
        {**state, "peers": [state["peers"][0], {**state["peers"][1], "model": {}}]},
    ):
        torch.save({**changed, "format": 1}, last)
        assert "does not fit this version" in refusal(capsys, "resume", run)
    torch.save({**state, "config": {**state["config"], "epochs": "3"}, "format": 1}, last)
    assert "epochs is '3', expected a whole number" in refusal(capsys, "resume", run)
    # a method is named, not called
    torch.save({**state, "config": {**state["config"], "peers": "os:getcwd"}}, last)
    assert "annotated" in refusal(capsys, "resume", run)


class Payload:
    """What an attacker would pickle."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def test_code_in_a_checkpoint_is_refused_and_not_run(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    proof = tmp_path / "executed"
    torch.save({"format": 1, "peers": Payload(proof)}, run / "checkpoints" / "last.pt")
    (run / "checkpoints" / "previous.pt").unlink()
    error = refusal(capsys, "resume", run)
    assert "pickled code" in error
    assert not proof.exists()
    # the same bytes do run where they are trusted: the test would notice
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()


def test_weights_that_are_no_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run / "peers" / "0-trades.best.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    assert "damaged" in refusal(capsys, "eval", weights)
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(2)}, weights)
    assert "not written by fastcat" in refusal(capsys, "eval", weights)
    for header in ("{", "{}", "[]", '{"arch": 3}'):
        save_file({"conv1.weight": torch.zeros(2)}, weights, {"fastcat": header})
        assert "which network it holds" in refusal(capsys, "eval", weights)
    torch.save({}, weights)
    assert "not a safetensors file" in refusal(capsys, "eval", weights)


EVALS = {
    "unknown attack": ("--attacks pgd", "pgd needs steps: pgd takes steps, loss=ce"),
    "attack twice": ("--attacks clean,clean", "twice"),
    "unknown peer": ("--peer 7", "no peer '7'"),
    "more images than there are": ("--n 5000", "has 359 images"),
    "no images": ("--n 0", "at least 1"),
    "eps in grey levels": ("--eps 8", "type 8/255"),
    "out inside a file": ("--out run/config.yaml/x.json", "cannot write run/config.yaml/x.json"),
    "other channels": ("--data pets", "1 channels.*have 3"),
    "restarts 0": ("--restarts 0", "at least 1"),
}


@pytest.mark.parametrize(("arguments", "expected"), EVALS.values(), ids=EVALS.keys())
def test_evaluation(
    arguments: str, expected: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image_folder(tmp_path / "pets", "cat", "dog")
    assert re.search(expected, refusal(capsys, "eval", run, *shlex.split(arguments)))
    assert not list(run.glob("eval/*"))


def test_a_loss_that_is_not_finite_stops_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refusal(
        capsys, "train", *SMALL, "--epochs", "3", "--lr", "1e20", "--peers", "mart", "--out", "run"
    )
    assert re.search(
        r"term '(bce|kl)' of peer 0-mart became (nan|inf) in epoch 1 by step \d", error
    )
    assert "kept as it was in run/checkpoints/last.pt" in error
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["epoch"] == 0
    assert all(torch.isfinite(t).all() for t in state["peers"][0]["model"].values())


def test_a_weight_that_is_not_finite_is_never_saved(run: Path) -> None:
    """The last step of an epoch can spoil a weight after its own loss was still finite."""
    last = run / "checkpoints" / "last.pt"
    before = last.read_bytes()
    config = TrainConfig(arch="tiny", data="digits", peers="at", train_size=20, batch_size=10)
    trainer = Trainer(config)
    trainer.peers[0].model.get_parameter("linear.bias").data[3] = torch.inf
    with pytest.raises(InputError, match=r"weight 'linear\.bias' of peer 0-at is no longer finite"):
        trainer.save(run)
    assert last.read_bytes() == before


def test_changed_data_are_not_trained_on(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read_checkpoint(run / "checkpoints" / "last.pt")
    save_checkpoint(run, {**state, "data_digest": "another"})
    assert "not those that the run began with" in refusal(capsys, "resume", run)
