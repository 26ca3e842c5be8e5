"""`python -m tests.stand_in.nodes [ARCH [BATCH]] [plain] [merged]`: a step of TRADES and ALP.

Prints a JSON object: nodes of its graph, gigabytes (read and written, each tensor of an operation
once), kinds (nodes by kernel) and moved (gigabytes by operation).
plain: without epilogues of twins; merged: the views of a step at once
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastcat.benchmarks.contestants import Ours, images, make_contestant
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


def contestant(engine: str, arch: str, batch: int, merged: bool) -> Ours:
    specs = list(parse_peers("trades,alp", arch))
    ours = make_contestant(f"bf16/{engine}", specs, batch, torch.device("cuda"), "cat")
    assert isinstance(ours, Ours)
    if merged:
        example = images(2, torch.device("cuda"))[0]
        ours.team.merge_views(example.contiguous(memory_format=torch.channels_last))
    return ours


def contents(arch: str, batch: int, merged: bool) -> dict[str, Any]:
    eager = contestant("eager", arch, batch, merged)
    eager.train()
    moved: Counter[str] = Counter()

    def add(name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
        moved[name] += gigabytes(reads) + gigabytes(writes)

    with launches_watched(add):
        eager.train()
    del eager
    graph = contestant("graph", arch, batch, merged)
    with counted() as launches:
        graph.train()
    kinds: Counter[str] = Counter()
    for name, count in launches.items():
        if name.startswith("capture:"):
            kinds[re.sub(r"<.*|\(.*", "", name.removeprefix("capture:"))[:80]] += count
    return {
        "arch": arch,
        "batch": batch,
        "merged": merged,
        "nodes": kinds.total(),
        "gigabytes": round(moved.total(), 2),
        "kinds": dict(kinds.most_common()),
        "moved": {name: round(size, 2) for name, size in moved.most_common(25)},
    }


if __name__ == "__main__":
    flags = {"plain", "merged"} & set(sys.argv)
    arch, batch = [*(word for word in sys.argv[1:] if word not in flags), "resnet18", "128"][:2]
    with numbers_unread(right="plain" not in flags):
        print(json.dumps(contents(arch, int(batch), "merged" in flags)))
