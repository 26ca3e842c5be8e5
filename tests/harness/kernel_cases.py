"""Arguments for every op: what the tests on the CPU, under the interpreter and on a GPU run on.

What an op writes completely arrives full of NaN. Values come from fixed seeds, on the CPU, so that
all three see the same.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcat.kernels import (
    affine_relu,
    attack_logit_grad,
    augment,
    batch_norm,
    epilogue,
    fused_sgd,
    multi_peer_loss,
    pgd_update,
)
from fastcat.kernels._op import Op


class Case(NamedTuple):
    """exact: the kernel rounds as the reference does, so that both agree in every bit.

    typical: of a training's memory layout and block sizes; compiled ahead of time.
    """

    name: str
    op: Op
    args: tuple[Any, ...]
    exact: bool = False
    typical: bool = False


def laid_out(value: Tensor, layout: str) -> Tensor:
    """The same values [..., C, H, W] in memory order nchw, channels_last, or its slice of more."""
    if layout == "nchw":
        return value.contiguous()
    last = value.movedim(-3, -1)
    if layout == "sliced":
        return torch.nn.functional.pad(last, (1, 2)).contiguous()[..., 1:-2].movedim(-1, -3)
    return last.contiguous().movedim(-1, -3)


def poisoned(value: Tensor) -> Tensor:
    return torch.full_like(value, float("nan"))


# norm, eps, step size, sparsity, box_first; steps and radii that some images reach, others do not
BALLS = {
    "linf": ("linf", 8 / 255, 2 / 255, 20, False),
    "l2": ("l2", 0.5, 0.2, 20, False),
    "l2_box_first": ("l2", 0.5, 0.2, 20, True),
    "l1": ("l1", 3.0, 1.5, 5, False),
}


# what a gradient of an image may be, dealt out to the cases' images in turn
GRADIENTS = ["ties", "random", "tiny", "zero", "adjacent", "nan", "infinite", "sparse"]


def gradient(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """[size], with the property that gives it its name."""
    grad = torch.randn(size, generator=generator)
    if kind == "ties":
        grad[::3], grad[1::4] = 0, 2
    if kind == "tiny":
        grad *= 1e-6
    if kind == "zero":
        grad *= 0
    if kind == "adjacent":  # apart by one bit in float32
        grad[:20] = 8 + torch.arange(20)[:size] * 2**-20
    if kind == "nan":
        grad[3:20] = float("nan")
    if kind == "infinite":
        grad[5:6], grad[6:7] = float("inf"), -float("inf")
    if kind == "sparse":
        grad[4:] = 0
    return grad


def pgd_update_cases(dtype: torch.dtype) -> Iterator[Case]:
    # K, B, C, H, W, layouts of x and x_adv, of low and grad
    shapes = [
        (1, 2, 3, 32, 32, "channels_last", "channels_last"),
        (2, 3, 3, 7, 5, "channels_last", "sliced"),
        (3, 1, 1, 28, 29, "nchw", "nchw"),
        (2, 2, 3, 41, 40, "sliced", "nchw"),
        (1, 1, 1, 1, 1, "channels_last", "nchw"),
        (1, 1, 3, 96, 96, "channels_last", "channels_last"),
    ]
    for seed, (*shape, layout, other_layout) in enumerate(shapes):
        for ball, settings in BALLS.items():
            generator = torch.Generator().manual_seed(seed)
            x = torch.rand(shape[1:], generator=generator)
            # with pixels at the box, where an attack may not move at all, and without
            x = (1.2 * x - 0.1).clamp(0, 1) if seed % 2 else 0.2 + 0.6 * x
            x_adv = (x + 0.01 * torch.randn(shape, generator=generator)).clamp(0, 1)
            images = shape[0] * shape[1]
            kinds = [GRADIENTS[(2 * seed + i) % len(GRADIENTS)] for i in range(images)]
            size = x[0].numel()
            grad = torch.stack([gradient(kind, size, generator) for kind in kinds]).view(shape)
            low = poisoned(x_adv).to(dtype)
            args = (
                laid_out(x_adv, layout),
                None if dtype == torch.float32 else laid_out(low, other_layout),
                laid_out(x, layout),
                laid_out(grad.to(dtype), other_layout),
                *settings,
            )
            name = f"{ball}-{'x'.join(map(str, shape))}-{layout}-{other_layout}"
            yield Case(name, pgd_update.OP, args, exact=ball == "linf", typical=seed == 0)


def augment_draws(
    count: int, images: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Draws [10, count] of everything: shifts beyond the image, windows that are empty, holes."""

    def between(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    edges = [between(0, side) for side in (height, height, width, width)]
    top, bottom = torch.stack(edges[:2]).sort(0).values
    left, right = torch.stack(edges[2:]).sort(0).values
    whole = between(0, 3) > 0
    return torch.stack(
        [
            between(0, images - 1),
            between(-2, 2),
            between(-4, 4),
            between(0, 1),
            top.where(~whole, 0),
            bottom.where(~whole, height),
            left.where(~whole, 0),
            right.where(~whole, width),
            between(-3, height),
            between(-3, width),
        ]
    )


def augment_cases(dtype: torch.dtype) -> Iterator[Case]:
    for seed, (batch, height, width, channels, hole, reflect) in enumerate(
        [
            (5, 32, 32, 3, 8, False),
            (7, 9, 5, 1, 2, True),
            (3, 27, 41, 3, 0, False),
            (4, 3, 2, 3, 5, False),
            (5, 32, 32, 3, 0, False),
            (5, 32, 32, 3, 0, True),
        ]
    ):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(
            0, 256, (11, height, width, channels), dtype=torch.uint8, generator=generator
        )
        # of one's own data set, which may come as floats
        floats = seed == 4
        pixels = images / 255 if floats else images
        draws = augment_draws(2 * batch, len(images), height, width, generator)
        out = laid_out(torch.full((batch, channels, height, width), float("nan")), "channels_last")
        # a batch is a slice of an epoch's draws
        args = (out, pixels, draws[:, 1 : batch + 1], hole, reflect)
        kind = "reflect" if reflect else "float" if floats else "uint8"
        name = f"{batch}x{height}x{width}x{channels}-hole{hole}-{kind}"
        yield Case(name, augment.OP, args, exact=True, typical=seed in (0, 5))


def fused_sgd_cases(dtype: torch.dtype) -> Iterator[Case]:
    def scalar(value: float) -> Tensor:
        return torch.tensor(value)

    for seed, (size, nesterov, scale, found_inf, ema, low) in enumerate(
        [
            (3001, False, 1024.0, 0.0, True, True),
            (1024, True, None, None, True, False),
            (1, False, None, None, False, False),
            (777, True, 3.0, 0.0, False, True),
            (513, True, 2.0, 1.0, True, True),
        ]
    ):
        generator = torch.Generator().manual_seed(seed)
        param, buffer, average = torch.randn((3, size), generator=generator)
        grad = torch.randn(size, generator=generator).to(dtype)
        # where nothing may change it is not written
        copy = (param if found_inf else poisoned(param)).to(dtype)
        args = (
            param.clone(),
            grad,
            buffer.clone(),
            scalar(0.1),
            5e-4,
            scalar(0.9),
            nesterov,
            None if scale is None else scalar(scale),
            None if found_inf is None else scalar(found_inf),
            average.clone() if ema else None,
            torch.tensor([0.99, 0.01]) if ema else None,
            copy if low else None,
        )
        named = {"nesterov": nesterov, "scaled": scale, "found_inf": found_inf, "ema": ema}
        name = "-".join([str(size), *(key for key, value in named.items() if value)])
        yield Case(name, fused_sgd.OP, args, typical=seed == 0)


def affine_relu_cases(dtype: torch.dtype) -> Iterator[Case]:
    for seed, (batch, channels, height, width, layout) in enumerate(
        [
            (2, 640, 8, 8, "channels_last"),
            (3, 67, 5, 3, "sliced"),
            (1, 1, 9, 7, "nchw"),
            (2, 16, 7, 41, "nchw"),
        ]
    ):
        generator = torch.Generator().manual_seed(seed)
        x, dy = torch.randn((2, batch, channels, height, width), generator=generator).to(dtype)
        scale, shift = torch.randn((2, channels), generator=generator).to(dtype)
        # a whole tile of zeros: neither y nor its gradient may come out as -0 or NaN
        x[0, 0], shift[0] = 0, 0
        name = f"{batch}x{channels}x{height}x{width}-{layout}"
        x = laid_out(x, layout)
        yield Case(name, affine_relu.OP, (x, scale, shift), typical=seed == 0)
        y = laid_out(affine_relu.affine_relu_reference(x, scale, shift), layout)
        dy = laid_out(dy, "channels_last")
        yield Case(name, affine_relu.BACKWARD, (dy, y, scale), typical=seed == 0)


def epilogue_cases(dtype: torch.dtype) -> Iterator[Case]:
    for seed, (batch, channels, height, width, layout, *parts) in enumerate(
        [
            (2, 64, 32, 32, "channels_last", "residual", "residual_bias"),
            (2, 64, 32, 32, "channels_last"),
            (3, 67, 5, 3, "sliced", "residual"),
            (1, 1, 9, 7, "nchw", "residual", "residual_bias"),
            (2, 16, 7, 41, "nchw"),
            (2, 160, 1, 1, "channels_last", "residual", "no_bias"),
        ]
    ):
        generator = torch.Generator().manual_seed(seed)
        shape = (4, batch, channels, height, width)
        conv, residual, grad, other = torch.randn(shape, generator=generator).to(dtype)
        bias, residual_bias = torch.randn((2, channels), generator=generator).to(dtype)
        # zeros: neither they nor their gradients may come out as -0 or NaN
        conv[0, 0] = residual[0, 0] = 0
        bias[0] = residual_bias[0] = 0
        name = "-".join([f"{batch}x{channels}x{height}x{width}", layout, *parts])
        conv, other_layout = laid_out(conv, layout), "nchw" if seed % 2 else "channels_last"
        args = (
            conv,
            None if "no_bias" in parts else bias,
            laid_out(residual, other_layout) if "residual" in parts else None,
            residual_bias if "residual_bias" in parts else None,
        )
        yield Case(name, epilogue.EPILOGUE, args, typical=seed < 2)
        grads = (laid_out(grad, other_layout), laid_out(other, layout) if parts else None)
        yield Case(name, epilogue.MASKED_SUM, (conv.relu(), *grads), typical=seed < 2)


def batch_norm_cases(dtype: torch.dtype) -> Iterator[Case]:
    # groups, images of each, C, H, W, layout; several parts, a part that is not full, one pixel
    shapes = [
        (2, 6, 64, 8, 8, "channels_last", "alone", "relu", "residual"),
        (3, 2, 67, 5, 3, "sliced", "residual"),
        (1, 2, 3, 9, 7, "nchw", "relu"),
        (2, 3, 160, 1, 1, "channels_last", "residual"),
    ]
    for seed, (groups, images, channels, height, width, layout, *kinds) in enumerate(shapes):
        for kind in kinds:
            generator = torch.Generator().manual_seed(seed)
            shape = (4, groups * images, channels, height, width)
            x, residual, dy, other_dy = torch.randn(shape, generator=generator).to(dtype)
            # a mean far from 0, next to which the spread is small
            x += torch.linspace(-30, 30, channels)[:, None, None].to(dtype)
            weight, bias, running_mean = torch.randn((3, channels), generator=generator)
            running_var = 0.5 + torch.rand(channels, generator=generator)
            relu, has_residual = kind != "alone", kind == "residual"
            x, other_layout = laid_out(x, layout), "nchw" if seed % 2 else "channels_last"
            residual = laid_out(residual, other_layout) if has_residual else None
            args = (
                x, weight, bias, running_mean, running_var, torch.tensor(7), residual,
                0.1, 1e-5, groups, relu, seed != 2,
            )  # fmt: skip
            name = f"{kind}-{groups}x{images}x{channels}x{height}x{width}-{layout}"
            yield Case(name, batch_norm.BATCH_NORM, args, typical=seed == 0)
            spare = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
            y, mean, inverse = batch_norm.batch_norm_reference(*spare)
            two = has_residual or seed % 2 == 1
            backward_args = (
                laid_out(dy, other_layout), laid_out(other_dy, layout) if two else None, x,
                y if has_residual else None, weight, bias, mean, inverse, relu, has_residual,
            )  # fmt: skip
            yield Case(name, batch_norm.BACKWARD, backward_args, typical=seed == 0)


def logit_cases(dtype: torch.dtype) -> Iterator[Case]:
    """A few for the ops on logits, which tests/harness/logit_cases.py tries harder."""
    codes = attack_logit_grad.KINDS
    sizes = [(2, 128, 10), (2, 16, 100), (2, 16, 1000), (5, 33, 101)]
    for seed, (peers, batch, classes) in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed)
        z, clean = torch.randn((2, peers, batch, classes), generator=generator)
        y = torch.randint(0, classes, (batch,), generator=generator)
        name = f"{peers}x{batch}x{classes}"
        kinds = [codes[kind] for kind in ("ce", "kl", "boosted_ce", "margin", "dlr")][:peers]
        args = (z.to(dtype), y, clean, kinds, 0.5)
        typical = batch % 16 == 0
        yield Case(name, attack_logit_grad.OP, args, typical=typical)
        terms = [
            [codes["ce"], 0, -1, -1, 1],
            [codes["uniform_ce"], 1, -1, -1, 1],
            [codes["mart_kl"], 1, 0, -1, 1],
            [codes["kl"], 0, 1, 1, 1],
            [codes["kl"], 1, 0, 1, 30],
        ]
        upstream = torch.rand((len(terms), batch), generator=generator)
        loss_args = (z.to(dtype), y, torch.tensor(terms, dtype=torch.float32), upstream)
        yield Case(name, multi_peer_loss.OP, loss_args, typical=typical)


MAKERS: list[Callable[[torch.dtype], Iterator[Case]]] = [
    pgd_update_cases,
    augment_cases,
    fused_sgd_cases,
    affine_relu_cases,
    epilogue_cases,
    batch_norm_cases,
    logit_cases,
]


def cases(*dtypes: torch.dtype) -> dict[str, Case]:
    """Every case of every op in each dtype, by a readable name."""
    return {
        f"{case.op.name}-{case.name}-{str(dtype).removeprefix('torch.')}": case
        for dtype in dtypes
        for make in MAKERS
        for case in make(dtype)
    }
