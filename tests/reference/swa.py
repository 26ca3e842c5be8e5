"""BatchNorm statistics of tests.harness.tiny.Tiny, layer by layer, as a mean over images."""

import torch
from torch import Tensor

from tests.harness.tiny import Tiny


def statistics(net: Tiny, batches: list[Tensor]) -> dict[str, Tensor]:
    """Running means and variances of both BatchNorms, by name, each batch by its images."""
    found: dict[str, list[Tensor]] = {}

    def normalize(name: str, x: Tensor) -> Tensor:
        count = x.numel() // x.shape[1]
        mean = x.mean((0, 2, 3))
        squares = ((x - mean[:, None, None]) ** 2).sum((0, 2, 3))
        found.setdefault(f"{name}.running_mean", []).append(mean)
        found.setdefault(f"{name}.running_var", []).append(squares / (count - 1))
        norm = net.get_submodule(name)
        scale = norm.weight / (squares / count + norm.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    with torch.no_grad():
        for x in batches:
            out = normalize("bn1", net.conv1(x)).relu()
            normalize("bn2", net.conv2(out))
    sizes = torch.tensor([len(x) for x in batches], dtype=batches[0].dtype)
    share = (sizes / sizes.sum())[:, None]
    return {name: (share * torch.stack(values)).sum(0) for name, values in found.items()}
