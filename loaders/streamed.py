"""A loader whose batches are read on the host and uploaded while the device works."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.seeds import derive_seed

from .dataset import Split
from .loader import Loader, Sampling
from .readers import Reader

_AHEAD = 3


class StreamedLoader(Loader):
    """Batches of a reader, a few of them ahead of the device.

    read: reads the images and labels of batches, as of `Reader`.
    """

    def __init__(
        self, split: Split, sampling: Sampling, device: torch.device, read: Reader
    ) -> None:
        super().__init__(split, sampling, device)
        self.read = read if sampling.extra is None else sampling.extra.joined_to(read, len(split))
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def inputs(self, epoch: int = 0, first_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        drawn = self.batches(self.draw(epoch), first_batch)
        seed = derive_seed(self.sampling.seed, "workers", epoch)
        # called here, since a reader may fork processes, which a thread must not
        read = self.read([draws[0].numpy() for draws, *_ in drawn], seed)
        with closing(ahead(self._upload(read, drawn))) as uploaded:
            for tensors, event in uploaded:
                if event is not None:
                    current = torch.cuda.current_stream(self.device)
                    current.wait_event(event)
                    for tensor in tensors:
                        tensor.record_stream(current)
                yield tensors

    def _upload(
        self, read: Iterator[tuple[Tensor, Tensor]], drawn: Sequence[tuple[Tensor, ...]]
    ) -> Generator[tuple[tuple[Tensor, ...], torch.cuda.Event | None], None, None]:
        for (images, y), (draws, *mixes) in zip(read, drawn, strict=True):
            rows = torch.arange(draws.shape[1])
            tensors = (torch.cat([rows[None], draws[1:]]), images, y, draws[0], *mixes)
            if self.stream is None:
                yield tensors, None
            else:
                with torch.cuda.stream(self.stream):
                    # torch uses pinned memory again only after the copy
                    moved = [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
                    yield tuple(moved), self.stream.record_event()

    def gather(self, *inputs: Tensor) -> Batch:
        """A batch of images [B, H, W, C] as read, their labels, places and random numbers."""
        draws, images, y, places, *mixes = inputs
        return self.make_batch(images, y, places, draws, *mixes)


def ahead(items: Generator, depth: int = _AHEAD) -> Generator:
    """The same items, made by a thread up to `depth` in advance; its errors are raised here."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    end = object()
    waiting = deque(pool.submit(next, items, end) for _ in range(depth))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        items.close()
