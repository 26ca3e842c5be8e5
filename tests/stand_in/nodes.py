"""`python -m tests.stand_in.nodes [ARCH [BATCH [plain]]]`: the graph of a step of TRADES and ALP.

Prints a JSON object: nodes, gigabytes (read and written, each tensor of an operation once), kinds
(nodes by kernel) and moved (gigabytes by operation). plain: without epilogues of twins
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastcat.benchmarks.contestants import make_contestant
from fastcat.config.peers import parse_peers
from tests.stand_in.races import launches_watched
from tests.stand_in.stand_in import counted, numbers_unread


def gigabytes(tensors: Iterable[Tensor]) -> float:
    """What a pass over the tensors moves; of expanded ones what is there."""
    sizes = (
        tensor.element_size()
        * torch.Size(
            n if stride else 1 for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
        ).numel()
        for tensor in tensors
    )
    return sum(sizes) / 1e9


def contents(arch: str, batch: int) -> dict[str, Any]:
    device = torch.device("cuda")
    specs = list(parse_peers("trades,alp", arch))
    eager = make_contestant("bf16/eager", specs, batch, device, "cat")
    eager.train()
    moved: Counter[str] = Counter()

    def add(name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        moved[name] += gigabytes(reads) + gigabytes(writes)

    with launches_watched(add):
        eager.train()
    del eager
    graph = make_contestant("bf16/graph", specs, batch, device, "cat")
    with counted() as launches:
        graph.train()
    kinds: Counter[str] = Counter()
    for name, count in launches.items():
        if name.startswith("capture:"):
            kinds[re.sub(r"<.*|\(.*", "", name.removeprefix("capture:"))[:80]] += count
    return {
        "arch": arch,
        "batch": batch,
        "nodes": kinds.total(),
        "gigabytes": round(moved.total(), 2),
        "kinds": dict(kinds.most_common()),
        "moved": {name: round(size, 2) for name, size in moved.most_common(25)},
    }


if __name__ == "__main__":
    arch = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    with numbers_unread(epilogues="plain" not in sys.argv):
        print(json.dumps(contents(arch, batch), indent=1))
