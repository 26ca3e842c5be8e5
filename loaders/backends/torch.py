"""Through torch's DataLoader, item by item.

The way for data sets that compute their images; also the plain one to compare others with.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
from torch import Generator, Tensor, device, from_numpy, stack
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from fastcat.cpus import usable_cpus
from fastcat.errors import InputError

from ..dataset import Dataset, Split
from ..items import ItemImages
from ..loader import Sampling
from ..readers import Reader
from ..streamed import StreamedLoader

_WORKERS = 4


def torch(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: device,
    data_dir: Path,
    workers: int | None,
) -> StreamedLoader:
    """Raises InputError for a data set that cannot be given to worker processes."""
    split: Split = getattr(dataset, part)
    if workers is None:
        # arrays are read faster than workers are told what to read
        computed = isinstance(split.images, ItemImages)
        workers = min(_WORKERS, usable_cpus()) if computed else 0
    return StreamedLoader(split, sampling, device, item_reader(split, workers))


class _Rows(MapDataset):
    """A split as a map-style data set; it returns an InputError, as workers change its type."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, row: int) -> Tensor | InputError:
        images = self.split.images
        try:
            image = images.item(row) if isinstance(images, ItemImages) else images[row : row + 1][0]
        except InputError as error:
            return error
        return from_numpy(np.array(image))


def item_reader(split: Split, workers: int) -> Reader:
    """A reader through torch's DataLoader.

    workers: processes that read; 0: this one reads.
    Raises InputError where worker processes need a pickled data set and it cannot be pickled.
    """
    rows = _Rows(split)
    if workers:
        _check_sendable(rows)

    def read(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            rows,
            batch_sampler=[places.tolist() for places in batches],
            num_workers=workers,
            collate_fn=_stack,
            generator=Generator().manual_seed(seed),
        )
        # starts the workers now, not when the first batch is asked for
        with _no_signal_of_children():
            loaded = iter(loader)
        return _labelled(_or_death(loaded) if workers else loaded, split, batches)

    return read


def _check_sendable(rows: _Rows) -> None:
    if multiprocessing.get_start_method() == "fork":
        return  # a forked process needs no pickle
    try:
        ForkingPickler.dumps(rows)
    except Exception as error:  # whatever objects raise that cannot be pickled
        why = " ".join(str(error).split())
        raise InputError(
            f"the data set cannot be given to worker processes ({why}): type --workers 0, or make "
            "it of functions and classes of a module, and open files where they are first read"
        ) from error


@contextmanager
def _no_signal_of_children() -> Iterator[None]:
    """Keeps torch from raising a worker's death wherever the main thread is, for example in a step.

    It is raised where the worker's batch is waited for.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if signal.getsignal(signal.SIGCHLD) is not handler:
        signal.signal(signal.SIGCHLD, handler)


def _or_death(loaded: Iterator[Tensor | InputError]) -> Iterator[Tensor | InputError]:
    """The same items; InputError where a worker dies."""
    try:
        yield from loaded
    except (RuntimeError, OSError, EOFError) as error:
        if str(error).startswith("Caught "):  # in the data set, as torch hands it on
            raise
        raise InputError(
            f"a process that reads images died ({error}), perhaps for want of memory: type fewer "
            "--workers, or --workers 0; a run can be resumed from its last checkpoint"
        ) from error


def _labelled(
    loaded: Iterator[Tensor | InputError], split: Split, batches: Sequence[np.ndarray]
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, places in zip(loaded, batches, strict=True):
        if isinstance(images, InputError):
            raise images
        yield images, from_numpy(split.labels[places])


def _stack(images: list[Tensor | InputError]) -> Tensor | InputError:
    faults = [image for image in images if isinstance(image, InputError)]
    return faults[0] if faults else stack(images)  # type: ignore[arg-type]
