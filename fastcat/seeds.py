"""Random numbers by place: a stream's seed depends on the run's seed, its name and its numbers."""

import hashlib


def derive_seed(seed: int, stream: str, *place: int) -> int:
    """A 63-bit seed, for example of stream "attack" at step 17; streams do not overlap."""
    key = ":".join([str(seed), stream, *map(str, place)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
