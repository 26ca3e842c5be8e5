"""The options of `fastcat train`, in the groups in which its help shows them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from fastcat.attacks.threat import NORMS
from fastcat.choices import CLASS_ORDERS, ENGINES, PRECISIONS, SGDS
from fastcat.config.choice import one_of
from fastcat.config.paths import UserPath
from fastcat.config.pixels import Pixels
from fastcat.loaders.registry import loader_names
from fastcat.schedules import LR_AT, SCHEDULES


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
    class_order: Annotated[str, one_of(CLASS_ORDERS)] = "text"
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

    norm: Annotated[str, one_of(NORMS)] = "linf"
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
    sgd: Annotated[str, one_of(SGDS)] = "kernel"
    """Whose code updates the weights. apex: NVIDIA's FusedSGD, on a GPU, not in a graph."""
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
