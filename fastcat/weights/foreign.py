"""Checkpoints of others: a state_dict, bare or wrapped, as the field's training code leaves it.

Read are .pt and .pth files, by torch's reader for tensors and plain values alone, and .safetensors.
A network is found by its names, wherever it lies and whatever stands before each of them. A file
may hold several: two peers, a network and its average, one network twice.
"""

import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.models import ARCHS, canonical_arch, make_model, normalized

# of several networks that fit, the one that its authors evaluate
PREFERRED = ("adv_model", "state_dict", "model_state_dict", "rmodel", "model", "net")
# what wrappers keep beside the network: a normalisation of its input, numbers of classes, averages
MEANS, STDS = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")
COUNTS = ("n_classes", "n_averaged")

# keys above a network at most; what refers to itself has an end so
DEEPEST = 4

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


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """A network in a file, as far as one was found.

    keys: under which its tensors lie
    prefix: what stands before its names
    state: its tensors by the network's names
    normalize, remarks: as in Loaded
    misfit: why it does not fit the network; "" if it does
    """

    keys: tuple[str, ...]
    prefix: str
    state: State
    normalize: tuple[list[float], list[float]] | None
    remarks: tuple[str, ...]
    misfit: str

    @property
    def label(self) -> str:
        """How it is called: by its keys and its prefix."""
        return ".".join((*self.keys, *filter(None, self.prefix.split(".")))) or "top"

    @property
    def rank(self) -> tuple[int, int]:
        """Which is taken before others."""
        known = [PREFERRED.index(key) for key in self.keys if key in PREFERRED]
        return min(known, default=len(PREFERRED)), len(self.prefix)


def foreign_network(
    path: Path,
    arch: str,
    classes: int,
    channels: int,
    normalize: tuple[list[float], list[float]] | None,
    state: str | None,
) -> tuple[nn.Module, Loaded]:
    """The network of a checkpoint, in eval mode and normalising within, and how it was loaded.

    arch: its architecture, a name of `fastcat list archs`
    classes, channels: its logits, and channels of its images
    normalize: mean and deviation by channel. None: the file's, or none
    state: as `which` of `load_foreign`

    Raises InputError as `load_foreign`, and for a normalisation of other channels.
    """
    net = make_model(canonical_arch(arch), classes, channels)
    loaded = load_foreign(path, net, state)
    if normalize is not None:
        loaded = replace(loaded, normalize=normalize)
    if loaded.normalize is not None:
        mean, std = loaded.normalize
        if len(mean) not in (1, channels):
            raise InputError(f"mean has {len(mean)} numbers for {channels} channels")
        net = normalized(net, mean, std)
    return net.eval(), loaded


def load_foreign(path: Path, model: nn.Module, which: str | None = None) -> Loaded:
    """Put the tensors of a checkpoint into `model`.

    path: the file
    model: a network of the right architecture
    which: key or prefix of one network in a file of several. None: the one that its authors
        evaluate

    Raises InputError for a file that cannot be read, holds no weights, or those of another network;
    then `model` is as it was.
    """
    wanted = _shapes(model.state_dict())
    found = _read(path)
    entries = list(_entries(found))
    if not entries:
        has = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            has = f"{_some(list(map(str, found)))}" if found else "nothing"
        raise InputError(
            f"checkpoint {path} holds {has}: expected tensors by name, bare or under "
            f"{', '.join(PREFERRED)} or another key"
        )
    copies = [copy for keys, tensors in entries for copy in _copies(keys, tensors, wanted)]
    fitting = sorted((copy for copy in copies if not copy.misfit), key=lambda copy: copy.rank)
    if which is not None:
        fitting = _called(which, path, fitting or copies)
    if not fitting or fitting[0].misfit:
        nearest = max(fitting or copies, key=lambda copy: len(copy.state.keys() & wanted.keys()))
        tensors = dict(entries)[nearest.keys]
        fits = _fitting(tensors)
        hint = f"it fits --arch {fits}" if fits else "no architecture known here fits"
        raise InputError(f"{path} does not fit this network: {nearest.misfit}; {hint}")
    chosen = fitting[0]
    # BatchNorm's counter, which older checkpoints lack, keeps its value
    model.load_state_dict({**model.state_dict(), **chosen.state})
    remarks = list(chosen.remarks)
    others = [copy for copy in fitting[1:] if not _equal(copy.state, chosen.state)]
    if others:
        names = ", ".join(copy.label for copy in (chosen, *others))
        remarks.append(f"took the first of {names}: --state {others[0].label} takes another")
    return Loaded(remarks=tuple(remarks), normalize=chosen.normalize)


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


def _entries(found: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], State]]:
    """Every group of tensors by name in what was read, and the keys under which it lies."""
    if not isinstance(found, Mapping):
        found = dict(enumerate(found)) if isinstance(found, list | tuple) else {}
    elif tensors := {str(name): t for name, t in found.items() if isinstance(t, Tensor)}:
        yield keys, tensors
    for key, value in found.items():
        if len(keys) < DEEPEST:
            yield from _entries(value, (*keys, str(key)))


def _copies(keys: tuple[str, ...], tensors: State, wanted: Shapes) -> list[_Copy]:
    """The networks with the wanted names among these tensors, or else what comes nearest."""
    votes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for i in range(len(parts)):
            own = ".".join(parts[i:])
            if own in wanted and not _is_counter(own):
                votes[name.removesuffix(own)] += 1
    whole = sum(not _is_counter(name) for name in wanted)
    prefixes = [prefix for prefix, count in votes.items() if count == whole]
    if not prefixes:
        prefixes = [max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")]
    return [_copy(keys, prefix, prefixes, tensors, wanted) for prefix in prefixes]


def _copy(
    keys: tuple[str, ...], prefix: str, prefixes: list[str], tensors: State, wanted: Shapes
) -> _Copy:
    """The network behind one of the prefixes; what else is there must be explained."""
    remarks = [f"read under {', '.join(map(repr, keys))}"] if keys else []
    own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    state = {name: t for name, t in own.items() if name in wanted}
    taken = {prefix + name for name in state}
    taken |= {p + name for p in prefixes for name in wanted}
    rest = {name: t for name, t in tensors.items() if name not in taken}
    beside = {
        name: t
        for name, t in rest.items()
        if name.rpartition(".")[2] in (*MEANS, *STDS, *COUNTS) and t.numel() <= 16
    }
    normalize = _normalisation(beside)
    if beside:
        what = "set aside" if normalize is None else "took mean and std from"
        remarks.append(f"{what} {_some(list(beside))}")
    if prefix:
        remarks.append(f"stripped {prefix!r} off the names")
    unread = [name for name in rest if "sub_block1" in name.split(".")]
    if unread:
        remarks.append(f"dropped {len(unread)} tensors of sub_block1, which no forward reads")
    rest = {name: t for name, t in rest.items() if name not in beside and name not in unread}
    if _are_copies(rest, state):
        remarks.append(f"dropped {_some(list(rest))}, which stand there twice")
        rest = {}
    found = _shapes(state) | {name.removeprefix(prefix): t.shape for name, t in rest.items()}
    return _Copy(
        keys=keys,
        prefix=prefix,
        state=state,
        normalize=normalize,
        remarks=tuple(remarks),
        misfit=_misfit(found, wanted),
    )


def _called(which: str, path: Path, copies: list[_Copy]) -> list[_Copy]:
    """Those of the copies that are meant. Raises InputError where there are none."""
    meant = [c for c in copies if c.label == which or c.label.endswith(f".{which}")]
    if not meant:
        names = ", ".join(copy.label for copy in copies)
        raise InputError(f"{path} has no network under {which!r}, expected one of {names}")
    return meant


def _normalisation(beside: State) -> tuple[list[float], list[float]] | None:
    """Mean and std a channel, if there is one of each, however often."""
    mean, std = (
        [t.flatten().tolist() for name, t in beside.items() if name.rpartition(".")[2] in ends]
        for ends in (MEANS, STDS)
    )
    if not mean or not std or any(m != mean[0] for m in mean) or any(s != std[0] for s in std):
        return None
    return mean[0], std[0]


def _are_copies(rest: State, state: State) -> bool:
    """Whether the rest are tensors of the network once more, weights among them."""
    return any(t.ndim > 1 for t in rest.values()) and all(
        any(torch.equal(t, own) for own in state.values()) for t in rest.values()
    )


def _equal(a: State, b: State) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() & b.keys())


def _misfit(found: Shapes, wanted: Shapes) -> str:
    """The first differences in words."""
    missing = [name for name in wanted if name not in found and not _is_counter(name)]
    unexpected = [name for name in found if name not in wanted]
    differing = [
        f"{name} {_size(found[name])} for {_size(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    return ", ".join(
        f"{what} {_some(names)}"
        for what, names in (
            ("it lacks", missing),
            ("it has besides", unexpected),
            ("it has other shapes:", differing),
        )
        if names
    )


def _fitting(tensors: State) -> str | None:
    """The first architecture that has these names and shapes, if there is one, with its classes."""
    images = next((t.shape[1] for t in tensors.values() if t.ndim == 4), None)
    classes = next((len(t) for t in reversed(tensors.values()) if t.ndim == 2), None)
    if images is None or classes is None:
        return None
    for arch in ARCHS:
        wanted = _skeleton(arch, classes, images)
        if any(not copy.misfit for copy in _copies((), tensors, wanted)):
            return f"{arch} with {classes} classes in {images} channels"
    return None


def lookalikes(arch: str, classes: int, channels: int) -> list[str]:
    """Architectures of the same names and shapes as `arch`, itself among them, the usual first."""
    if arch not in ARCHS:
        return [arch]
    own = _skeleton(arch, classes, channels)
    return [name for name in ARCHS if name == arch or _skeleton(name, classes, channels) == own]


def _skeleton(arch: str, classes: int, channels: int) -> Shapes:
    with torch.device("meta"):
        return _shapes(make_model(arch, classes, channels).state_dict())


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in state.items()}


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(names: list[str]) -> str:
    """The first three, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
