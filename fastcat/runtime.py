"""Settings of torch that hold for the whole process: what a run changes is put back."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch


@contextmanager
def restored_tf32() -> Iterator[None]:
    """Afterwards float32 is computed as before.

    torch has an older and a newer interface for that, and refuses to read one where the other was
    used; each setting is put back by the one that could read it.
    """
    cudnn: Any = torch.backends.cudnn
    newer = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [backend.fp32_precision for backend in newer]
    matmul = allowed = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        allowed = cudnn.allow_tf32
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        else:
            newer[0].fp32_precision = before[0]
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        else:
            newer[1].fp32_precision, newer[2].fp32_precision = before[1:]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it float32 is computed in float32."""
    with restored_tf32():
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        yield


@contextmanager
def without_search() -> Iterator[None]:
    """Within it cuDNN takes its first guess: for shapes that come once."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def restored_settings() -> Iterator[None]:
    """Afterwards CPU threads, TF32, cuDNN's search, current GPU and random states are as before."""
    threads, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    # where nobody has used a GPU yet, asking it would take memory
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    current = torch.cuda.current_device() if gpus else 0
    try:
        with torch.random.fork_rng(gpus), restored_tf32():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = search
        if torch.cuda.is_initialized():
            torch.cuda.set_device(current)
