"""Comparing tensors to a tolerance, and states, which are tensors and plain values by name."""

from typing import Any

import torch
from torch import Tensor

# of docs/methods.md, relative to the largest magnitude in a tensor; see tests/step/test_parity.py
FLOAT64_TOLERANCE = 1e-11
FLOAT32_TOLERANCE = 5e-5
KL_TOLERANCE = 1e-9
# means of a few tensors in float64
SWA_TOLERANCE = 1e-12

# the largest relative error so far at each tolerance; tests/methods_page.py reads it test by test
LARGEST: dict[float, float] = {}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Both agree to `tolerance`, relative to the largest magnitude in `expected`."""
    assert actual.shape == expected.shape, what
    error = (actual.double() - expected).abs().max().item()
    size = expected.abs().max().item()
    assert error <= tolerance * size, f"{what} is off by {error:.3g}"
    LARGEST[tolerance] = max(LARGEST.get(tolerance, 0.0), error / size if error else 0.0)


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name
