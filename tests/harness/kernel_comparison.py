"""Is a kernel right? Its error is measured against what plain torch loses in the same dtype."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcat.kernels._op import Op

# elements around each argument, and what they hold: a kernel must not write there
MARGIN, MARK = 4096, 99


def guarded(value: Any, wide: bool = False) -> Any:
    """A copy of a tensor, same memory layout, within marked memory; floats in float64 if wide."""
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float64 if wide and value.is_floating_point() else value.dtype
    extent = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    memory = torch.full((extent + 2 * MARGIN,), MARK, dtype=dtype, device=value.device)
    return memory.as_strided(value.shape, value.stride(), MARGIN).copy_(value)


def guards_hold(tensor: Tensor) -> bool:
    memory = tensor._base.clone()
    memory.as_strided(tensor.shape, tensor.stride(), MARGIN).fill_(MARK)
    return bool((memory == MARK).all())


def results(op: Op, function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Tensor]:
    """What function returns and what it leaves in the arguments that op mutates, by name.

    Memory that torch allocates meanwhile starts as NaN, so that an output left unwritten shows.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        returned = function(*args)
    finally:
        torch.use_deterministic_algorithms(False)
    outputs = (returned,) if isinstance(returned, Tensor) else returned or ()
    named = zip(inspect.signature(op.reference).parameters, args, strict=True)
    mutated = {name: arg for name, arg in named if name in op.mutates and arg is not None}
    return mutated | {f"output {i}": output for i, output in enumerate(outputs)}


def check(op: Op, args: tuple[Any, ...], exact: bool = False) -> None:
    """Hold op.fused to the reference in float64; it may err about twice as much as plain torch.

    exact: it must also equal plain torch in every bit.
    """
    fused_args = tuple(map(guarded, args))
    fused = results(op, op.fused, fused_args)
    plain = results(op, op.reference, tuple(map(guarded, args)))
    gold = results(op, op.reference, tuple(guarded(arg, wide=True) for arg in args))
    assert fused.keys() == plain.keys() == gold.keys()
    for name, value in gold.items():
        assert fused[name].dtype == plain[name].dtype, name
        assert fused[name].stride() == plain[name].stride(), name
        if not value.numel():
            continue
        plain_error = (plain[name].double() - value).abs().max().item()
        error = (fused[name].double() - value).abs().max().item()
        bound = 2 * plain_error + 8 * 2**-24 * max(1.0, value.abs().max().item())
        # NaN compares as false
        assert error <= bound, f"{name}: off by {error:.3g}, plain torch by {plain_error:.3g}"
        assert not exact or torch.equal(fused[name], plain[name]), f"{name}: not equal in every bit"
    names = inspect.signature(op.reference).parameters
    for name, before, after in zip(names, args, fused_args, strict=True):
        if isinstance(before, Tensor):
            assert guards_hold(after), f"{name}: written outside its elements"
            untouched = name in fused or torch.equal(before.nan_to_num(), after.nan_to_num())
            assert untouched, f"{name}: changed in secret"
