"""Settings in YAML: the right meaning, or one sentence with the file, its line and the setting."""

import os
import re
import shlex
from pathlib import Path

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcat.cli import main
from fastcat.cli.train import TrainGroups
from fastcat.config.recipes import RECIPES
from fastcat.config.train import TrainConfig
from fastcat.config.yaml_file import to_yaml, yaml_arguments
from fastcat.errors import InputError


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arguments(content: str | bytes) -> str:
    """What the file means on the command line."""
    content = content if isinstance(content, bytes) else content.encode()
    Path("c.yaml").write_bytes(content)
    return shlex.join(yaml_arguments(Path("c.yaml")))


# YAML 1.1 reads 1e-3 as text, 1:30 as 90, 010 as 8, and no as false
MEANINGS = {
    "an exponent": ("lr: 1e-3", "--lr=1e-3"),
    "an exponent in quotes": ("lr: '1e-3'", "--lr=1e-3"),
    "thousands": ("epochs: 1_000", "--epochs=1_000"),
    "a fraction": ("eps: 8/255", "--eps=8/255"),
    "a negative number": ("lr: -1", "--lr=-1"),
    "a list as it is typed": ("milestones: 100,150\nseeds: 0", "--milestones=100,150 --seeds=0"),
    "yes": ("normalize: yes\nnesterov: Off", "--normalize --no-nesterov"),
    "true in quotes": ("normalize: 'true'", "--normalize"),
    "yes where nothing is possible": ("flip: on", "--flip=True"),
    "nothing": ("ema: ~\nflip: null\nout:", "--ema=None --flip=None --out=None"),
    "no text": ("milestones: ''", "--milestones="),
    "a name like a number": ("data: 010", "--data=010"),
    "a name like a date": ("out: 2024-01-02", "--out=2024-01-02"),
    "a name like a word of YAML": ("out: 'no'", "--out=no"),
    "an alias": ("epsilon: 0.1\nlr-max: 0.2\nmodel: vgg11", "--eps=0.1 --lr=0.2 --arch=vgg11"),
    "dashes": ("val-steps: 2", "--val-steps=2"),
    "an anchor": ("steps: &a 3\nval_steps: *a", "--steps=3 --val-steps=3"),
    "a byte order mark and CRLF": (b"\xef\xbb\xbflr: 0.1\r\nseed: 3\r\n", "--lr=0.1 --seed=3"),
    "UTF-16": ("lr: 0.1".encode("utf-16"), "--lr=0.1"),
    "letters beyond ASCII": ("data: ./café", "'--data=./café'"),
}


@pytest.mark.parametrize(("content", "expected"), MEANINGS.values(), ids=MEANINGS.keys())
def test_a_value_is_read_as_its_option_reads_it(content: str | bytes, expected: str) -> None:
    assert arguments(content) == expected


REFUSED = {
    "unknown": ("epochz: 3", "line 1: unknown setting 'epochz' .* did you mean 'epochs'"),
    "unknown with dashes": ("val-stepz: 3", "did you mean 'val_steps'"),
    "of another command": ("lr: 1\nattacks: pgd20", "line 2: unknown .*'attacks' of fastcat train"),
    "no name": ("? [a]\n: 3", "unknown setting"),
    "twice": ("lr: 0.1\n\nlr: 0.01", "line 3: lr stands in line 1 too"),
    "twice as an alias": ("eps: 0.1\nepsilon: 0.1", "line 2: eps stands in line 1 too"),
    "twice with a dash": ("val-steps: 1\nval_steps: 2", "val_steps stands in line 1 too"),
    "false for a number": ("ema: false", "ema is 'false', a yes or no .*expected a number or null"),
    "off for a number": ("awp: off", "awp is 'off', .*expected a number"),
    "no for a path": ("out: no", "out is 'no', a yes or no unless in quotes"),
    "no for a text": ("data: no", "data is 'no', a yes or no unless in quotes"),
    "a number for a yes": ("normalize: 1", "normalize is '1', expected true or false"),
    "a letter for a yes": ("flip: y", "flip is 'y', expected true or false or null"),
    "octal": ("seed: 010", "seed is 010, octal in YAML"),
    "octal for a fraction": ("lr: 010", "lr is 010, octal in YAML"),
    "hexadecimal": ("epochs: 0x10", "epochs is '0x10', expected a whole number"),
    "minutes": ("epochs: 1:30", "epochs is '1:30', expected a whole number"),
    "a date": ("epochs: 2024-13-45", "epochs is '2024-13-45', expected a whole number"),
    "a fraction for a count": ("epochs: 1.5", "epochs is '1.5', expected a whole number"),
    "infinity": ("lr: .inf", "lr is '.inf', expected a number"),
    "more digits than can be": (f"seed: {'9' * 5000}", r"seed is '9{50}\.\.\.', expected a whole"),
    "no value": ("milestones:", "milestones has no value: .* leave the line out"),
    "null": ("device: null", "device has no value"),
    "no length": ("eps: big", "line 1: eps: 'big' is no length in pixels"),
    "no choice": ("schedule: cosin", "schedule is 'cosin', expected one of multistep, cosine"),
    "a list": ("peers: [trades, alp]", "peers is a list, .* expected one value"),
    "a mapping": ("peers: {at: 1}", "peers is a list, a mapping .* expected one value"),
    "another's kind": ("lr: !length 3", "lr is a list, a mapping or tagged"),
    "code": ("lr: !!python/name:os.system ''", "lr is a list, a mapping or tagged"),
    "code alone": ("!!python/object/apply:os.system ['true']", "expected lines like"),
    "merged": ("<<: {lr: 1}", "unknown setting '<<'"),
    "no mapping": ("- 3", "c.yaml: expected lines like"),
    "no space": ("lr:0.1", "expected lines like"),
    "nothing at all": ("# later", "expected lines like"),
    "two documents": ("lr: 1\n---\nlr: 2", "is not YAML: expected a single document"),
    "broken": ("peers: 'trades", "is not YAML"),
    "a tab": ("\tlr: 1", r"is not YAML: .*'\\t'.* line 1"),
    "Latin-1": ("data: café".encode("latin-1"), "is not YAML: unacceptable character"),
    "a null character": ("lr: 0.1\0", "is not YAML: unacceptable character"),
    # known for wrong only beside the other settings
    "not a number": ("lr: nan", r"lr is nan, .*\(with the settings of c.yaml\)"),
    "a negative count": ("epochs: -1", r"epochs is -1, .*\(with the settings of c.yaml\)"),
    "grey levels": ("eps: 8", r"type 8/255 \(with the settings of c.yaml\)"),
}


@pytest.mark.parametrize(("content", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_means_nothing_is_one_sentence(
    content: str | bytes, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["train", "--config", "c.yaml"]) == 2
    error = capsys.readouterr().err
    assert re.match(r"fastcat: .*\bc\.yaml", error)
    assert error.count("\n") == 1
    assert re.search(expected, error)
    assert os.listdir() == ["c.yaml"]


def read(path: Path) -> TrainConfig:
    """Through the command line's own parser."""
    groups = tyro.cli(TrainGroups, args=yaml_arguments(path), config=(tyro.conf.OmitArgPrefixes,))
    return TrainConfig(**{k: v for group in vars(groups).values() for k, v in vars(group).items()})


def read_back(config: TrainConfig) -> TrainConfig:
    Path("written.yaml").write_text(to_yaml(config), encoding="utf-8")
    return read(Path("written.yaml"))


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.sampled_from(
        ["no", "010", "1e3", "null", "~", "a: b", "[red]", "%s", "a\nb", "-x", "#", " "]
    ),
    st.sampled_from(["x", "'", '"', "é", "🐸", "\udce9", "\x1b", ""]),
)
def test_any_name_survives_being_written_down(name: str, more: str) -> None:
    config = TrainConfig(data=f"{name}{more}", flip=True, normalize=True, ema=1e-5)
    assert read_back(config) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_being_written_down(name: str) -> None:
    config = read(RECIPES[name])
    assert read_back(config) == config


def test_errors_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"cannot read \.: Is a directory"):
        yaml_arguments(Path("."))
    assert main(["train", "--config", "~nobody-here/c.yaml"]) == 2
    assert "cannot be a path" in capsys.readouterr().err
