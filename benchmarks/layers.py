"""What the convolutions of a network reach by themselves: the roof under which a step runs.

Each distinct convolution is timed alone, forward, backward to the input and backward to the
weights, on random numbers, channels-last; beside it the rates of a plain matrix product and of a
copy. Added up over a network they are the time that no fusion can take away.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.attacks.modes import attack_mode
from fastcat.benchmarks.measure import best_milliseconds
from fastcat.models import make_model
from fastcat.precision import DTYPES

PASSES = ("forward", "backward_input", "backward_weight")


def shapes_of(arch: str, side: int) -> Counter[tuple[Any, ...]]:
    """How often each (in, out, kernel, stride, padding, side) stands in a network."""
    model, found = make_model(arch, 10, 3), Counter[tuple[Any, ...]]()

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found[
            module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0],
            module.padding[0], args[0].shape[-1],
        ] += 1  # fmt: skip

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad(), attack_mode(model, "eval"):
        model(torch.zeros(1, 3, side, side))
    return found


def measure_layers(
    arch: str,
    precision: str,
    batch: int,
    device: torch.device,
    side: int = 32,
) -> list[dict[str, Any]]:
    """A row for each distinct convolution and pass: time, rate and FLOPs a byte moved.

    On a GPU inside a graph, as launching one takes the host longer than some take.
    """
    dtype, rows = DTYPES[precision], []
    for shape, count in shapes_of(arch, side).items():
        channels, out_channels, kernel, stride, padding, size = shape
        x, weight = (
            torch.randn(dims, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
            for dims in ((batch, channels, size, size), (out_channels, channels, kernel, kernel))
        )
        y = torch.nn.functional.conv2d(x, weight, None, stride, padding)
        grad = torch.randn_like(y)

        def backward(x: Tensor, weight: Tensor, grad: Tensor, *mask: bool, stride: int = stride,
                     padding: int = padding) -> object:  # fmt: skip
            return torch.ops.aten.convolution_backward(
                grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, mask
            )

        def forward(x: Tensor, weight: Tensor, grad: Tensor, stride: int = stride,
                    padding: int = padding) -> object:  # fmt: skip
            return torch.nn.functional.conv2d(x, weight, None, stride, padding)

        passes: dict[str, Callable[..., object]] = {
            "forward": forward,
            "backward_input": lambda *args, run=backward: run(*args, True, False, False),
            "backward_weight": lambda *args, run=backward: run(*args, False, True, False),
        }
        flop = 2 * y.numel() * channels * kernel**2
        moved = (x.numel() + weight.numel() + y.numel()) * x.element_size()
        for name, function in passes.items():
            ms = best_milliseconds(function, x, weight, grad, calls=20 if x.is_cuda else 3)
            rows.append(
                {
                    "arch": arch, "precision": precision, "batch_size": batch, "count": count,
                    "shape": list(shape), "pass": name, "ms": ms, "tflops": flop / ms / 1e9,
                    "flop_per_byte": flop / moved,
                }
            )  # fmt: skip
    return rows


def step_floor(rows: list[dict[str, Any]], forwards: int, backwards: int, graded: int) -> float:
    """Milliseconds of the convolutions alone: so many forwards, backwards to the input and to the
    weights of the network, each at the rate that its layers reach by themselves.
    """
    times = dict(zip(PASSES, (forwards, backwards, graded), strict=True))
    return sum(times[row["pass"]] * row["count"] * row["ms"] for row in rows)
