"""Checkpoints of others: a state_dict, bare or wrapped, as the field's training code leaves it.

Read are .pt and .pth files, by torch's reader for tensors and plain values alone, and .safetensors.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.models import ARCHS, make_model

# under which a state_dict lies, the first that is there
WRAPPINGS = ("state_dict", "model_state_dict", "rmodel", "model", "net")
# what wrappers put before each name, also one after the other: module.0., module._orig_mod.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "0.", "1.")
# what wrappers keep beside the network: a normalisation of its input, MAIR's number of classes
MEANS, STDS, COUNTS = ("mean", "mu"), ("std", "sigma"), ("n_classes",)

# what the readers raise at files that are none
_UNREADABLE = (
    *(pickle.UnpicklingError, safetensors.SafetensorError, OSError, EOFError, RuntimeError),
    *(ValueError, TypeError, LookupError, AttributeError),
)

State = dict[str, Tensor]
Shapes = dict[str, torch.Size]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What had to be done for loading, in words, and the normalisation that the file asks for."""

    remarks: tuple[str, ...]
    normalize: tuple[list[float], list[float]] | None


def load_foreign(path: Path, model: nn.Module) -> Loaded:
    """Put the tensors of a checkpoint into `model`.

    Raises InputError for a file that cannot be read, holds no weights, or those of another network;
    then `model` is as it was.
    """
    tensors, remarks = _unwrapped(path, _read(path))
    wanted = _shapes(model.state_dict())
    renamed, normalize, more = _renamed(tensors, wanted)
    _check_fit(path, _shapes(renamed), wanted, tensors)
    # BatchNorm's counter, which older checkpoints lack, keeps its value
    model.load_state_dict({**model.state_dict(), **renamed})
    return Loaded(remarks=(*remarks, *more), normalize=normalize)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign is not None:
            raise InputError(
                f"checkpoint {path} holds {foreign[1]} besides tensors and plain values and was "
                "not loaded: save its state_dict alone, where you trust it"
            ) from error
        raise InputError(
            f"checkpoint {path} is damaged or no checkpoint: expected a .pt, .pth or .safetensors "
            "file of tensors and plain values"
        ) from error


def _unwrapped(path: Path, found: Any) -> tuple[State, list[str]]:
    """The state_dict in what was read, and under which keys it lay."""
    remarks: list[str] = []
    while isinstance(found, Mapping):
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return {str(name): tensor for name, tensor in found.items()}, remarks
        key = next((key for key in WRAPPINGS if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        remarks.append(f"read under {key!r}")
        found = found[key]
    has = f"a {type(found).__name__}"
    if isinstance(found, Mapping):
        has = f"{_some(list(map(str, found)))}" if found else "nothing"
    raise InputError(
        f"checkpoint {path} holds {has}: expected tensors by name, bare or under "
        f"{', '.join(WRAPPINGS)}"
    )


def _renamed(
    tensors: State, wanted: Shapes
) -> tuple[State, tuple[list[float], list[float]] | None, list[str]]:
    """The tensors by the network's names, the normalisation beside them, and what was done.

    TRADES' sub_block1, which nothing reads, goes where the network has none.
    """
    remarks: list[str] = []
    tensors, beside = _without(tensors, wanted, (*MEANS, *STDS, *COUNTS))
    normalize = _normalisation(beside)
    if beside:
        what = "set aside" if normalize is None else "took mean and std from"
        remarks.append(f"{what} {_some(list(beside))}")
    prefix = _prefix(list(tensors), wanted)
    if prefix:
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        remarks.append(f"stripped {prefix!r} off the names")
    kept = {n: t for n, t in tensors.items() if n in wanted or not n.startswith("sub_block1.")}
    if len(kept) < len(tensors):
        dropped = len(tensors) - len(kept)
        remarks.append(f"dropped {dropped} tensors of sub_block1, which no forward reads")
    return kept, normalize, remarks


def _without(tensors: State, wanted: Shapes, ends: tuple[str, ...]) -> tuple[State, State]:
    """The tensors of the network, and the small ones beside it whose names end so."""
    beside = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in wanted and name.rpartition(".")[2] in ends and tensor.numel() <= 16
    }
    return {name: t for name, t in tensors.items() if name not in beside}, beside


def _normalisation(beside: State) -> tuple[list[float], list[float]] | None:
    """Mean and std a channel, if there is one of each."""
    mean, std = (
        [t.flatten().tolist() for name, t in beside.items() if name.rpartition(".")[2] in ends]
        for ends in (MEANS, STDS)
    )
    return (mean[0], std[0]) if len(mean) == len(std) == 1 else None


def _prefix(names: list[str], wanted: Shapes) -> str:
    """What wrappers put before every name of the network."""
    stripped = ""
    while names and not any(name.removeprefix(stripped) in wanted for name in names):
        own = [name.removeprefix(stripped) for name in names]
        more = next((p for p in PREFIXES if all(name.startswith(p) for name in own)), "")
        if not more:
            break
        stripped += more
    return stripped


def _check_fit(path: Path, found: Shapes, wanted: Shapes, tensors: State) -> None:
    """Raise InputError that names the first differences, and the network that it is."""
    missing = [name for name in wanted if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in wanted]
    differing = [
        f"{name} {_size(found[name])} for {_size(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    wrong = [
        f"{what} {_some(names)}"
        for what, names in (
            ("it lacks", missing),
            ("it has besides", unexpected),
            ("it has other shapes:", differing),
        )
        if names
    ]
    if wrong:
        fitting = _fitting(tensors)
        hint = f"it fits --arch {fitting}" if fitting else "no architecture known here fits"
        raise InputError(f"{path} does not fit this network: {', '.join(wrong)}; {hint}")


def _fitting(tensors: State) -> str | None:
    """The architecture that has these names and shapes, if there is one, with its classes."""
    images = next((t.shape[1] for t in tensors.values() if t.ndim == 4), None)
    classes = next((len(t) for t in reversed(tensors.values()) if t.ndim == 2), None)
    if images is None or classes is None:
        return None
    for arch in ARCHS:
        with torch.device("meta"):
            wanted = _shapes(make_model(arch, classes, images).state_dict())
        found = _shapes(_renamed(tensors, wanted)[0])
        if {n for n in wanted if not _is_counter(n)} <= found.keys() and all(
            wanted.get(name) == shape for name, shape in found.items()
        ):
            return f"{arch} with {classes} classes in {images} channels"
    return None


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in state.items()}


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
