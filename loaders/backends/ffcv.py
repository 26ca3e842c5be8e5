"""Decoded by FFCV from .beton files, which are written where there are none.

FFCV only decodes here, in our order, and its thread is watched: its augmentations ignore seeds, its
batches are overwritten a few batches later, and after a failure in its thread it waits for ever.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcat.errors import InputError

from ..dataset import Dataset, Split, as_tensor
from ..formats.beton_folder import load_betons, write_betons
from ..loader import Sampling
from ..streamed import StreamedLoader

INSTALL = "apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++ && pip install ffcv"
_POLL_S = 0.5


def ffcv(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    data_dir: Path,
    workers: int | None,
) -> StreamedLoader:
    """data_dir: folder for the .beton files of a data set that has none.

    Raises InputError where FFCV is missing or cannot hold such images.
    """
    folder = dataset.betons
    split = getattr(dataset, part)
    if folder is None:
        folder = data_dir / f"{dataset.name}-{dataset.digest[:12]}.beton"
        if not folder.exists():
            write_betons(dataset, folder)
        written = load_betons(folder)
        if written.digest != dataset.digest:
            raise InputError(f"{folder} holds other images than {dataset.name}: remove it")
        split = getattr(written, part)
    read = FfcvReader(folder / f"{part}.beton", split, sampling.batch_size, workers)
    return StreamedLoader(split, sampling, device, read)


def has_ffcv() -> bool:
    return importlib.util.find_spec("ffcv") is not None


@contextmanager
def _same_threads() -> Iterator[None]:
    """Restores torch's number of threads, which importing FFCV sets to 1."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class FfcvReader:
    """A reader of a .beton file. In the first epoch of a process FFCV compiles, for some seconds.

    path: file that `read_beton` has checked.
    split: what it read.
    workers: threads that decode, at least one; None: as many as torch has.
    Raises InputError where FFCV cannot be imported.
    """

    def __init__(
        self, path: Path, split: Split, batch_size: int, workers: int | None = None
    ) -> None:
        try:
            with _same_threads():
                from ffcv.fields.decoders import NDArrayDecoder, SimpleRGBImageDecoder
                from ffcv.loader import Loader
                from numba import config
        except Exception as error:  # its libraries can fail in their own ways
            raise InputError(
                f"the loader ffcv needs FFCV, which cannot be imported ({error}): type {INSTALL}, "
                "or --loader stream"
            ) from error
        decoder = SimpleRGBImageDecoder if split.images.shape[3] == 3 else NDArrayDecoder
        self.path = path
        self.labels = split.labels
        threads = torch.get_num_threads() if workers is None else max(1, workers)
        with _same_threads():
            self.loader = Loader(
                str(path),
                batch_size=batch_size,
                num_workers=min(threads, config.NUMBA_NUM_THREADS),  # type: ignore[attr-defined]
                os_cache=True,
                drop_last=False,
                pipelines={"image": [decoder()], "label": None},
            )

    def __call__(self, batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        from ffcv.loader.epoch_iterator import EpochIterator

        if not batches:
            return
        # FFCV cuts the order at one batch size: only the last batch may be smaller
        assert all(len(places) == len(batches[0]) for places in batches[:-1])
        self.loader.batch_size = len(batches[0])
        with _same_threads():
            decoding = EpochIterator(self.loader, np.concatenate(batches).astype(np.uint64))
        try:
            for places in batches:
                yield self._next(decoding), as_tensor(self.labels[places])
        finally:
            decoding.close()

    def _next(self, decoding: Any) -> Tensor:
        """Images of the next batch, copied, since FFCV writes over its own."""
        while True:
            try:
                _slot, (images,) = decoding.output_queue.get(timeout=_POLL_S)
            except Empty:
                if not decoding.is_alive():
                    raise InputError(
                        f"FFCV failed to decode {self.path}: write it anew with fastcat data "
                        "convert, or type --loader stream"
                    ) from None
            else:
                return torch.from_numpy(images.copy())
