"""Read from arrays or memory maps, uploaded while the device works."""

from pathlib import Path

import torch

from ..dataset import Dataset
from ..loader import Sampling
from ..readers import array_reader
from ..streamed import StreamedLoader


def stream(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    data_dir: Path,
    workers: int | None,
) -> StreamedLoader:
    split = getattr(dataset, part)
    return StreamedLoader(split, sampling, device, array_reader(split))
