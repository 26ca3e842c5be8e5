"""Signs of a collapse in the records of a run, in words."""

from collections.abc import Collection

from fastcat.report.records import EpochRecord


def new_signs(
    record: EpochRecord, former: EpochRecord | None, among: Collection[str] | None = None
) -> list[str]:
    """A line for each sign of an epoch that the epoch before it does not show.

    former: the epoch before. None: there is none
    among: names of the signs that count. None: all
    """
    lines = []
    for name, peer in record.peers.items():
        before = former.peers.get(name) if former else None
        for sign, sentence in peer.signs.items():
            if not (before and sign in before.signs) and (among is None or sign in among):
                lines.append(f"{name} in epoch {record.epoch}: {sign}: {sentence}")
    return lines
