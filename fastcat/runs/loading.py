"""`fastcat.load`: a trained network as a module, ready to be attacked and evaluated."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fastcat.config.evaluate import normalization
from fastcat.device import make_device
from fastcat.errors import InputError
from fastcat.files import find_path
from fastcat.report.seeds import is_over_seeds
from fastcat.runs.evaluate import find_weights
from fastcat.runtime import restored_settings
from fastcat.weights.file import load_weights
from fastcat.weights.foreign import foreign_network


@restored_settings()
def load(
    source: Path | str,
    *,
    peer: int | str = 0,
    weights: str = "best",
    arch: str | None = None,
    classes: int = 10,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    state: str | None = None,
    device: str = "cpu",
) -> nn.Module:
    """A trained network in eval mode, from images [B, C, H, W] in [0, 1] to logits [B, classes].

    It normalises within, where it was trained so.

    source: folder of a run, or a file: peers/*.safetensors of a run, or with arch a checkpoint that
        another project wrote
    peer: of a run, its number or name, as 0 or "0-trades"
    weights: of a run, "best", or "last"; without a best one the last
    arch: architecture of another project's checkpoint, a name of `fastcat list archs`
    classes, channels: logits of that network, and channels of its images
    mean, std: what that network subtracts and divides by, by channel. None: its file's, or nothing
    state: key of one network in a checkpoint of several
    device: "cpu", "cuda", "cuda:N", or "auto"

    Raises InputError for a folder or file without such a network, and for an unusable mean or std.
    """
    path = find_path(str(source))
    where = make_device(device)
    if arch is not None:
        if path.is_dir():
            raise InputError(f"{path} is a run, which knows its networks: leave arch out")
        if (peer, weights) != (0, "best"):
            raise InputError("peer and weights choose a network of a run: leave them or arch out")
        if (mean is None) != (std is None):
            raise InputError("mean and std need each other: give both")
        normalize = None if mean is None or std is None else normalization(mean, std, "mean")
        model, _ = foreign_network(path, arch, classes, channels, normalize, state)
    else:
        if (mean, std, state) != (None, None, None):
            raise InputError("mean, std and state are for a checkpoint of others: say arch too")
        if path.is_dir() and is_over_seeds(path):
            raise InputError(f"{path} holds several runs: give one of them, as {path / 'seed-0'}")
        if weights not in ("best", "last"):
            raise InputError(f"weights is {weights!r}, expected 'best' or 'last'")
        found = find_weights(path, weights, str(peer))
        if len(found) > 1:
            raise InputError(f"{path} has several peers: give the number of one, as peer=0")
        model, _ = load_weights(found[0])
    return model.to(where)
