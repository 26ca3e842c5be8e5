"""Settings of torch that hold for the whole process: what a run changes is put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored_settings() -> Iterator[None]:
    """Afterwards CPU threads, TF32, cuDNN's search, current GPU and random states are as before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    threads = torch.get_num_threads()
    switches = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    # where nobody has used a GPU yet, asking it would take memory
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    current = torch.cuda.current_device() if gpus else 0
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        torch.set_num_threads(threads)
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = switches
        if torch.cuda.is_initialized():
            torch.cuda.set_device(current)
