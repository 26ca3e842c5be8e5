"""Peers side by side: each descends its own loss and is taught by nobody."""

from collections.abc import Sequence

from fastcat.collaboration.collaboration import Collaboration, Teachers, weighted
from fastcat.terms import Sum


def none(taught_on: Sequence[str], teachers: Teachers) -> Collaboration:
    del teachers
    return weighted([Sum()] * len(taught_on), 1.0)
