"""A run from its configuration to its weights: epochs, validation, records, checkpoints.

Everything random depends on (seed, place) alone, and a checkpoint holds all the rest, so that a
run that was killed and resumed ends with the bits of one that was not (CPU, fp32).
"""

import math
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastcat.awp import WeightPerturbation
from fastcat.checkpoint import WeightsInfo, save_checkpoint, save_weights
from fastcat.config import TrainConfig
from fastcat.device import make_device
from fastcat.engine import Engine, choose_engine
from fastcat.errors import InputError
from fastcat.evaluation import evaluate
from fastcat.loaders.choose import choose_loader, make_loader, unchanged_loader
from fastcat.loaders.dataset import Dataset, channel_statistics
from fastcat.loaders.extra import load_extra
from fastcat.loaders.loader import Epochs, Loader
from fastcat.loaders.registry import load_dataset
from fastcat.loaders.resident import ResidentLoader
from fastcat.loaders.split import split_indices
from fastcat.models import make_model
from fastcat.optim import FlatSGD, make_schedule, parse_milestones
from fastcat.peer import Member, Peer, Teacher
from fastcat.precision import make_precision
from fastcat.progress import make_console, task
from fastcat.recorder import Recorder
from fastcat.seeds import derive_seed
from fastcat.stop import Stopped, StopRequest
from fastcat.teacher import load_teacher
from fastcat.team import make_team
from fastcat.threat_spec import choose_threats, format_threats


class Trainer:
    """The peers of a configuration on a data set, and where they stand.

    epoch counts finished epochs, batch the finished batches of the one under way.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset | None = None) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.device = make_device(config.device)
        self.precision = make_precision(config.precision, self.device)
        # what "auto" and None mean is settled here, and so the same when the run is resumed
        step_size = None if config.threats else config.threat_models()[0].step
        precision: Any = self.precision.name
        engine = choose_engine(config.engine, self.device)
        config = replace(config, precision=precision, step_size=step_size)
        self.config = config
        with task(make_console(), f"reading {config.data}, once") as progress:
            if dataset is None:
                dataset = load_dataset(config.data, config.data_dir, progress)
            extra = None
            if config.extra is not None:
                extra = load_extra(config.extra, config.extra_fraction, dataset, progress)
        self.dataset = dataset
        self.digest = dataset.digest if extra is None else f"{dataset.digest}+{extra.digest}"
        self.threats = config.threat_models()
        self.normalize = channel_statistics(dataset.train.images) if config.normalize else None
        members = self._make_members()
        self.schedule = make_schedule(
            config.schedule,
            config.epochs,
            parse_milestones(config.milestones),
            config.warmup_epochs,
            config.lr_decay,
        )
        train_index, val_index = self._split()
        augmentation = config.augmentation(dataset.crop_pad, dataset.flip)
        epochs = Epochs(
            index=train_index,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=True,
            augmentation=augmentation,
            extra=extra,
        )
        self.loader_name = choose_loader(config.loader, dataset.train, epochs, self.device)
        self.loader = make_loader(
            self.loader_name, dataset, "train", epochs, self.device, config.data_dir
        )
        self.monitored_on, self.monitor = self._make_monitor(val_index)
        first_two = Epochs(index=train_index[:2], batch_size=2)
        example = next(iter(ResidentLoader(dataset.train, first_two, self.device))).x
        self.team = make_team(
            members,
            collab=config.collab,
            alpha=config.alpha,
            teachers=config.teachers,
            precision=self.precision,
            classes=len(dataset.classes),
            example=example,
            mixed=augmentation.mixes,
        )
        self.peers = self.team.peers
        self.remarks = list(self.team.remarks)
        self.engine = Engine(
            self.team, self.loader.gather, config.batch_size, engine, self.remarks.append
        )
        self.epoch = self.batch = 0
        self.seconds = 0.0
        self.best: dict[str, dict[str, Any]] = {}
        self.last_record: dict[str, Any] = {"peers": {}}

    def _make_members(self) -> list[Member]:
        config, (_, _, channels) = self.config, self.dataset.image_shape
        members: list[Member] = []
        for k, spec in enumerate(config.peer_specs()):
            name = f"{k}-{spec.method}"
            if spec.weights is not None:
                arch = spec.arch if spec.named_arch else None
                teacher = load_teacher(name, spec.weights, arch, self.dataset)
                teacher.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                members.append(teacher)
                continue
            torch.manual_seed(derive_seed(config.seed, "weights", k))
            model = make_model(spec.arch, len(self.dataset.classes), channels, self.normalize)
            model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            optimizer = FlatSGD(
                model,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                nesterov=config.nesterov,
                ema=config.ema,
            )
            threats = choose_threats(spec.threat, self.threats)
            peer = Peer(name, spec.arch, model, spec.objective, optimizer, threats)
            gamma = config.awp if spec.awp is None else spec.awp
            if gamma:
                peer.awp = WeightPerturbation(model, optimizer, gamma)
            members.append(peer)
        # what networks themselves draw (dropout) continues from here and is kept in checkpoints
        torch.manual_seed(derive_seed(config.seed, "networks"))
        return members

    def _split(self) -> tuple[Tensor, Tensor]:
        """Places of the images to train on and of those held out."""
        config, images = self.config, len(self.dataset.train)
        val_size = config.val_size
        if val_size is None and config.select_on != "val":
            val_size = 0
        train_index, val_index = split_indices(images, config.train_size, val_size, config.seed)
        if config.batch_size > len(train_index):
            raise InputError(
                f"a batch of {config.batch_size} is larger than the {len(train_index)} training "
                f"images: type --batch-size {len(train_index)} or less"
            )
        return train_index, val_index

    def _make_monitor(self, val_index: Tensor) -> tuple[str | None, Loader | None]:
        """The images judged after each epoch, and their name."""
        if self.config.select_on == "test":
            name, part, index = "test", "test", torch.arange(len(self.dataset.test))
        else:
            name, part, index = "val", "train", val_index
        if not len(index):
            return None, None
        epochs = Epochs(index=index, batch_size=max(self.config.batch_size, 256))
        return name, unchanged_loader(self.dataset, part, epochs, self.device)

    @property
    def steps_done(self) -> int:
        return self.epoch * len(self.loader) + self.batch

    @property
    def done(self) -> bool:
        return self.epoch >= self.config.epochs

    def state_dict(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "config": self.config.to_dict(),
            "data_digest": self.digest,
            "epoch": self.epoch,
            "batch": self.batch,
            "totals": self.engine.totals.cpu(),
            "seconds": self.seconds,
            "best": self.best,
            "last_record": self.last_record,
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            },
            "scaler": self.team.scaler.state_dict(),
            "peers": [peer.state_dict() for peer in self.peers],
            "teachers": {teacher.name: teacher.digest for teacher in self.teachers},
        }

    @property
    def teachers(self) -> list[Teacher]:
        return [member for member in self.team.members if isinstance(member, Teacher)]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises InputError when the data are no longer the same."""
        if state["data_digest"] != self.digest:
            raise InputError(
                f"the images of {self.config.data} are not those that the run began with: "
                "put them back, or start a new run"
            )
        digests = state.get("teachers", {})
        for teacher in self.teachers:
            if digests[teacher.name] != teacher.digest:
                raise InputError(
                    f"the weights of {teacher.name} in {teacher.weights} are not those that the "
                    "run began with: put them back, or start a new run"
                )
        for peer, peer_state in zip(self.peers, state["peers"], strict=True):
            peer.load_state_dict(peer_state)
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.engine.totals.copy_(state["totals"])
        self.team.scaler.load_state_dict(state["scaler"])
        self.seconds, self.best = state["seconds"], state["best"]
        self.last_record = state["last_record"]
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def save(self, run: Path) -> None:
        """Write a checkpoint, unless a loss or a weight is no longer finite (InputError)."""
        self.check_losses(run)
        self.check_weights(run)
        save_checkpoint(run, self.state_dict())

    def check_losses(self, run: Path) -> None:
        """Raise InputError naming the first loss term of this epoch that is NaN or infinite."""
        for name, value in self._mean_metrics().items():
            if not math.isfinite(value):
                peer_name, term = name.split("/", 1)
                self._give_up(run, f"term {term!r} of peer {peer_name} became {value}")

    def check_weights(self, run: Path) -> None:
        """Raise InputError naming the first weight that is NaN or infinite."""
        for peer in self.peers:
            state = peer.model.state_dict()
            finite = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
            if not all(finite):
                weight = list(state)[finite.index(False)]
                self._give_up(run, f"weight {weight!r} of peer {peer.name} is no longer finite")

    def _give_up(self, run: Path, reason: str) -> NoReturn:
        raise InputError(
            f"{reason} in epoch {self.epoch + 1} by step {self.steps_done}: stopped; "
            f"the last good checkpoint is {run / 'checkpoints' / 'last.pt'}: "
            "start a new run with a lower --lr or with --precision fp32"
        )

    def _mean_metrics(self) -> dict[str, float]:
        """Means over this epoch's images so far; the host waits for the device here."""
        if not self.batch:
            return {}
        count = min(self.batch * self.config.batch_size, self.loader.size)
        totals = self.engine.totals.tolist()
        names = self.team.loss.names
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def run(self, run: Path, recorder: Recorder, request: StopRequest) -> None:
        """Train to the last epoch. Raises Stopped after saving when a signal asks for it."""
        recorder.line(f"{run} is finished" if self.done else self.describe(run))
        self._remark(recorder)
        while not self.done:
            try:
                self._train_epoch(run, recorder, request)
                record = self._finish_epoch(run, request)
            except Stopped:
                self.save(run)
                raise
            recorder.epoch(record)
            self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
            self.engine.totals.zero_()
            self.last_record = record
            self.save(run)
            recorder.report()

    def _remark(self, recorder: Recorder) -> None:
        """Say what could not be had since the last time."""
        while self.remarks:
            recorder.line(self.remarks.pop(0))

    def describe(self, run: Path) -> str:
        """What is about to be done, in a line."""
        on = (
            "no images"
            if self.monitor is None
            else f"{self.monitor.size} {self.monitored_on} images"
        )
        where = f"epoch {self.epoch + 1}/{self.config.epochs}, batch {self.batch + 1}"
        names = ", ".join(f"{peer.name} ({peer.arch})" for peer in self.team.members)
        return (
            f"{names}: {self.loader.size} images of {self.dataset.name}, judged on {on}, "
            f"{len(self.loader)} steps an epoch, {self.precision.name} on {self.device}, "
            f"{self.engine.name}, images {self.loader_name}; "
            f"{run} from {where}"
        )

    def train_step(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One collaborative step on what the loader gave, with its learning rate and noise."""
        seed = derive_seed(self.config.seed, "attack", self.steps_done)
        like = self.loader.like(inputs)
        self.team.loss.set_epoch(self.epoch)
        for peer in self.peers:
            if peer.awp is not None:
                peer.awp.set_active(self.epoch >= self.config.awp_warmup)
        values = self.engine.step(inputs, like, seed, self.current_lr())
        self.batch += 1
        return values

    def current_lr(self) -> float:
        """The rate of the step to come, taken in the middle of its share of the epoch."""
        return self.config.lr * self.schedule((self.steps_done + 0.5) / len(self.loader))

    def _train_epoch(self, run: Path, recorder: Recorder, request: StopRequest) -> None:
        begin = time.perf_counter() - self.seconds
        for inputs in self.loader.inputs(self.epoch, self.batch):
            lr = self.current_lr()
            values = self.train_step(inputs)
            self._remark(recorder)
            recorder.advance(self.steps_done, f"epoch {self.epoch + 1}/{self.config.epochs}")
            if self.batch % self.config.log_every == 0:
                self.check_losses(run)
                named = dict(zip(self.team.loss.names, values.tolist(), strict=True))
                recorder.steps({"step": self.steps_done, "lr": lr, **named})
            self.seconds = time.perf_counter() - begin
            if request.signum is not None:
                raise Stopped(request.signum)
            if self.config.save_every and self.batch % self.config.save_every == 0:
                self.save(run)
        # both wait for the device, so the clock is read after them
        self.check_losses(run)
        self.check_weights(run)
        self.seconds = time.perf_counter() - begin

    def _finish_epoch(self, run: Path, request: StopRequest) -> dict[str, Any]:
        """Judge the peers, keep their weights, and describe the epoch."""
        begin = time.perf_counter()
        means = self._mean_metrics()
        peers: dict[str, dict[str, Any]] = {}
        for k, peer in self.team.learners.items():
            prefix = f"{peer.name}/"
            with peer.optimizer.averaged():
                accuracy = self._judge(k, request)
            peers[peer.name] = {
                "train": {
                    name.removeprefix(prefix): mean
                    for name, mean in means.items()
                    if name.startswith(prefix)
                },
                "accuracy": accuracy,
                "best": self._is_best(peer, accuracy),
            }
        # from here on nothing is interrupted: what is written belongs together
        for peer in self.peers:
            self._save_weights(run, peer, "last", "last")
            if peers[peer.name]["best"]:
                self._save_weights(run, peer, "best", f"best on {self.monitored_on}")
                self.best[peer.name] = {
                    "epoch": self.epoch + 1,
                    "judged_on": self.monitored_on,
                    "accuracy": peers[peer.name]["accuracy"],
                }
        return {
            "epoch": self.epoch + 1,
            "epochs": self.config.epochs,
            "lr": self.config.lr * self.schedule(self.epoch + 1 - 0.5 / len(self.loader)),
            "seconds": self.seconds,
            "images_per_second": self.loader.size / self.seconds,
            "judging_seconds": time.perf_counter() - begin,
            "peak_memory_mib": self._peak_memory_mib(),
            "select_on": self.config.select_on,
            "judged_on": self.monitored_on,
            "peers": peers,
        }

    def _judge(self, k: int, request: StopRequest) -> dict[str, float]:
        """Clean and PGD accuracy on the monitored images, if there are any."""
        if self.monitor is None:
            return {}

        def stop_if_asked(_: int) -> None:
            if request.signum is not None:
                raise Stopped(request.signum)

        network, robust = self.engine.judge(k)
        report = evaluate(
            network,
            self.monitor,
            f"clean,pgd{self.config.val_steps}",
            [replace(threat, restarts=1) for threat in self.threats],
            seed=self.config.seed,
            precision=self.precision,
            after_batch=stop_if_asked,
            robust=robust,
        )
        accuracy = {name: report.accuracy(name) for name in report.correct}
        if len(self.threats) == 1:
            # what survives PGD is right without it, but for images that an attack corrects
            del accuracy["worst"]
        return accuracy

    def _is_best(self, peer: Peer, accuracy: dict[str, float]) -> bool:
        """Whether the peer is more robust than it was after any earlier epoch."""
        if self.config.select_on == "last":
            return False
        judged_by = f"pgd{self.config.val_steps}" if len(self.threats) == 1 else "worst"
        best = self.best.get(peer.name)
        return best is None or accuracy[judged_by] > best["accuracy"][judged_by]

    def _save_weights(self, run: Path, peer: Peer, which: str, selected: str) -> None:
        mean, std = self.normalize or (None, None)
        info = WeightsInfo(
            peer=peer.name,
            arch=peer.arch,
            data=self.dataset.name,
            data_digest=self.dataset.digest,
            classes=self.dataset.classes,
            channels=self.dataset.image_shape[2],
            mean=mean,
            std=std,
            threats=format_threats(self.threats),
            epoch=self.epoch + 1,
            selected=selected,
        )
        path = run / "peers" / f"{peer.name}.{which}.safetensors"
        with peer.optimizer.averaged():
            save_weights(path, peer.model.state_dict(), info)

    def _peak_memory_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
