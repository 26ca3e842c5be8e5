"""Sources of image files: decoded in parallel, since Pillow lets other threads run meanwhile.

Images that cannot be used are collected, not raised one by one, so that one run names them all.
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

# what an image is called in sentences, and what reads it: uint8 [H, W, 1 or 3], or UnusableError
Picture = tuple[str, Callable[[Size | int | None], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class PictureSource(Source):
    """A source whose images are decoded one by one; without resize all must have one size."""

    @abstractmethod
    def pictures(self, split: str, start: int) -> Iterator[Picture]:
        """The images of a split from number `start` on, not read yet."""

    @cached_property
    def size(self) -> Size | int:
        """What the first good image has, or the side that all get."""
        if self.resize:
            return self.resize
        faults = []
        for split in SPLITS:
            for name, read in self.pictures(split, 0):
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
        return decode_blocks(self.pictures(split, start), self.size)


class UnreadableError(InputError):
    """Images that cannot be used; its text names the first of them, faults one by one."""

    def __init__(self, text: str, faults: Sequence[str]) -> None:
        super().__init__(text)
        self.faults = faults


def refusal(
    source: Source, count: int, read: int, faults: Sequence[str], remedies: Iterable[str]
) -> UnreadableError:
    """What is said of `count` faults among `read` images: which, and what to do."""
    hidden = count - min(count, _SHOWN)
    texts = ", ".join(faults[:_SHOWN]) + (f" and {hidden} more ({count} in all)" if hidden else "")
    return UnreadableError(
        f"{count} of {read} images in {source.origin} cannot be packed: {texts}; "
        f"{', '.join(remedies)}",
        faults,
    )


def decode_blocks(pictures: Iterator[Picture], size: Size | int) -> Generator[Block, None, None]:
    """Decode in order, in blocks; only a few blocks are in memory at any time."""
    height, width = (size, size) if isinstance(size, int) else (size.height, size.width)
    count = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // (3 * height * width)))
    workers = min(_MAX_WORKERS, usable_cpus())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Block]] = deque()
    try:
        while part := list(islice(pictures, count)):
            waiting.append(pool.submit(_decode_block, part, size, height, width))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_block(part: Sequence[Picture], size: Size | int, height: int, width: int) -> Block:
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
