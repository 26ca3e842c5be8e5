"""What a CUDA that computes nothing has noticed: for the scripts in this folder, which run on it.

It is a library in front of CUDA's own (FASTCAT_STAND_IN_CUDA names its folder): memory is the
host's and kernels do nothing, but streams, events and captures keep CUDA's rules. It can show what
is launched, on which stream, in which order and whether that is allowed; it cannot show numbers,
times, or what cuDNN chooses.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastcat.attacks import frozen

# read by `clock`
MOST_STREAMS = 256

library = ctypes.CDLL(os.environ["DRY_CUDA_LIBRARY"])
for _name in ("fake_get_count", "fake_get_violations"):
    getattr(library, _name).restype = ctypes.c_char_p
library.fake_syncs.restype = ctypes.c_long
library.fake_peak.restype = ctypes.c_size_t
library.fake_clock.argtypes = [
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.c_int,
]
library.fake_stream_id.argtypes = [ctypes.c_void_p]


def violations() -> list[str]:
    """Calls since the last question that CUDA would have refused."""
    return [line for line in library.fake_get_violations().decode().splitlines() if line]


def synchronisations() -> int:
    """How often the host has waited for the device."""
    return library.fake_syncs()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Launches within it, filled in at its end: "eager:NAME" by kernel, where a replayed graph is
    one, and "capture:NAME" by node of a graph.
    """
    launches: Counter[str] = Counter()
    library.fake_count(1)
    try:
        yield launches
    finally:
        for line in library.fake_get_count().decode().splitlines():
            number, _, name = line.partition("\t")
            launches[name] = int(number)
        library.fake_count(0)


def stream_now() -> int:
    """Number of the current stream."""
    return library.fake_stream_id(torch.cuda.current_stream().cuda_stream)


def clock() -> dict[int, int]:
    """By number of a stream, how many of its operations have ended when the next one of the
    current stream begins.
    """
    streams = (ctypes.c_int * MOST_STREAMS)()
    ended = (ctypes.c_uint64 * MOST_STREAMS)()
    handle = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    count = library.fake_clock(handle, streams, ended, MOST_STREAMS)
    return dict(zip(streams[:count], ended[:count], strict=True))


def launched() -> int:
    """How many operations the current stream has got."""
    return clock().get(stream_now(), 0)


@contextmanager
def numbers_unread(right: bool = True) -> Iterator[None]:
    """Within it nothing goes by the numbers of the device, which are garbage.

    What the host reads of it is True, 0 or 0.5, all elements are nonzero, and twins pass for
    right.
    right: whether their epilogues pass for right too
    """
    benign = {torch.bool: True, torch.float32: 0.5, torch.float64: 0.5}
    read = {name: getattr(Tensor, name) for name in ("item", "tolist", "nonzero", "bincount")}

    def item(tensor: Tensor) -> Any:
        value = read["item"](tensor)  # which waits for the device, as it should
        return benign.get(tensor.dtype, 0) if tensor.is_cuda else value

    def tolist(tensor: Tensor) -> Any:
        values = read["tolist"](tensor)
        if not tensor.is_cuda:
            return values
        return torch.full(tensor.shape, benign.get(tensor.dtype, 0), dtype=tensor.dtype).tolist()

    def nonzero(tensor: Tensor) -> Tensor:
        if not (tensor.is_cuda and tensor.dim() == 1):
            return read["nonzero"](tensor)
        read["item"](tensor[0])
        return torch.arange(len(tensor), device=tensor.device)[:, None]

    def bincount(tensor: Tensor, minlength: int = 0) -> Tensor:
        if not tensor.is_cuda:
            return read["bincount"](tensor, minlength=minlength)
        read["item"](tensor[0])
        return torch.ones(minlength, dtype=torch.int64, device=tensor.device)

    with (
        mock.patch.object(frozen, "_agree", return_value=True),
        mock.patch.object(frozen.Frozen, "_is_right", return_value=right),
        mock.patch.object(Tensor, "item", item),
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(Tensor, "nonzero", nonzero),
        mock.patch.object(Tensor, "bincount", bincount),
        mock.patch.object(Tensor, "__float__", item),
        mock.patch.object(Tensor, "__int__", item),
        mock.patch.object(Tensor, "__bool__", lambda tensor: bool(item(tensor))),
    ):
        yield
