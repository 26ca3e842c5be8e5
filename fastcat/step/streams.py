"""Peers side by side: on a GPU each on a stream of its own, joined where logits cross."""

from collections.abc import Callable, Sequence

import torch


class Streams:
    """CUDA streams for groups of peers.

    groups: the numbers of peers that share a stream; on a CPU they run one after the other
    """

    def __init__(self, groups: Sequence[Sequence[int]], device: torch.device) -> None:
        self.groups = [list(group) for group in groups]
        side_by_side = device.type == "cuda" and len(self.groups) > 1
        self.streams = [torch.cuda.Stream(device) for _ in self.groups] if side_by_side else []

    def run(self, work: Callable[[list[int]], object]) -> None:
        """Do the work of each group on its stream, after all that came before this call."""
        if not self.streams:
            for group in self.groups:
                work(group)
            return
        main = torch.cuda.current_stream()
        try:
            for stream, group in zip(self.streams, self.groups, strict=True):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    work(group)
        finally:
            # also on an exception: a capture must not end with a stream outstanding
            for stream in self.streams:
                main.wait_stream(stream)
