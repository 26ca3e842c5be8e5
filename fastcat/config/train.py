"""The settings of a training run, the same on a terminal, in a YAML file and in Python."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcat.attacks.threat import NO_THREAT, ThreatModel
from fastcat.config.options import Augment, Data, Optimization, Peers, Run, Threat
from fastcat.config.peers import PeerSpec, parse_peers
from fastcat.config.seeds import parse_seeds
from fastcat.config.threats import choose_threats, parse_threats
from fastcat.errors import InputError
from fastcat.schedules import (
    Schedule,
    make_momentum,
    make_schedule,
    parse_milestones,
    parse_points,
)
from fastcat.settings import settle_types

if TYPE_CHECKING:
    from fastcat.loaders.augmentation import Augmentation
    from fastcat.step.blueprint import Blueprint


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

    def threat_models(self) -> tuple[ThreatModel, ...]:
        """The attackers, of which `PeerSpec.threat` chooses."""
        base = ThreatModel(
            norm=self.norm,
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            restarts=self.restarts,
        )
        return parse_threats(self.threats, base) if self.threats else (base,)

    def val_threats(self) -> tuple[ThreatModel, ...]:
        """The attackers of the validation images: they start once, with steps of their own size.

        All are evaluated alike, whosever code the training attack follows.
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
