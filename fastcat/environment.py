"""What a number was made with: versions and hardware."""

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions and hardware, for environment.json and `fastcat doctor`."""
    import torch

    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.name
    packages = (
        "fastcat-at", "torch", "torchvision", "triton", "numpy", "pillow", "safetensors", "ffcv",
    )  # fmt: skip
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


def too_old() -> list[tuple[str, str, str]]:
    """Name, version and least version of what is installed and older than fastcat asks for."""
    try:
        asked = requires("fastcat-at") or []
    except PackageNotFoundError:  # a checkout that was not installed
        return []
    found = []
    for line in asked:
        match = re.match(r"([\w.-]+)>=([\d.]+)", line)
        if match is None or 'extra == "dev"' in line:
            continue
        installed = package_version(match[1])
        if installed is not None and _release(installed) < _release(match[2]):
            found.append((match[1], installed, match[2]))
    return found


def _release(text: str) -> tuple[int, ...]:
    """2.9.1+cpu as (2, 9, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text)[0]))  # type: ignore[index]
