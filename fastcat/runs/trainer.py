"""A run from its configuration on: what trains on what, and all that a checkpoint holds.

Everything random depends on (seed, place) alone, and a checkpoint holds all the rest, so that a
run that was killed and resumed ends with the bits of one that was not (CPU, fp32).
"""

import itertools
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastcat.config.train import TrainConfig
from fastcat.cpus import set_threads
from fastcat.device import make_device
from fastcat.errors import InputError
from fastcat.loaders.backends.resident import ResidentLoader
from fastcat.loaders.choose import choose_loader, make_loader
from fastcat.loaders.class_names import never_learnt
from fastcat.loaders.class_order import in_order, order_note
from fastcat.loaders.dataset import Dataset, channel_statistics
from fastcat.loaders.extra_file import load_extra
from fastcat.loaders.loader import Sampling
from fastcat.loaders.registry import load_dataset
from fastcat.loaders.validation_split import split_indices
from fastcat.precision import make_precision
from fastcat.progress import make_console, task
from fastcat.runs.build import make_members
from fastcat.runs.checkpoint import last_checkpoint, save_checkpoint
from fastcat.runs.collapse import Collapse, Watch
from fastcat.runs.finite import broken_loss, broken_weight
from fastcat.runs.validate import Validation
from fastcat.schedules import elapsed
from fastcat.seeds import derive_seed
from fastcat.step.engine import Engine, choose_engine
from fastcat.step.peer import Peer, Teacher
from fastcat.step.sgd import ramped_decay
from fastcat.step.team import make_team
from fastcat.stop import StopRequest


class Trainer:
    """The peers of a configuration on a data set, and where they stand.

    epoch counts finished epochs, step the finished steps of the one under way.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset | None = None, console: Console | None = None
    ) -> None:
        set_threads(config.threads)
        self.device = make_device(config.device)
        self.precision = make_precision(config.precision, self.device)
        # what "auto" and None mean is settled here, and so the same when the run is resumed
        step_size = None if config.threats else config.threat_models()[0].step
        precision: Any = self.precision.name
        self.remarks: list[str] = []
        engine = choose_engine(config.engine, self.device, self.remarks.append)
        if config.sgd == "apex":
            engine = self._engine_of_apex(engine, config.engine)
        config = replace(config, precision=precision, step_size=step_size)
        self.config = config
        with task(console or make_console(), f"reading {config.data}, once") as progress:
            if dataset is None:
                dataset = load_dataset(config.data, config.data_dir, progress)
            dataset = in_order(dataset, config.class_order)
            if note := order_note(dataset.classes):
                self.remarks.append(f"note: {note}")
            extra = None
            if config.extra is not None:
                extra = load_extra(
                    config.extra, config.extra_fraction, dataset, config.class_order, progress
                )
                self.remarks += extra.remarks
        self.dataset = dataset
        self.digest = dataset.digest if extra is None else f"{dataset.digest}+{extra.digest}"
        self.normalize = channel_statistics(dataset.train.images) if config.normalize else None
        train_index, val_index = self._split()
        last_batch = len(train_index) % config.batch_size or config.batch_size
        members = make_members(config, dataset, self.normalize, self.device, last_batch)
        self.schedule, self.momentum = config.lr_schedule(), config.momentum_schedule()
        learnt = [
            dataset.train.labels[train_index.numpy()],
            *([extra.split.labels] if extra else []),
        ]
        self.remarks += never_learnt(dataset, np.concatenate(learnt))
        augmentation = config.augmentation(dataset.crop_pad, dataset.flip)
        sampling = Sampling(
            index=train_index,
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=True,
            augmentation=augmentation,
            extra=extra,
        )
        self.loader_name = choose_loader(config.loader, dataset.train, sampling, self.device)
        self.loader = make_loader(
            self.loader_name,
            dataset,
            "train",
            sampling,
            self.device,
            config.data_dir,
            config.workers,
        )
        first_two = Sampling(index=train_index[:2], batch_size=2)
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
        self.remarks += self.team.remarks
        for teacher in self.teachers:
            self.remarks += teacher.remarks
        self.engine = Engine(
            self.team,
            self.loader.gather,
            config.batch_size,
            engine,
            self.remarks.append,
            tuned=config.engine == "auto",
        )
        self.validation = Validation(
            self.config, dataset, val_index, self.engine, self.precision, self.normalize
        )
        attacked = [peer.name for peer in self.peers if peer.objective.inner is not None]
        monitor = self.validation.monitor
        images = 0 if monitor is None else monitor.size
        self.watch = Watch(
            attacked,
            self.validation.pairs,
            self.validation.selected_by,
            images,
            self.validation.chance,
        )
        self.rollbacks: list[dict[str, Any]] = []
        self.epoch = self.step = 0
        self.seconds = 0.0
        self.last_record: dict[str, Any] = {"peers": {}}

    def _engine_of_apex(self, engine: str, typed: str) -> str:
        """The engine, or a slower one that apex can be used in. Raises InputError for others."""
        if self.device.type != "cuda":
            raise InputError(f"--sgd apex is for GPUs, and this is {self.device}: leave it out")
        if self.precision.name == "fp16":
            raise InputError("--sgd apex reads no loss scale: type --precision bf16")
        if "graph" not in engine:
            return engine
        if typed != "auto":
            raise InputError(
                "--sgd apex has its learning rate on the host, which a graph would keep for ever: "
                "type --engine eager or --engine compile"
            )
        self.remarks.append("no graph engine, going on with eager: --sgd apex cannot be captured")
        return "eager"

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

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.loader) * self.config.replays

    @property
    def steps_done(self) -> int:
        return self.epoch * self.epoch_steps + self.step

    def inputs(self) -> Iterator[tuple[Tensor, ...]]:
        """What is left of this epoch: the loader's batches, each as often as it is replayed."""
        first, done = divmod(self.step, self.config.replays)
        for inputs in self.loader.inputs(self.epoch, first):
            yield from itertools.repeat(inputs, self.config.replays - done)
            done = 0

    @property
    def done(self) -> bool:
        return self.epoch >= self.config.epochs

    def state_dict(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "config": self.config.to_dict(),
            "data_digest": self.digest,
            "epoch": self.epoch,
            "step": self.step,
            "totals": self.engine.totals.cpu(),
            "seconds": self.seconds,
            "best": self.validation.best,
            "last_record": self.last_record,
            "watch": self.watch.memory,
            "rollbacks": self.rollbacks,
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
        self.epoch, self.step = state["epoch"], state["step"]
        self.engine.totals.copy_(state["totals"])
        self.team.scaler.load_state_dict(state["scaler"])
        self.seconds, self.validation.best = state["seconds"], state["best"]
        self.last_record = state["last_record"]
        self.watch.memory, self.rollbacks = state["watch"], state["rollbacks"]
        torch.set_rng_state(state["random"]["cpu"])
        if state["random"]["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def save(self, run: Path) -> None:
        """Write a checkpoint, unless a loss or a weight is no longer finite (Collapse)."""
        self.check_losses(run)
        self.check_weights(run)
        may_return = self.config.on_collapse == "rollback" and not self.step
        save_checkpoint(run, self.state_dict(), may_return and self.watch.at_ease)

    def check_losses(self, run: Path) -> None:
        """Raise Collapse naming the first loss term of this epoch that is NaN or infinite."""
        self._refuse(run, broken_loss(self._mean_metrics()))

    def check_weights(self, run: Path) -> None:
        """Raise Collapse naming the first weight that is NaN or infinite."""
        self._refuse(run, broken_weight(self.peers))

    def _refuse(self, run: Path, broken: str | None) -> None:
        if broken is not None:
            where = f"in epoch {self.epoch + 1} by step {self.steps_done}"
            raise Collapse(f"{broken} {where}", last_checkpoint(run))

    def begin_epoch(self, epoch: int, record: dict[str, Any]) -> None:
        """After `epoch` finished ones, of which `record` describes the last."""
        self.epoch, self.step, self.seconds = epoch, 0, 0.0
        self.engine.totals.zero_()
        self.last_record = record

    def _mean_metrics(self) -> dict[str, float]:
        """Means over this epoch's images so far; it waits for the device."""
        if not self.step:
            return {}
        size, replays = self.config.batch_size, self.config.replays
        batches, repeated = divmod(self.step, replays)
        before, now = (min(n * size, self.loader.size) for n in (batches, batches + 1))
        count = before * replays + (now - before) * repeated
        totals = self.engine.totals.tolist()
        names = self.team.loss.names
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def describe(self, run: Path) -> str:
        """What is about to be done, in a line."""
        monitor = self.validation.monitor
        on = (
            "no images"
            if monitor is None
            else f"{monitor.size} {self.validation.monitored_on} images"
        )
        where = f"epoch {self.epoch + 1}/{self.config.epochs}, step {self.step + 1}"
        several = len(self.config.threat_models()) > 1
        names = ", ".join(
            f"{member.name} ({member.arch}, {member.threats.name})"
            if several and isinstance(member, Peer)
            else f"{member.name} ({member.arch})"
            for member in self.team.members
        )
        return (
            f"{names}: {self.loader.size} images of {self.dataset.name}, judged on {on}, "
            f"{self.epoch_steps} steps an epoch, {self.precision.name} on {self.device}, "
            f"{self.engine.name}, images {self.loader_name}; "
            f"{run} from {where}"
        )

    def train_step(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One collaborative step on what the loader gave, with its learning rate and noise."""
        config = self.config
        seed = derive_seed(config.seed, "attack", self.steps_done)
        template = self.loader.template(inputs)
        self.team.loss.set_epoch(self.epoch)
        for peer in self.peers:
            if peer.awp is not None:
                peer.awp.set_active(self.epoch >= config.awp_warmup)
            if self.momentum is not None:
                peer.optimizer.set_momentum(self.momentum(self._elapsed(self.steps_done)))
            if config.ema is not None and config.ema_warmup is not None:
                copied = config.ema_warmup * config.epochs * self.epoch_steps
                decay = ramped_decay(config.ema, self.steps_done + 1, copied)
                peer.optimizer.set_ema_decay(decay)
        values = self.engine.step(inputs, template, seed, self.current_lr())
        self.step += 1
        return values

    def current_lr(self) -> float:
        """The rate of the step to come."""
        return self._lr_of(self.steps_done)

    def _lr_of(self, step: int) -> float:
        return self.config.lr * self.lr_scale * self.schedule(self._elapsed(step))

    def _elapsed(self, step: int) -> float:
        return elapsed(step, self.epoch_steps, self.config.lr_at)

    @property
    def lr_scale(self) -> float:
        """What rollbacks have left of the peak learning rate."""
        return 0.5 ** len(self.rollbacks)

    def validate_epoch(self, request: StopRequest) -> dict[str, Any]:
        """The record of the epoch that ends here, with what the peers are worth and the watch sees.

        Raises Stopped when a signal asks for it.
        """
        begin = time.perf_counter()
        means = self._mean_metrics()
        self._average()
        peers: dict[str, dict[str, Any]] = {}
        for k, peer in self.team.learners.items():
            prefix = f"{peer.name}/"
            measured = self.validation.measure(k, request)
            peers[peer.name] = {
                "train": {
                    name.removeprefix(prefix): mean
                    for name, mean in means.items()
                    if name.startswith(prefix)
                },
                **measured,
                "best": self.validation.is_best(peer, measured["accuracy"]),
            }
        self.watch.look(peers)
        return {
            "epoch": self.epoch + 1,
            "epochs": self.config.epochs,
            "lr": self._lr_of((self.epoch + 1) * self.epoch_steps - 1),
            "seconds": self.seconds,
            "images_per_second": self.loader.size / self.seconds,
            "judging_seconds": time.perf_counter() - begin,
            "peak_memory_mib": self._peak_memory_mib(),
            "select_on": self.config.select_on,
            "judged_on": self.validation.monitored_on,
            "rollbacks": self.rollbacks,
            "peers": peers,
        }

    def _average(self) -> None:
        """Take this epoch's weights into the averages, unless that was done before a stop."""
        for peer in self.peers:
            swa, begin = peer.swa, self.config.swa
            if swa is None or begin is None or swa.count > self.epoch + 1 - begin:
                continue
            with self.precision.autocast():
                swa.add(batch.x for batch in self.loader.epoch(self.epoch))

    def _peak_memory_mib(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)
