"""What a kernel's file offers: an Op, its Triton kernel on a GPU, its reference elsewhere.

Ops are registered with torch under `fastcat::NAME`, so they can stand inside torch.compile.
"""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if not __name__.startswith("fastcat."):
    # a second copy would register its ops over those in use
    raise ImportError(f"import fastcat.{__name__.partition('.')[0]}, not the folder itself")

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # it is for Linux; elsewhere the references run
    HAS_TRITON = False

    class _Absent:
        """Stands for Triton where it is not installed: a kernel's file can be imported, not
        launched.
        """

        def __getattr__(self, name: str) -> "_Absent":
            return self

        def __call__(self, *args: Any, **settings: Any) -> "_Absent":
            return self

    triton = tl = _Absent()
else:
    HAS_TRITON = True


def _private_cache() -> tempfile.TemporaryDirectory[str] | None:
    """A folder for what Triton compiles, until this process ends, where its own cannot be written:
    of users without a home it would be called "~", in the current folder.
    """
    folder = Path(triton.knobs.cache.dir)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if folder.is_absolute() and os.access(there, os.W_OK | os.X_OK):
        return None
    private = tempfile.TemporaryDirectory(prefix="triton-")
    os.environ["TRITON_CACHE_DIR"] = private.name
    return private


_cache = _private_cache() if HAS_TRITON else None


@dataclass(frozen=True, kw_only=True)
class Op:
    """A kernel with its specification; it takes positional arguments alone.

    reference: the specification, plain torch without casts
    fused: the Triton launcher of the same signature, which computes in float32
    fake: the outputs' shapes, from the same arguments. None for an op without outputs
    mutates: names of the arguments that it changes
    """

    name: str
    reference: Callable[..., Any]
    fused: Callable[..., Any]
    fake: Callable[..., Any] | None = None
    mutates: Sequence[str] = ()
    torch_op: Any = field(init=False)

    def __post_init__(self) -> None:
        mutates = tuple(self.mutates)
        schema = torch.library.infer_schema(self.reference, mutates_args=mutates)
        torch_op = torch.library.custom_op(
            f"fastcat::{self.name}", self._run, mutates_args=mutates, schema=schema
        )
        torch_op.register_fake(self.fake or (lambda *args: None))
        object.__setattr__(self, "torch_op", torch_op)

    def _run(self, *args: Any) -> Any:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        if not HAS_TRITON or double or not tensors[0].is_cuda:
            return self.reference(*args)
        # Triton launches on the current device, wherever its arguments are
        with torch.cuda.device(tensors[0].device):
            return self.fused(*args)

    def __call__(self, *args: Any) -> Any:
        learns = torch.is_grad_enabled() and any(
            isinstance(arg, Tensor) and arg.requires_grad for arg in args
        )
        # the way through torch costs more than the kernel, so it is taken only where it is needed
        return (self.torch_op if learns or torch.compiler.is_compiling() else self._run)(*args)


def all_ops() -> Iterator[Op]:
    """Every op in this folder, from the module whose reference it is."""
    package = __name__.rpartition(".")[0]
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = importlib.import_module(f"{package}.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, Op) and value.reference.__module__ == module.__name__:
                yield value


def block_sizes(rows: int, columns: int, elements: int) -> tuple[int, int]:
    """A tile of whole rows: the columns rounded up to a power of two, about `elements` in all."""
    block_columns = 1 << max(columns - 1, 0).bit_length()
    return max(1, min(elements // block_columns, 1 << max(rows - 1, 0).bit_length())), block_columns
