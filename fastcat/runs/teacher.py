"""A teacher from its weight file."""

import hashlib
import re

import numpy as np
import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.files import find_path
from fastcat.loaders.class_names import by_number
from fastcat.loaders.dataset import Dataset
from fastcat.step.peer import Teacher
from fastcat.weights.file import load_weights, outputs_of


class Reordered(nn.Module):
    """A network whose logits are put into another order of the classes."""

    order: Tensor

    def __init__(self, net: nn.Module, order: np.ndarray) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", torch.from_numpy(order))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).index_select(1, self.order)


def load_teacher(name: str, weights: str, arch: str | None, dataset: Dataset) -> Teacher:
    """The teacher of a .safetensors file, on the CPU.

    Where its classes are the data's in another order, its logits are put into the data's.
    name: of the member, as "1-teacher"
    weights: the file
    arch: the architecture that was typed for it, or None
    dataset: the data of the run

    Raises InputError for a file that cannot be read, or that holds another architecture, or other
    classes or channels than the data.
    """
    path = find_path(weights)
    model, info = load_weights(path)
    order = outputs_of(path, info, dataset)
    if len(order) < len(info.classes):
        raise InputError(
            f"{path} knows {len(info.classes)} classes, but {dataset.name} has {len(order)}: a "
            "teacher needs the very classes of the data"
        )
    if (order != np.arange(len(order))).any():
        model = Reordered(model, order)
    if arch not in (None, info.arch):
        raise InputError(f"{path} holds a {info.arch}, not a {arch}: leave @{arch} out")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    remarks = by_number(dataset.classes, dataset.name, info.classes, str(path))
    return Teacher(name, info.arch, model, str(path), digest, remarks)


def with_absolute_weights(text: str) -> str:
    """The peers' text with the weight files of teachers found from any directory.

    Raises InputError for a path that could not be read back from the text.
    """

    def absolute(match: re.Match[str]) -> str:
        path = str(find_path(match[0]).absolute())
        if set(path) & set(",:@"):
            raise InputError(f"teacher's weights {path}: expected a path without comma, : and @")
        return path

    return re.sub(r"(?<=\bteacher:weights=)[^,:@]+", absolute, text)
