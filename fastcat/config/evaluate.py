"""The settings of an evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastcat.attacks.threat import NORMS
from fastcat.choices import CLASS_ORDERS
from fastcat.config.choice import one_of
from fastcat.config.paths import UserPath
from fastcat.config.pixels import Pixels
from fastcat.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Robust accuracy of a run, a weight file or another project's checkpoint, in float32."""

    target: Positional[UserPath]
    """Folder of a run or of several seeds, one peers/*.safetensors file, or with --arch another's
    checkpoint."""
    arch: Annotated[str | None, arg(aliases=["--model"])] = None
    """Architecture of a checkpoint that fastcat did not write; see `fastcat list archs`."""
    mean: str | None = None
    """With --arch: mean that the network subtracts, as 0.4914,0.4822,0.4465. None: its file's."""
    std: str | None = None
    """With --arch: deviation that the network divides by, as 0.2471,0.2435,0.2616."""
    state: str | None = None
    """With --arch: key of one network in a file of several, as adv_model. None: the one that its
    authors evaluate."""
    attacks: str = "clean,fgsm,pgd20,cw20"
    """Attacks by name; see `fastcat list attacks`."""
    peer: str = "all"
    """all, or a peer by number (0) or name (0-trades)."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the run. best: the selected epoch's, or the last where none was selected."""
    n: int | None = None
    """Number of images, chosen at random by --seed. None: all."""
    split: Literal["test", "train"] = "test"
    """Which images of the data set."""
    data: Annotated[str | None, arg(aliases=["--dataset"])] = None
    """Data set or image folder. None: what the weights were trained on."""
    data_dir: UserPath | None = None
    """Where data sets by name are kept or downloaded to. None: as trained, else data."""
    class_order: Annotated[str, one_of(CLASS_ORDERS)] | None = None
    """Order of class folders with numbers for names. text: 0, 1, 10, 2; number: 0, 1, 2, 10. None:
    as trained, else text."""
    norm: Annotated[str, one_of(NORMS)] | None = None
    """Norm of the attacker. None: every norm the network was trained under."""
    eps: Annotated[Pixels | None, arg(aliases=["--epsilon"])] = None
    """Radius in that norm, of pixels in [0, 1], as 8/255 or 0.03. None: as trained."""
    step_size: Annotated[Pixels | None, arg(aliases=["--pgd-alpha"])] = None
    """Length of a PGD step in that norm. None: as trained, or eps/4 with --eps."""
    restarts: int = 1
    """Random starts of PGD and CW; an image must survive them all."""
    batch_size: int = 256
    """Images at once."""
    seed: int = 0
    """Seed of the attacks' starts and of the choice of images."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    out: UserPath | None = None
    """JSON file to write. None: a new one under RUN/eval/, or none for a single weight file."""

    def __post_init__(self) -> None:
        for name, least in {"n": 1, "batch_size": 1, "restarts": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name.replace('_', '-')} is {value}, expected at least {least}")
        if self.arch is not None:
            from fastcat.models import canonical_arch

            canonical_arch(self.arch)
        elif (self.mean, self.std) != (None, None):
            raise InputError("--mean and --std are for a checkpoint of others: type --arch too")
        elif self.state is not None:
            raise InputError("--state is for a checkpoint of others: type --arch too")
        self.normalize()

    def normalize(self) -> tuple[list[float], list[float]] | None:
        """--mean and --std as numbers."""
        if self.mean is None or self.std is None:
            if self.mean != self.std:
                raise InputError("--mean and --std need each other: type both")
            return None
        return normalization(self.mean, self.std, "--mean")


def normalization(
    mean: str | Sequence[float], std: str | Sequence[float], other: str
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel.

    mean, std: numbers, or text as 0.49,0.48,0.45
    other: what the error of std calls the mean

    Raises InputError for what are no finite numbers, no deviations, or not as many.
    """
    means, stds = _numbers("mean", mean), _numbers("std", std)
    if len(means) != len(stds) or not all(value > 0 for value in stds):
        raise InputError(
            f"std is {std!r}, expected {len(means)} numbers above 0, as many as in {other}"
        )
    return means, stds


def _numbers(name: str, given: str | Sequence[float]) -> list[float]:
    try:
        values = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {given!r}, expected numbers as 0.49,0.48,0.45") from error
    if not all(map(math.isfinite, values)):
        raise InputError(f"{name} is {given!r}, expected finite numbers")
    return values
