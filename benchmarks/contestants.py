"""Who races in `fastcat bench`: the plain loops of the papers' code, and ours.

All train on the same random images, with torch's global switches as each finds them in a program of
its own.
"""

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcat.attacks.threat import WAYS, ThreatModel, Threats
from fastcat.benchmarks.methods import reference_for
from fastcat.benchmarks.reference.loader import plain_loader
from fastcat.benchmarks.reference.mixed import half_dtype, mixed
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.benchmarks.reference.union import BALLS
from fastcat.config.peers import PeerSpec
from fastcat.errors import InputError
from fastcat.evaluation import parse_attacks
from fastcat.evaluation.evaluate import last_answers
from fastcat.loaders.augmentation import Augmentation
from fastcat.loaders.backends.resident import ResidentLoader
from fastcat.loaders.dataset import Split
from fastcat.loaders.loader import Sampling
from fastcat.models import make_model
from fastcat.precision import DTYPES, Precision, make_precision
from fastcat.runs.validation_answers import ValidationAnswers
from fastcat.seeds import derive_seed
from fastcat.step.awp import WeightPerturbation
from fastcat.step.engine import Engine, choose_engine
from fastcat.step.peer import Member, Peer, Teacher
from fastcat.step.sgd import FlatSGD
from fastcat.step.team import make_team

CLASSES, SIDE, CHANNELS = 10, 32, 3
# as many as CIFAR-10 has
PHOTOGRAPHS = 50000
EVALUATION_STEPS = 20
THREAT = ThreatModel()
# what attacks peers that name a norm, or several
SEVERAL = {ball.norm: ThreatModel(**ball._asdict()) for ball in BALLS}


class Plain:
    """One of the reference loops, fed by worker processes as published, where torchvision is there,
    else from a batch on the device.
    """

    def __init__(
        self,
        loop: Callable[..., PlainLoop],
        specs: list[PeerSpec],
        batch: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        models = [make_network(k, spec.arch).to(device) for k, spec in enumerate(specs)]
        self.loop = loop(models, [spec.method for spec in specs])
        self.device = device
        self.x, self.y = images(batch, device)
        self.batches: Iterator[Sequence[Tensor]] = itertools.repeat((self.x, self.y))
        if workers is None:
            # as published where there are cores for it
            workers = min(4, os.cpu_count() or 1)
        if workers and importlib.util.find_spec("torchvision") is not None:
            pixels, labels = random_images()
            loader = plain_loader(pixels, labels.tolist(), batch, workers)
            self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def train(self) -> None:
        x, y = next(self.batches)
        self.loop.step(x.to(self.device), y.to(self.device))

    def eval(self) -> None:
        self.loop.evaluate(self.x, self.y, EVALUATION_STEPS)


class Ours:
    """A team on a fixed set of resident images."""

    def __init__(
        self,
        precision: Precision,
        engine: str,
        specs: list[PeerSpec],
        batch: int,
        device: torch.device,
        collab: str = "cat",
        lanes: bool = True,
        say: Callable[[str], object] = print,
    ) -> None:
        sampling = Sampling(
            index=torch.arange(batch),
            batch_size=batch,
            shuffle=True,
            augmentation=Augmentation(crop_pad=4, flip=True),
        )
        self.loader = ResidentLoader(Split(*random_images()), sampling, device)
        (self.inputs,) = self.loader.inputs()
        self.template = self.loader.template(self.inputs)
        members: list[Member] = []
        for k, spec in enumerate(specs):
            model = make_network(k, spec.arch).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            name = f"{k}-{spec.method}"
            if spec.weights is not None:
                members.append(Teacher(name, spec.arch, model, spec.weights, digest=""))
                continue
            optimizer = FlatSGD(model, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False)
            awp = WeightPerturbation(model, optimizer, spec.awp) if spec.awp else None
            threats = threats_for(spec.threat)
            peer = Peer(name, spec.arch, model, spec.objective, optimizer, threats, awp=awp)
            peer.begin_attacks(self.template)
            members.append(peer)
        self.team = make_team(
            members,
            collab=collab,
            alpha=None,
            precision=precision,
            classes=CLASSES,
            example=self.loader.gather(*self.inputs).x[:2],
            side_by_side=lanes,
        )
        for remark in self.team.remarks:
            say(remark)
        self.engine = Engine(self.team, self.loader.gather, batch, engine, say)
        self.answers = ValidationAnswers(self.engine)
        self.done = 0

    def train(self) -> None:
        self.engine.step(self.inputs, self.template, derive_seed(0, "bench", self.done), 0.01)
        self.done += 1

    def eval(self) -> None:
        batch = self.loader.gather(*self.inputs)
        generator = torch.Generator(batch.x.device).manual_seed(0)
        for k in self.team.learners:
            network, answers_after = self.answers.of(k)
            for attack in parse_attacks(f"clean,pgd{EVALUATION_STEPS}"):
                with self.team.precision.autocast():
                    last_answers(
                        network, batch.x, batch.y, attack, THREAT, generator, answers_after
                    ).sum().item()


def threats_for(name: str | None) -> Threats:
    """What attacks a peer of `threat=NAME`, which `reference_for` has not refused."""
    if name in WAYS:
        return Threats(tuple(SEVERAL.values()), name)
    return Threats((THREAT if name is None else SEVERAL[name],))


def make_network(k: int, arch: str) -> torch.nn.Module:
    torch.manual_seed(k)
    return make_model(arch, CLASSES, CHANNELS)


@cache
def random_images() -> tuple[np.ndarray, np.ndarray]:
    """Random images: uint8 [N, H, W, C], and labels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (PHOTOGRAPHS, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    return pixels, generator.integers(CLASSES, size=PHOTOGRAPHS)


def images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first random images as float32 [B, C, H, W] in [0, 1], and their labels [B]."""
    pixels, labels = (torch.from_numpy(array[:batch]) for array in random_images())
    x = pixels.permute(0, 3, 1, 2).contiguous() / 255
    return x.to(device), labels.to(device)


def set_arithmetic(name: str, device: torch.device) -> Precision | None:
    """Set torch's global switches as contestant `name` finds them in a program of its own.

    Returns the precision, None for a plain loop.
    """
    reference = name in ("plain", "mixed")
    torch.backends.cudnn.benchmark = not reference
    if not reference:
        return make_precision(name.partition("/")[0], device)
    # PyTorch's defaults: TF32 in convolutions, not in matrix products
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = True
    return None


def make_contestant(
    name: str,
    specs: list[PeerSpec],
    batch: int,
    device: torch.device,
    collab: str = "cat",
    **options: Any,
) -> Plain | Ours:
    """The contestant called `name`; torch's global switches are left as it wants them.

    Raises InputError as `reference_for` and `make_team` do.
    """
    precision = set_arithmetic(name, device)
    if precision is None:
        loop, settings = reference_for(specs, collab)
        loop = mixed(loop) if name == "mixed" else loop
        return Plain(partial(loop, **settings), specs, batch, device, **options)
    return Ours(precision, name.partition("/")[2], specs, batch, device, collab, **options)


def arithmetic_of(name: str, device: torch.device) -> str:
    """What the contestant's convolutions compute in."""
    if name == "plain":
        return "tf32" if device.type == "cuda" else "fp32"
    if name == "mixed":
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}[half_dtype(device)]
    return name.partition("/")[0]


def contestants_for(text: str, device: torch.device) -> list[str]:
    """The contestants' names. Raises InputError for one that cannot be had here."""
    if text == "auto":
        if device.type == "cuda":
            return ["plain", "mixed", "bf16/eager", "bf16/graph"]
        return ["plain", "mixed", "fp32/eager", "fp32/winograd", "bf16/eager", "bf16/winograd"]
    names = []
    for name in text.split(","):
        precision, slash, engine = name.partition("/")
        if slash and precision in DTYPES:
            names.append(f"{precision}/{choose_engine(engine, device)}")
        elif name in ("plain", "mixed"):
            names.append(name)
        else:
            raise InputError(
                f"unknown contestant {name!r}: expected plain, mixed, or PRECISION/ENGINE like "
                "bf16/eager"
            )
    return list(dict.fromkeys(names))


def opponents_for(text: str, device: torch.device) -> list[str]:
    """The plain loop, and those whose steps are set beside its own, method by method."""
    if text == "auto":
        text = "bf16/graph" if device.type == "cuda" else "fp32/winograd"
    return list(dict.fromkeys(["plain", *contestants_for(text, device)]))
