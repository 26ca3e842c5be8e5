"""The settings of a training run: frozen, validated, and the same on the command line and in YAML.

The fields stand in groups as `fastcat train --help` shows them; TrainConfig holds them all.
"""

import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from fastcat.collaboration import make_collaboration
from fastcat.errors import InputError, nearest
from fastcat.loaders.augmentation import Augmentation
from fastcat.models import canonical_arch
from fastcat.optim import make_schedule, parse_milestones
from fastcat.peer_spec import PeerSpec, parse_peers
from fastcat.precision import DTYPES
from fastcat.threat import ThreatModel


def parse_pixels(text: str) -> float:
    """ "8/255" or "0.03" -> pixels in [0, 1]. Raises InputError, for a bare 8 with what to type."""
    numerator, slash, denominator = text.replace(" ", "").partition("/")
    try:
        value = int(numerator) / int(denominator) if slash else float(numerator)
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{text!r} is no length in pixels: type for example 8/255") from error
    if 1 < value <= 255:
        raise InputError(f"{text} is more than the whole range [0, 1] of a pixel: type {text}/255")
    if not 0 < value <= 1:
        raise InputError(f"{text} is no length in pixels of [0, 1]: type for example 8/255")
    return value


def format_pixels(value: float) -> str:
    """The shortest text that parse_pixels reads back to the same float, in 255ths where it can."""
    levels = round(value * 255, 6)
    whole = levels == int(levels) and int(levels) / 255 == value
    return f"{int(levels)}/255" if whole else repr(value)


Pixels = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PIXELS",
        instance_from_str=lambda args: parse_pixels(args[0]),
        is_instance=lambda value: isinstance(value, (int, float)),
        str_from_instance=lambda value: [format_pixels(value)],
    ),
]


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Who trains, and what peers owe each other."""

    arch: Annotated[str, arg(aliases=["--model"])] = "resnet18"
    """Architecture of every peer that names none; see `fastcat list archs`."""
    peers: str = "trades,alp"
    """Methods with settings and architecture, for example trades:beta=6,alp,mart@preactresnet18;
    teacher:weights=FILE.safetensors teaches and is not trained."""
    collab: str = "cat"
    """cat: each peer is taught on its adversary by the others; mat: by what they say of the clean
    images; none: side by side."""
    alpha: float | None = None
    """As the papers have it, in [0, 1]. cat: weight of the peer's own objective, 1 - alpha of the
    guidance; None: 0.05. mat: weight of the guidance; None: 0.6 (the paper's CIFAR-100: 0.45)."""
    teachers: str = "all"
    """Who teaches whom: all, ring (each the next), or by number, as 0>1,1>2."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What they are trained on."""

    data: Annotated[str, arg(aliases=["--dataset"])] = "cifar10"
    """A name of `fastcat list datasets`, or a path: a folder of images, .packed, .beton, .npz."""
    data_dir: Path = Path("data")
    """Where data sets by name are kept or downloaded to."""
    train_size: int | None = None
    """Images to train on, drawn by --seed. None: all that are not held out."""
    val_size: int | None = None
    """Training images held out. None: a tenth, at most 1024; 0 unless selecting on val."""
    batch_size: int = 128
    """Images a step."""
    loader: Literal["auto", "resident", "stream", "ffcv", "torch"] = "auto"
    """What brings the images; no number depends on it. auto: resident where they fit the device."""
    extra: Annotated[Path | None, arg(aliases=["--aux-data-filename"])] = None
    """More training images: an .npz with image and label, or what --data takes."""
    extra_fraction: Annotated[float, arg(aliases=["--unsup-fraction"])] = 0.7
    """Share of every batch that --extra takes, in (0, 1)."""
    normalize: bool = False
    """Put the training data's mean and standard deviation into the model (the papers do not)."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to training images before they are attacked, drawn by --seed."""

    crop_pad: int | None = None
    """Pixels of zero padding for the random crop. None: what suits the data (32x32: 4)."""
    flip: bool | None = None
    """Mirror images at random. None: what suits the data (not for digits)."""
    crop_shift: int = 0
    """Cut up to so many rows and columns off and shift the rest (IDBH: 10), instead of the crop."""
    cutout: int = 0
    """Side in pixels of a black square at a random place."""
    mixup: float = 0.0
    """a of the Beta(a, a) that blends two images and their losses. 0: none."""
    cutmix: float = 0.0
    """a of the Beta(a, a) that puts a part of an image into another. 0: none."""


@dataclass(frozen=True, kw_only=True)
class Threat:
    """The l-infinity attacker of training and validation."""

    eps: Annotated[Pixels, arg(aliases=["--epsilon"])] = 8 / 255
    """Radius in pixels of [0, 1], as 8/255 or 0.03."""
    step_size: Annotated[Pixels | None, arg(aliases=["--pgd-alpha"])] = None
    """Length of one PGD step in pixels of [0, 1]. None: eps/4."""
    steps: Annotated[int, arg(aliases=["--attack-iters", "--num-steps"])] = 10
    """PGD steps of the training attack."""
    restarts: int = 1
    """Random starts of the training attack; each image keeps the one of largest loss."""
    val_steps: int = 10
    """PGD steps of the attack on the validation images after each epoch."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """SGD, one optimizer a peer."""

    epochs: int = 200
    """Passes over the training images."""
    lr: Annotated[float, arg(aliases=["--lr-max"])] = 0.1
    """Peak learning rate per step."""
    schedule: Literal["multistep", "cosine", "cyclic", "onecycle", "constant"] = "multistep"
    """Course of the learning rate, set before every step."""
    milestones: str = ""
    """multistep: epochs after which the rate falls tenfold, as 100,150. Empty: 50 % and 75 %."""
    warmup_epochs: float = 0.0
    """Epochs of linear rise from 0 to the schedule."""
    momentum: float = 0.9
    """Momentum of SGD in [0, 1)."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Annotated[float, arg(aliases=["--wd"])] = 5e-4
    """L2 penalty on all parameters, per step."""
    ema: float | None = None
    """Decay per step of an average of the weights, as 0.995, which is what is judged and kept."""
    awp: Annotated[float, arg(aliases=["--awp-gamma"])] = 0.0
    """Size of adversarial weight perturbation relative to the weights, as 0.005. 0: none."""
    awp_warmup: int = 0
    """Finished epochs before weights are perturbed; until then the pass costs, and adds 0."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how it runs."""

    out: Path | None = None
    """Folder of the run, which must not exist. None: a new one under runs/."""
    seed: int = 0
    """Seed of weights, data order, augmentation, attack noise and held-out split."""
    select_on: Literal["val", "test", "last"] = "val"
    """Images that choose each peer's best weights: held-out, test (labelled so), or none."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """Arithmetic of the networks. auto: bf16 on a GPU that has it, else fp32."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    engine: Literal["auto", "eager", "compile", "graph", "compile+graph"] = "auto"
    """How steps are run; no result depends on it. auto: graph on a GPU, eager on a CPU."""
    threads: int | None = None
    """CPU threads. None: as PyTorch chooses."""
    log_every: int = 50
    """Steps between two lines of steps.jsonl; non-finite losses are found there."""
    save_every: int | None = None
    """Steps between two checkpoints inside an epoch. None: only after each epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Run, Optimization, Threat, Augment, Data, Peers):
    """All settings of a run. Raises InputError when one of them means nothing."""

    def __post_init__(self) -> None:
        self.threat()
        self.augmentation(0, False)
        make_schedule(
            self.schedule,
            max(self.epochs, 1),
            parse_milestones(self.milestones),
            self.warmup_epochs,
        )
        learns = [spec.weights is None for spec in self.peer_specs()]
        # any views do
        make_collaboration(self.collab, ["adv"] * len(learns), self.alpha, self.teachers, learns)
        if self.precision not in ("auto", *DTYPES):
            raise InputError(
                f"unknown precision {self.precision!r}: expected auto, {', '.join(DTYPES)}"
            )
        if self.select_on not in ("val", "test", "last"):
            raise InputError(f"select-on is {self.select_on!r}, expected val, test or last")
        if self.select_on == "val" and self.val_size == 0:
            raise InputError("--val-size 0 leaves nothing to select on: type --select-on last")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                flag = name.replace("_", "-")
                raise InputError(f"{flag} is {value:g}, expected at least {least:g}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr:g}, expected more than 0, for example 0.1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum:g}, expected a number in [0, 1)")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema:g}, expected a decay in [0, 1), for example 0.995")
        if self.extra is not None and not 1 <= self.extra_images < self.batch_size:
            raise InputError(
                f"extra-fraction {self.extra_fraction:g} of a batch of {self.batch_size} is "
                f"{self.extra_images} images, expected 1 to {self.batch_size - 1}"
            )
        if self.nesterov and self.momentum == 0:
            raise InputError("Nesterov momentum needs --momentum above 0")

    def threat(self) -> ThreatModel:
        return ThreatModel(
            eps=self.eps, step_size=self.step_size, steps=self.steps, restarts=self.restarts
        )

    def augmentation(self, crop_pad: int, flip: bool) -> Augmentation:
        """With the data's own crop and flip where nothing else is asked for."""
        if self.crop_pad is not None or self.crop_shift:
            crop_pad = self.crop_pad or 0
        return Augmentation(
            crop_pad=crop_pad,
            flip=flip if self.flip is None else self.flip,
            crop_shift=self.crop_shift,
            cutout=self.cutout,
            mixup=self.mixup,
            cutmix=self.cutmix,
        )

    @property
    def extra_images(self) -> int:
        """Images of --extra in a full batch."""
        share = self.extra_fraction * self.batch_size
        return round(share) if math.isfinite(share) else 0

    def peer_specs(self) -> tuple[PeerSpec, ...]:
        return parse_peers(self.peers, self.arch)

    def to_dict(self) -> dict[str, Any]:
        """Every field as a plain value: texts, numbers, None."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        paths = {
            field.name: Path(values[field.name])
            for field in fields(cls)
            if field.name in ("out", "data_dir", "extra") and values[field.name] is not None
        }
        return cls(**{**values, **paths})


_LEAST = {
    "train_size": 2,
    "val_size": 0,
    "batch_size": 2,
    "crop_pad": 0,
    "crop_shift": 0,
    "cutout": 0,
    "mixup": 0,
    "cutmix": 0,
    "val_steps": 1,
    "epochs": 1,
    "warmup_epochs": 0,
    "awp": 0,
    "awp_warmup": 0,
    "weight_decay": 0,
    "threads": 1,
    "log_every": 1,
    "save_every": 1,
    "seed": 0,
}


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Judge the weights of a run, or one weight file, under attacks; strictly in float32."""

    target: Positional[Path]
    """Folder of a run, one peers/*.safetensors file, or with --arch another's checkpoint."""
    arch: Annotated[str | None, arg(aliases=["--model"])] = None
    """Architecture of a checkpoint that fastcat did not write; see `fastcat list archs`."""
    mean: str | None = None
    """With --arch: mean that the network subtracts, as 0.4914,0.4822,0.4465. None: its file's."""
    std: str | None = None
    """With --arch: deviation that the network divides by, as 0.2471,0.2435,0.2616."""
    attacks: str = "clean,fgsm,pgd20,cw20"
    """Attacks by name; see `fastcat list attacks`."""
    peer: str = "all"
    """all, or a peer by number (0) or name (0-trades)."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the run; without a best one the last."""
    n: int | None = None
    """Images, the first of the split in an order drawn by --seed. None: all."""
    split: Literal["test", "train"] = "test"
    """Which images of the data set."""
    data: Annotated[str | None, arg(aliases=["--dataset"])] = None
    """Data set or image folder. None: what the weights were trained on."""
    data_dir: Path | None = None
    """Where data sets by name are kept or downloaded to. None: as trained, else data."""
    eps: Annotated[Pixels | None, arg(aliases=["--epsilon"])] = None
    """Radius in pixels of [0, 1], as 8/255 or 0.03. None: as trained."""
    step_size: Annotated[Pixels | None, arg(aliases=["--pgd-alpha"])] = None
    """Length of a PGD step in pixels of [0, 1]. None: as trained, or eps/4 with --eps."""
    restarts: int = 1
    """Random starts of PGD and CW; an image must survive them all."""
    batch_size: int = 256
    """Images at once."""
    seed: int = 0
    """Seed of the attacks' starts and of the choice of images."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    out: Path | None = None
    """JSON file to write. None: a new one under RUN/eval/, or none for a single weight file."""

    def __post_init__(self) -> None:
        for name, least in {"n": 1, "batch_size": 1, "restarts": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name.replace('_', '-')} is {value}, expected at least {least}")
        if self.out is not None and self.out.exists():
            raise InputError(f"{self.out} exists already: choose another --out")
        if self.arch is not None:
            canonical_arch(self.arch)
        elif (self.mean, self.std) != (None, None):
            raise InputError("--mean and --std are for a checkpoint of others: type --arch too")
        self.normalize()

    def normalize(self) -> tuple[list[float], list[float]] | None:
        """--mean and --std as numbers."""
        if self.mean is None or self.std is None:
            if self.mean != self.std:
                raise InputError("--mean and --std need each other: type both")
            return None
        mean, std = _numbers("mean", self.mean), _numbers("std", self.std)
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise InputError(
                f"std is {self.std!r}, expected {len(mean)} numbers above 0, as many as in --mean"
            )
        return mean, std


def _numbers(name: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{name} is {text!r}, expected numbers as 0.49,0.48,0.45") from error
    if not all(map(math.isfinite, values)):
        raise InputError(f"{name} is {text!r}, expected finite numbers")
    return values


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `yaml_arguments` reads back to the same values."""
    values = config.to_dict()
    for name in ("eps", "step_size"):
        if values[name] is not None:
            values[name] = format_pixels(values[name])
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False)


def yaml_arguments(path: Path) -> list[str]:
    """The settings of a YAML file as command-line arguments, so that both obey the same rules.

    Raises InputError for a file that is missing, no flat mapping, or has an unknown setting.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise InputError(f"{path} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines like `epochs: 30`")
    known = {field.name for field in fields(TrainConfig)}
    arguments = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: unknown setting {key!r}: {nearest(name, known)}")
        flag = name.replace("_", "-")
        if isinstance(value, (dict, list)):
            raise InputError(f"{path}: {key} is a {type(value).__name__}, expected one value")
        if isinstance(value, bool) and name != "flip":
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments
