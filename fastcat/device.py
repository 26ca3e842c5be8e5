"""Devices by name."""

import torch

from fastcat.errors import InputError


def make_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:1". Raises InputError for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no GPU {name!r}: type --device cpu, or see `fastcat doctor`")
    if device.type == "cuda" and device.index is not None:
        # streams and random states are asked of the current device
        torch.cuda.set_device(device)
    return device
