"""Sources of image files, which are decoded by several threads.

Images that cannot be used are collected, so that one run names them all.
"""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from fastcat.cpus import usable_cpus
from fastcat.errors import InputError

from .decode import Size, UnusableError
from .source import SPLITS, Block, Fault, Source

_BLOCK_IMAGES = 256
_BLOCK_BYTES = 8 << 20
_MAX_WORKERS = 16
_SHOWN = 3

# name of an image for errors; function from a size to pixels uint8 [H, W, 1 or 3]
ImageFile = tuple[str, Callable[[Size | int | None], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class ImageFileSource(Source):
    """A source of image files; without `resize` all must have one size."""

    @abstractmethod
    def image_files(self, split: str, start: int) -> Iterator[ImageFile]:
        """Images of a split from image `start` on, not read yet."""

    @cached_property
    def size(self) -> Size | int:
        """The size of the first usable image, or the side that all are resized to."""
        if self.resize:
            return self.resize
        faults = []
        for split in SPLITS:
            for name, read in self.image_files(split, 0):
                try:
                    height, width, _ = read(None).shape
                except UnusableError as error:
                    faults.append(error.about(name))
                else:
                    out = self.origin if os.sep in self.origin else self.name
                    return Size(height, width, name, self.origin, f"{out}.packed")
        raise refusal(
            self,
            len(faults),
            len(self),
            [fault.text for fault in faults],
            dict.fromkeys(fault.remedy for fault in faults),
        )

    def shape(self) -> tuple[int, int, int]:
        side = self.size
        return (side, side, 3) if isinstance(side, int) else (side.height, side.width, 3)

    def blocks(self, split: str, start: int) -> Generator[Block, None, None]:
        return decode_blocks(self.image_files(split, start), self.size)


class UnreadableError(InputError):
    """Images that cannot be used. The message names the first ones, `faults` all."""

    def __init__(self, text: str, faults: Sequence[str]) -> None:
        super().__init__(text)
        self.faults = faults


def refusal(
    source: Source, count: int, read: int, faults: Sequence[str], remedies: Iterable[str]
) -> UnreadableError:
    """The error about images that cannot be used.

    count: how many they are.
    read: of how many.
    faults: texts of the faults, perhaps not of all.
    remedies: what to do about them.
    """
    hidden = count - min(count, _SHOWN)
    texts = ", ".join(faults[:_SHOWN]) + (f" and {hidden} more ({count} in all)" if hidden else "")
    return UnreadableError(
        f"{count} of {read} images in {source.origin} cannot be packed: {texts}; "
        f"{', '.join(remedies)}",
        faults,
    )


def decode_blocks(
    image_files: Iterator[ImageFile], size: Size | int
) -> Generator[Block, None, None]:
    """Blocks of decoded images, in order; a few of them are in memory at any time."""
    height, width = (size, size) if isinstance(size, int) else (size.height, size.width)
    count = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // (3 * height * width)))
    workers = min(_MAX_WORKERS, usable_cpus())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Block]] = deque()
    try:
        while part := list(islice(image_files, count)):
            waiting.append(pool.submit(_decode_block, part, size, height, width))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_block(part: Sequence[ImageFile], size: Size | int, height: int, width: int) -> Block:
    images = np.empty((len(part), height, width, 3), dtype=np.uint8)
    kept = np.ones(len(part), dtype=bool)
    grey = True
    faults: list[Fault] = []
    for number, (name, read) in enumerate(part):
        try:
            pixels = read(size)
        except UnusableError as error:
            faults.append(error.about(name))
            kept[number] = False
            continue
        images[number] = pixels
        grey = grey and pixels.shape[2] == 1
    return Block(images if kept.all() else images[kept], kept, grey, faults)
