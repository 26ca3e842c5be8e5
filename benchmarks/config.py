"""The settings of `fastcat bench`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcat.errors import InputError

WHATS = ("train", "eval", "methods", "layers", "loaders")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time training steps and evaluation against the papers' loops."""

    arch: str = "resnet18"
    """Architectures, separated by commas."""
    peers: str = "trades,alp"
    """Methods of the peers; several teams are separated by semicolons."""
    collab: Literal["cat", "mat", "mat-mp", "none"] = "cat"
    """What several peers owe each other."""
    batch_size: str = "128"
    """Images a step; several are separated by commas."""
    what: str = "train"
    """train, eval (PGD-20), methods (each against the loop of its own paper), layers (each
    convolution alone), loaders, separated by commas."""
    methods: str = "all"
    """For `methods`, which: names as at,trades-awp,mat, separated by commas. all: every one. Those
    of several norms have 10 steps in each, not the 40 to 100 of their papers."""
    data: Path | None = None
    """Image folder for `loaders`. None: 10 000 random images."""
    contestants: str = "auto"
    """plain, mixed, and ours as PRECISION/ENGINE, separated by commas. auto: what suits; for
    `methods` plain and bf16/graph on a GPU, fp32/winograd on a CPU."""
    repetitions: int = 5
    """Timed turns of each contestant."""
    steps: int | None = None
    """Steps a turn. None: 10 on a GPU, 1 on a CPU."""
    beside: str = "0"
    """Beside how many other busy processes it is timed, separated by commas: 0,1,2."""
    images: int = 50000
    """Images of an epoch, for the seconds an epoch takes."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    threads: int | None = None
    """CPU threads. None: as PyTorch chooses, at most as many as the CPUs we may use."""
    out: Path | None = None
    """JSON file to write. None: a new one, bench-DATE-TIME.json."""
    compare: Path | None = None
    """An earlier JSON file; what changed since is shown."""

    def __post_init__(self) -> None:
        for name in ("repetitions", "steps", "images", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        if not set(self.what.split(",")) <= set(WHATS):
            raise InputError(f"what is {self.what!r}, expected some of {','.join(WHATS)}")
        from fastcat.benchmarks.contestants import PHOTOGRAPHS
        from fastcat.benchmarks.methods import parse_methods, reference_for
        from fastcat.config.peers import parse_peers
        from fastcat.models import canonical_arch

        parse_methods(self.methods)
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.batch_size):
            raise InputError(f"batch size is {self.batch_size!r}, expected numbers like 128,256")
        if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", self.beside):
            raise InputError(f"beside is {self.beside!r}, expected numbers like 0,1,2")
        if max(map(int, self.batch_size.split(","))) > PHOTOGRAPHS:
            raise InputError(f"batch size is {self.batch_size}, expected at most {PHOTOGRAPHS}")
        for arch in self.arch.split(","):
            canonical_arch(arch)
            for peers in self.peers.split(";"):
                reference_for(parse_peers(peers, arch), self.collab)
        if self.out is not None and self.out.exists():
            raise InputError(f"{self.out} exists already: choose another --out")
