"""`fastcat doctor`: what is installed, what computes, what is missing."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from fastcat.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Show versions, devices, what is missing and the line that installs it."""


def run(arguments: Sequence[str]) -> int:
    parse(DoctorCommand, arguments, "doctor")
    lines, healthy = report()
    print("\n".join(lines))
    return 0 if healthy else 1


# what an extra is for, and the lines that install it, for packages that the core does without
OPTIONAL = {
    "sklearn": ("the digits data set", "pip install scikit-learn"),
    "scipy": ("the svhn data set", "pip install scipy"),
    "pyarrow": ("parquet files", "pip install pyarrow"),
    "timm": ("networks as timm:NAME", "pip install timm"),
}


def report() -> tuple[list[str], bool]:
    """Lines to print, and whether a small convolution runs on every device that is there."""
    import torch

    from fastcat.cpus import usable_cpus
    from fastcat.environment import environment, too_old
    from fastcat.kernels import winograd
    from fastcat.loaders.backends.ffcv import INSTALL
    from fastcat.step.apex_sgd import why_no_apex

    facts = environment()
    lines = [
        f"python {facts['python']} on {facts['platform']}",
        *(f"{name} {version or 'not installed'}" for name, version in facts["packages"].items()),
        f"cpu: {facts['cpu_threads']} threads on {usable_cpus()} usable CPUs, "
        f"{facts['cpu_capability']}",
    ]
    if facts["gpus"]:
        lines += [
            f"gpu {i}: {gpu['name']}, {gpu['memory_gib']} GiB"
            for i, gpu in enumerate(facts["gpus"])
        ]
        bf16 = (
            "yes"
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else "no (--precision fp16 works)"
        )
        lines.append(f"bf16 on the gpu: {bf16}")
    else:
        lines.append("gpu: none that PyTorch can use; training runs on the cpu")
    healthy = True
    for device in ["cpu", *(f"cuda:{i}" for i in range(len(facts["gpus"])))]:
        try:
            x = torch.rand(2, 3, 8, 8, device=device, requires_grad=True)
            torch.nn.Conv2d(3, 4, 3).to(device)(x).sum().backward()
            lines.append(f"{device}: a convolution and its gradient run")
        except RuntimeError as error:
            healthy = False
            lines.append(f"{device}: a convolution fails: {str(error).splitlines()[0]}")
    try:
        winograd.library()
        lines.append("cpu: the engine winograd is built")
    except winograd.CannotBuild as error:
        lines.append(f"cpu: no engine winograd, --engine eager is slower: {error}")
    for name, version, least in too_old():
        lines.append(f"{name} {version} is too old: pip install '{name}>={least}'")
    reason = why_no_apex()
    lines.append(
        "--sgd apex: NVIDIA's apex is there" if reason is None else f"no --sgd apex: {reason}"
    )
    for module, (purpose, line) in {**OPTIONAL, "ffcv": ("the loader ffcv", INSTALL)}.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f"missing for {purpose}: {line}")
    return lines, healthy
