"""What a number was made with: versions and hardware."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions and hardware, for environment.json and `fastcat doctor`."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.name
    packages = ("fastcat-at", "torch", "torchvision", "triton", "numpy", "safetensors", "ffcv")
    gpus = [
        {"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    return {
        "command": " ".join([name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": {name: package_version(name) for name in packages},
    }


def package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
