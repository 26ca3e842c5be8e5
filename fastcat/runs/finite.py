"""What a run must not go on from: a loss or a weight that is NaN or infinite."""

import math
from collections.abc import Iterable

import torch

from fastcat.step.peer import Peer


def broken_loss(means: dict[str, float]) -> str | None:
    """The first term among `means`, by "peer/term", that is not finite, in words."""
    for name, value in means.items():
        if not math.isfinite(value):
            peer_name, term = name.split("/", 1)
            return f"term {term!r} of peer {peer_name} became {value}"
    return None


def broken_weight(peers: Iterable[Peer]) -> str | None:
    """The first weight or statistic that is not finite, in words; it waits for the device."""
    for peer in peers:
        state = peer.model.state_dict()
        finite = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
        if not all(finite):
            weight = list(state)[finite.index(False)]
            return f"weight {weight!r} of peer {peer.name} is no longer finite"
    return None
