"""The settings of a training run: frozen, validated, and the same on the command line and in YAML.

The fields stand in groups as `fastcat train --help` shows them; TrainConfig holds them all.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from fastcat.choices import ENGINES, PRECISIONS
from fastcat.config.choice import one_of
from fastcat.config.paths import UserPath
from fastcat.config.peers import PeerSpec, parse_peers
from fastcat.config.pixels import Pixels
from fastcat.config.seeds import parse_seeds
from fastcat.config.threats import choose_threats, parse_threats
from fastcat.errors import InputError
from fastcat.loaders.registry import loader_names
from fastcat.schedules import (
    LR_AT,
    SCHEDULES,
    Schedule,
    make_momentum,
    make_schedule,
    parse_milestones,
    parse_points,
)
from fastcat.settings import settle_types

if TYPE_CHECKING:
    from fastcat.attacks.threat import ThreatModel
    from fastcat.loaders.augmentation import Augmentation
    from fastcat.step.blueprint import Blueprint


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Who trains, and what peers owe each other."""

    arch: Annotated[str, arg(aliases=["--model"])] = "resnet18"
    """Architecture of every peer that names none; see `fastcat list archs`."""
    peers: str = "trades,alp"
    """Methods with settings and architecture, for example trades:beta=6,alp,mart@preactresnet18;
    teacher:weights=FILE.safetensors teaches and is not trained."""
    collab: str = "cat"
    """How peers teach one another. cat: by their predictions on the learner's adversarial images;
    mat: by their predictions on the clean images; none: not at all. Settings follow a colon.
    Examples: cat:own_first=true (divergence as the paper prints it), mat:detach=false (teachers
    receive the gradient too)."""
    alpha: float | None = None
    """Balance of own objective and guidance, in [0, 1], as each paper defines it. cat: weight of
    the own objective; None: 0.05. mat: weight of the guidance; None: 0.6 (the paper's CIFAR-100:
    0.45)."""
    teachers: str = "all"
    """Who teaches whom: all, ring (each the next), or by number, as 0>1,1>2."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What they are trained on."""

    data: Annotated[str, arg(aliases=["--dataset"])] = "cifar10"
    """A name of `fastcat list datasets`, or a path: a folder of images, .packed, .beton, .npz."""
    data_dir: UserPath = Path("data")
    """Where data sets by name are kept or downloaded to."""
    class_order: Literal["text", "number"] = "text"
    """Order of class folders with numbers for names, and so their labels. text: 0, 1, 10, 2, as
    torchvision has them; number: 0, 1, 2, 10."""
    train_size: int | None = None
    """Images to train on, drawn by --seed. None: all that are not held out."""
    val_size: int | None = None
    """Training images held out. None: a tenth, at most 1024; 0 unless selecting on val."""
    batch_size: int = 128
    """Images a step."""
    loader: Annotated[str, one_of(["auto", *loader_names()])] = "auto"
    """What brings the images; no number depends on it. auto: resident where they fit the device."""
    workers: int | None = None
    """Processes that read data sets item by item (loader torch; 0: this one), and threads of ffcv.
    None: four processes at most, none for arrays, and as many threads as PyTorch has."""
    extra: Annotated[UserPath | None, arg(aliases=["--aux-data-filename"])] = None
    """More training images: an .npz with image and label, or what --data takes."""
    extra_fraction: Annotated[float, arg(aliases=["--unsup-fraction"])] = 0.7
    """Share of every batch that --extra takes, in (0, 1)."""
    normalize: bool = False
    """Put the training data's mean and standard deviation into the model (the papers do not)."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What happens to training images before they are attacked, drawn by --seed."""

    crop_pad: int | None = None
    """Pixels of padding for the random crop. None: what suits the data (32x32: 4)."""
    crop_reflect: bool = False
    """Pad with the image mirrored at its edges, as Rice et al. 2020 do, in place of zeros."""
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
    """The attacker of training and validation, or several."""

    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm of the ball around an image."""
    eps: Annotated[Pixels, arg(aliases=["--epsilon"])] = 8 / 255
    """Its radius in that norm, of pixels in [0, 1], as 8/255 or 0.03."""
    step_size: Annotated[Pixels | None, arg(aliases=["--pgd-alpha"])] = None
    """Length of one PGD step in that norm. None: eps/4."""
    steps: Annotated[int, arg(aliases=["--attack-iters", "--num-steps"])] = 10
    """PGD steps of the training attack."""
    restarts: int = 1
    """Random starts of the training attack; each image keeps the one of largest loss."""
    threats: str = ""
    """Several attackers, in place of --norm, --eps and --step-size. Example:
    linf:eps=0.03:step_size=0.003:steps=40,l2:eps=0.5,l1:eps=12. Validation uses all of them. A
    peer trains under the first, or under the one it names (at:threat=l2), or under avg, max or msd
    of all. l2:eps=0.5:code=trades or rice trains as their code does; see `fastcat list threats`."""
    val_steps: int = 10
    """PGD steps of the attack on the validation images after each epoch."""
    val_step_size: Pixels | None = None
    """Length of one of them, in place of --step-size; not with --threats. None: the same."""


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """SGD, one optimizer a peer."""

    epochs: int = 200
    """Passes over the training images."""
    replays: int = 1
    """Steps on each batch before the next one (Free-AT: 8)."""
    lr: Annotated[float, arg(aliases=["--lr-max"])] = 0.1
    """Peak learning rate per step."""
    schedule: Annotated[str, one_of(SCHEDULES)] = "multistep"
    """Course of the learning rate, set before every step."""
    milestones: str = ""
    """multistep: epochs after which the rate falls, as 100,150. Empty: 50 % and 75 %."""
    lr_decay: float = 0.1
    """multistep: what is left of the rate after each of them, a share in (0, 1)."""
    lr_points: str = ""
    """linear: epochs and shares of --lr between which the rate moves in straight lines, as
    0:0.05,19:1,49:0. Empty: from the peak to 0."""
    lr_at: Annotated[str, one_of(LR_AT)] = "middle"
    """Where a step's rate is read off the course: at the start, middle or end of the step, or at
    the start of its epoch. Published code does each of them."""
    warmup_epochs: float = 0.0
    """Epochs of linear rise from 0 to the schedule."""
    momentum: float = 0.9
    """Momentum of SGD in [0, 1)."""
    peak_momentum: float | None = None
    """cyclic, triangular, onecycle: momentum at the peak of the rate, against which it moves from
    --momentum and back, as torch's CyclicLR (0.8) and OneCycleLR (0.85) do. None: constant."""
    nesterov: bool = False
    """Nesterov momentum."""
    weight_decay: Annotated[float, arg(aliases=["--wd"])] = 5e-4
    """L2 penalty on all parameters, per step."""
    norm_decay: bool = True
    """That penalty on BatchNorm's parameters too."""
    bn_groups: int = 1
    """Equal parts of a batch, each normalised by its own statistics (ghost BatchNorm)."""
    ema: float | None = None
    """Decay per step of a running average of the weights, as 0.995. The average is what is
    validated and saved. None: no average."""
    ema_warmup: float | None = None
    """Share of all steps, as 0.025, in which that average is a copy of the weights; d steps later
    its decay is at most (1 + d) / (10 + d). None: --ema from the first step on."""
    swa: int | None = None
    """Epoch after which the weights of every epoch are averaged, as 56. The average, with its own
    BatchNorm statistics, is what is validated and saved. None: no average."""
    awp: Annotated[float, arg(aliases=["--awp-gamma"])] = 0.0
    """Size of adversarial weight perturbation relative to the weights, as 0.005. 0: none."""
    awp_warmup: int = 0
    """Finished epochs before weights are perturbed; until then the pass costs, and adds 0."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how it runs."""

    out: UserPath | None = None
    """Folder of the run, which must not exist. None: a new one under runs/."""
    seed: int = 0
    """Seed of weights, data order, augmentation, attack noise and held-out split."""
    seeds: str | None = None
    """Several, as 0,1,2, in place of --seed: a run each in OUT/seed-0, ..., then their spread."""
    select_on: Literal["val", "test", "last"] = "val"
    """Images that choose each peer's best weights: held-out, test (labelled so), or none."""
    precision: Annotated[str, one_of(["auto", *PRECISIONS])] = "auto"
    """Arithmetic of the networks. auto: bf16 on a GPU that has it, else fp32."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    engine: Annotated[str, one_of(["auto", *ENGINES])] = "auto"
    """How steps are run; no result depends on it. auto: graph on a GPU, on a CPU winograd, or eager
    where there is no C++ compiler."""
    threads: int | None = None
    """CPU threads. None: as PyTorch chooses, at most as many as the CPUs we may use."""
    log_every: int = 50
    """Steps between two lines of steps.jsonl; non-finite losses are found there."""
    save_every: int | None = None
    """Steps between two checkpoints inside an epoch. None: only after each epoch."""
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    """What to do when a peer predicts one class only, gives NaN, stops learning or overfits
    catastrophically. warn: say so; stop: end the run; rollback: return to the last good epoch with
    half the learning rate, at most three times, also for a loss that is not finite."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Run, Optimization, Threat, Augment, Data, Peers):
    """All settings of a run. Raises InputError when one of them means nothing."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.threats and self.norm != "linf" and self.eps == Threat.eps:
            raise InputError(
                f"--norm {self.norm} with eps 8/255, a radius of linf: type --eps too, for example "
                f"--eps {_RADII[self.norm]}"
            )
        self.augmentation(0, False)
        self.lr_schedule()
        self.momentum_schedule()
        self.val_threats()
        self.blueprint()
        if self.seeds is not None:
            parse_seeds(self.seeds)
            if self.seed != 0:
                raise InputError(
                    f"seed is {self.seed} and seeds is {self.seeds}: leave one of them out, "
                    "of a --config file too"
                )
        if self.select_on == "val" and self.val_size == 0:
            raise InputError("--val-size 0 leaves nothing to select on: type --select-on last")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                flag = name.replace("_", "-")
                raise InputError(f"{flag} is {value:g}, expected at least {least:g}")
        if self.threads is not None and self.threads > _MOST_THREADS:
            raise InputError(f"threads is {self.threads}, expected at most {_MOST_THREADS}")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr:g}, expected more than 0, for example 0.1")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is {self.momentum:g}, expected a number in [0, 1)")
        if self.batch_size % self.bn_groups or self.batch_size < 2 * self.bn_groups:
            raise InputError(
                f"bn-groups is {self.bn_groups}, expected a number that divides --batch-size "
                f"{self.batch_size} into groups of 2 images or more"
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise InputError(f"ema is {self.ema:g}, expected a decay in [0, 1), for example 0.995")
        if self.peak_momentum is not None and not 0 <= self.peak_momentum < 1:
            raise InputError(
                f"peak-momentum is {self.peak_momentum:g}, expected a number in [0, 1)"
            )
        if self.ema_warmup is not None and not (self.ema is not None and 0 <= self.ema_warmup < 1):
            raise InputError(
                f"ema-warmup is {self.ema_warmup:g}, expected a share of the steps in [0, 1) and "
                "--ema with it: type --ema 0.995 --ema-warmup 0.025, or --ema-warmup None"
            )
        if self.swa is not None and self.swa > self.epochs:
            raise InputError(f"swa is {self.swa}, expected at most the {self.epochs} --epochs")
        if self.swa is not None and self.ema is not None:
            raise InputError("--ema and --swa are two averages of the weights: choose one of them")
        if self.extra is not None and not 1 <= self.extra_images < self.batch_size:
            raise InputError(
                f"extra-fraction {self.extra_fraction:g} of a batch of {self.batch_size} is "
                f"{self.extra_images} images, expected 1 to {self.batch_size - 1}"
            )
        if self.nesterov and self.momentum == 0:
            raise InputError("Nesterov momentum needs --momentum above 0")

    def threat_models(self) -> tuple["ThreatModel", ...]:
        """The attackers, of which `PeerSpec.threat` chooses."""
        from fastcat.attacks.threat import ThreatModel

        base = ThreatModel(
            norm=self.norm,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            restarts=self.restarts,
        )
        return parse_threats(self.threats, base) if self.threats else (base,)

    def val_threats(self) -> tuple["ThreatModel", ...]:
        """The attackers of the validation images: they start once, with steps of their own size.

        Everybody is judged alike, whosever code the training attack follows.
        """
        models = [replace(model, restarts=1, code=None) for model in self.threat_models()]
        if self.val_step_size is not None:
            if self.threats:
                raise InputError(
                    "--val-step-size is for one attacker, --threats are several: type "
                    "--val-step-size None"
                )
            models = [replace(model, step_size=self.val_step_size) for model in models]
        return tuple(models)

    def lr_schedule(self) -> Schedule:
        """Factor of `lr` by epochs elapsed, which `fastcat.schedules.elapsed` counts by `lr_at`."""
        return make_schedule(
            self.schedule,
            max(self.epochs, 1),
            parse_milestones(self.milestones),
            self.warmup_epochs,
            self.lr_decay,
            parse_points(self.lr_points),
            per_epoch=self.lr_at == "epoch",
        )

    def momentum_schedule(self) -> Schedule | None:
        """Momentum by epochs elapsed, None where it is constant."""
        if self.peak_momentum is None:
            return None
        return make_momentum(
            self.schedule,
            max(self.epochs, 1),
            self.momentum,
            self.peak_momentum,
            per_epoch=self.lr_at == "epoch",
        )

    def augmentation(self, crop_pad: int, flip: bool) -> "Augmentation":
        """With the data's own crop and flip where nothing else is asked for."""
        from fastcat.loaders.augmentation import Augmentation

        if self.crop_pad is not None or self.crop_shift:
            crop_pad = self.crop_pad or 0
        return Augmentation(
            crop_pad=crop_pad,
            crop_reflect=self.crop_reflect,
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

    def blueprint(self) -> "Blueprint":
        """What a step of these settings does."""
        from fastcat.attacks.threat import NO_THREAT
        from fastcat.objective import under
        from fastcat.step.blueprint import make_blueprint

        specs = self.peer_specs()
        learns = [spec.weights is None for spec in specs]
        threats = [
            choose_threats(spec.threat, self.threat_models()) if spec.weights is None else NO_THREAT
            for spec in specs
        ]
        objectives = [under(spec.objective, t) for spec, t in zip(specs, threats, strict=True)]
        return make_blueprint(
            objectives,
            threats,
            learns,
            collab=self.collab,
            alpha=self.alpha,
            teachers=self.teachers,
        )

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


# of CIFAR, as Maini et al. 2020 have them
_RADII = {"l2": 0.5, "l1": 12}
# more than any machine has, and no more than a system starts
_MOST_THREADS = 1024
_LEAST = {
    "train_size": 2,
    "val_size": 0,
    "batch_size": 2,
    "workers": 0,
    "bn_groups": 1,
    "crop_pad": 0,
    "crop_shift": 0,
    "cutout": 0,
    "mixup": 0,
    "cutmix": 0,
    "val_steps": 1,
    "epochs": 1,
    "replays": 1,
    "warmup_epochs": 0,
    "swa": 1,
    "awp": 0,
    "awp_warmup": 0,
    "weight_decay": 0,
    "threads": 1,
    "log_every": 1,
    "save_every": 1,
    "seed": 0,
}
