"""Which memory two streams of a step touch without an order between them.

For each block of memory the last write and the reads since then are kept, each with its stream and
number. An access to it is a race where its stream's clock does not have the other one.
"""

import inspect
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcat.kernels._op import Op
from tests.stand_in.stand_in import clock, launched, stream_now

# bytes, what the allocator aligns to
BLOCK = 512


class Access(NamedTuple):
    """number: of the operation on its stream."""

    stream: int
    number: int
    name: str


class Races:
    """found: how many blocks of memory each pair of operations raced for; operations: how many
    were launched; streams: on which.
    """

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.operations = 0
        self.streams: set[int] = set()
        self.writes: dict[int, Access] = {}
        self.reads: dict[int, dict[int, Access]] = defaultdict(dict)
        # autograd has a thread of its own
        self.lock = threading.Lock()

    def add(self, name: str, reads: Iterable[Tensor], writes: Iterable[Tensor]) -> None:
        """An operation that has just been launched on the current stream."""
        known, stream = clock(), stream_now()
        access = Access(stream, launched(), name)

        def check(kind: str, earlier: Access) -> None:
            if earlier.stream != stream and known.get(earlier.stream, 0) < earlier.number:
                self.found[f"{kind}: {name} on {stream}, {earlier.name} on {earlier.stream}"] += 1

        with self.lock:
            self.operations += 1
            self.streams.add(stream)
            for block in blocks(reads):
                if block in self.writes:
                    check("read after write", self.writes[block])
                self.reads[block][stream] = access
            for block in blocks(writes):
                if block in self.writes:
                    check("write after write", self.writes[block])
                for earlier in self.reads.pop(block, {}).values():
                    check("write after read", earlier)
                self.writes[block] = access


def blocks(tensors: Iterable[Tensor]) -> Iterator[int]:
    for tensor in tensors:
        if tensor.numel():
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            begin, end = tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()
            yield from range(begin // BLOCK, end // BLOCK + 1)


def on_gpu(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_cuda]


class _Watch(TorchDispatchMode):
    """Every operation of torch that launches something."""

    def __init__(self, add: Callable[[str, list[Tensor], list[Tensor]], object]) -> None:
        super().__init__()
        self.add = add

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = launched()
        out = func(*args, **(kwargs or {}))
        if launched() != before:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            given |= kwargs or {}
            changed = [
                given.get(argument.name)
                for argument in func._schema.arguments
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            self.add(str(func), on_gpu(given), on_gpu([changed, out]))
        return out


@contextmanager
def launches_watched(add: Callable[[str, list[Tensor], list[Tensor]], object]) -> Iterator[None]:
    """Within it what torch or our kernels launch is added, in order.

    add: gets an operation's name, the tensors that it reads and those that it writes
    """
    run = Op._run

    def noted(op: Op, *args: Any) -> Any:
        before = launched()
        out = run(op, *args)
        if launched() != before:
            names = inspect.signature(op.reference).parameters
            changed = [arg for name, arg in zip(names, args, strict=False) if name in op.mutates]
            add(op.name, on_gpu(args), on_gpu([changed, out]))
        return out

    with mock.patch.object(Op, "_run", noted), _Watch(add):
        yield


@contextmanager
def watched() -> Iterator[Races]:
    """The races of what is launched within it."""
    races = Races()
    with launches_watched(races.add):
        yield races
