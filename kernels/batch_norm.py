"""BatchNorm in training, its residual and its ReLU, for several batches at once.

Of G batches that lie one after the other each is normalised by its own statistics, for n = B H W
values of a channel:

    mean = E[x]    var = E[(x - mean)^2]    h = (x - mean) / sqrt(var + eps)
    y  = relu(w h + b + residual)

    g  = (dy_1 + dy_2) (y > 0)
    dx = w / sqrt(var + eps) (g - E[g] - h E[g h])    dresidual = g    db = sum g    dw = sum g h

with dy_i from each that reads y, and sums over all batches. Running statistics move batch by batch,
as in G forwards: r <- (1 - m) r + m mean, and with n / (n - 1) var.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithm 1. Two passes over x forward and two
backward, where torch's operations take up to five each.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton

# programs that share the work, several for each multiprocessor of a large GPU
PROGRAMS = 512


def batch_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    groups: int,
    relu: bool,
    track: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y like x, and the batches' mean and 1 / sqrt(var + eps), both [G, C]: the specification.

    x: [G B, C, H, W] of any float type; y is laid out channels-last
    weight, bias, running_mean, running_var: [C], float32
    tracked: int64, how many batches the running statistics have seen
    residual: like x, or None for 0
    momentum: m
    groups: G
    track: whether running statistics move
    """
    values = x.to(weight.dtype).unflatten(0, (groups, -1))
    var, mean = torch.var_mean(values, (1, 3, 4), correction=0)
    inverse = (var + eps).rsqrt()
    if track:
        count = values[0, :, 0].numel()
        for group in range(groups):
            running_mean.lerp_(mean[group], momentum)
            running_var.lerp_(var[group] * (count / (count - 1)), momentum)
        tracked += groups
    y = _normalised(values, mean, inverse).flatten(0, 1) * weight[:, None, None]
    y = y + bias[:, None, None]
    if residual is not None:
        y = y + residual
    y = y.relu() if relu else y
    return _channels_last(y.to(x.dtype)), mean, inverse


def batch_norm_backward_reference(
    dy: Tensor,
    other_dy: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and g like x, and dw and db [C]: the specification.

    y: of the forward. None: there was no residual, and it is computed again
    keep: whether g is wanted; it is empty otherwise
    """
    groups = len(mean)
    h = _normalised(x.to(weight.dtype).unflatten(0, (groups, -1)), mean, inverse)
    g = dy.to(weight.dtype) if other_dy is None else dy.to(weight.dtype) + other_dy
    if relu:
        again = h.flatten(0, 1) * weight[:, None, None] + bias[:, None, None]
        g = torch.where((again if y is None else y) <= 0, 0, g)
    if keep:
        g = g.to(x.dtype).to(weight.dtype)
    parts = g.unflatten(0, (groups, -1))
    sums, products = parts.sum((1, 3, 4)), (parts * h).sum((1, 3, 4))
    count = parts[0, :, 0].numel()
    middle = _for_pixels(sums / count) + h * _for_pixels(products / count)
    dx = ((parts - middle) * _for_pixels(inverse * weight)).flatten(0, 1)
    kept = _channels_last(g.to(x.dtype)) if keep else x.new_empty(0)
    return _channels_last(dx.to(x.dtype)), kept, products.sum(0), sums.sum(0)


def _channels_last(x: Tensor) -> Tensor:
    """A copy that lies channels-last, also where one channel or pixel leaves that open."""
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


def _for_pixels(statistic: Tensor) -> Tensor:
    """[G, 1, C, 1, 1] of [G, C]."""
    return statistic[:, None, :, None, None]


def _normalised(values: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    return (values - _for_pixels(mean)) * _for_pixels(inverse)


@triton.jit
def _sums(partial_ptr, group, groups, parts, o_c, channels, here):
    """Both sums of a batch [BLOCK_C], from those of its parts, in order."""
    first = tl.zeros(o_c.shape, tl.float32)
    second = tl.zeros(o_c.shape, tl.float32)
    for part in range(parts):
        place = partial_ptr + (group * parts + part) * channels + o_c
        first += tl.load(place, mask=here, other=0.0)
        second += tl.load(place + groups * parts * channels, mask=here, other=0.0)
    return first, second


@triton.jit
def _merged(count, mean, squares, more, more_mean, more_squares):
    """Count, mean and sum of squared deviations of two samples together (Chan et al. 1979)."""
    total = count + more
    delta = more_mean - mean
    share = more / total
    return total, mean + delta * share, squares + more_squares + delta * delta * (count * share)


@triton.jit
def _statistics_kernel(
    x_ptr,  # [groups, rows, channels], as in the kernels below
    partial_ptr,  # [2, groups, parts, channels]
    rows,
    channels,
    part_rows,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations of each part of the rows, from which the batch's first row
    is subtracted lest digits cancel.
    """
    part, group, parts, groups = (
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(0),
        tl.num_programs(1),
    )
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    x_ptr += group.to(tl.int64) * rows * channels
    first = tl.load(x_ptr + o_c, mask=o_c < channels, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros([BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_C], tl.float32)
    end = min(rows, (part + 1) * part_rows)
    for begin in range(part * part_rows, end, BLOCK_R):
        o_r = begin + tl.arange(0, BLOCK_R)
        here = (o_r < end)[:, None] & (o_c < channels)[None, :]
        place = o_r.to(tl.int64)[:, None] * channels + o_c[None, :]
        value = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)
        value = tl.where(here, value - first[None, :], 0.0)
        size = (min(end, begin + BLOCK_R) - begin).to(tl.float32)
        centre = tl.sum(value, 0) / size
        deviation = tl.where(here, value - centre[None, :], 0.0)
        spread = tl.sum(deviation * deviation, 0)
        count, mean, squares = _merged(count, mean, squares, size, centre, spread)
    out = partial_ptr + (group * parts + part) * channels + o_c
    tl.store(out, mean, mask=o_c < channels)
    tl.store(out + groups * parts * channels, squares, mask=o_c < channels)


@triton.jit
def _moments(x_ptr, partial_ptr, group, groups, parts, rows, part_rows, o_c, channels, here):
    """Mean and variance of a batch [BLOCK_C], from those of its parts, in order."""
    count = 0.0
    mean = tl.zeros(o_c.shape, tl.float32)
    squares = tl.zeros(o_c.shape, tl.float32)
    for part in range(parts):
        place = partial_ptr + (group * parts + part) * channels + o_c
        size = (min(rows, (part + 1) * part_rows) - part * part_rows).to(tl.float32)
        part_mean = tl.load(place, mask=here, other=0.0)
        part_squares = tl.load(place + groups * parts * channels, mask=here, other=0.0)
        count, mean, squares = _merged(count, mean, squares, size, part_mean, part_squares)
    first = tl.load(x_ptr + group.to(tl.int64) * rows * channels + o_c, mask=here, other=0.0)
    return first.to(tl.float32) + mean, squares / count


@triton.jit
def _normalise_kernel(
    x_ptr,
    residual_ptr,  # or None
    y_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,  # [groups, channels]
    inverse_ptr,
    running_mean_ptr,
    running_var_ptr,
    tracked_ptr,
    momentum,
    eps,
    rows,
    channels,
    part_rows,
    RELU: tl.constexpr,
    TRACK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    part, group, parts, groups = (
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(0),
        tl.num_programs(1),
    )
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = o_c < channels
    mean, var = _moments(
        x_ptr, partial_ptr, group, groups, parts, rows, part_rows, o_c, channels, exists
    )
    # not tl.rsqrt, which is approximate
    inverse = 1.0 / tl.sqrt_rn(var + eps)
    if part == 0:
        tl.store(mean_ptr + group * channels + o_c, mean, mask=exists)
        tl.store(inverse_ptr + group * channels + o_c, inverse, mask=exists)
    if TRACK and part + group == 0:
        running_mean = tl.load(running_mean_ptr + o_c, mask=exists)
        running_var = tl.load(running_var_ptr + o_c, mask=exists)
        for other in range(groups):
            seen, spread = _moments(
                x_ptr,
                partial_ptr,
                group + other,
                groups,
                parts,
                rows,
                part_rows,
                o_c,
                channels,
                exists,
            )
            running_mean += momentum * (seen - running_mean)
            running_var += momentum * (spread * (rows / (rows - 1.0)) - running_var)
        tl.store(running_mean_ptr + o_c, running_mean, mask=exists)
        tl.store(running_var_ptr + o_c, running_var, mask=exists)
        if tl.program_id(2) == 0:
            tl.store(tracked_ptr, tl.load(tracked_ptr) + groups)
    scale = inverse * tl.load(weight_ptr + o_c, mask=exists, other=0.0)
    shift = tl.load(bias_ptr + o_c, mask=exists, other=0.0)
    batch = group.to(tl.int64) * rows * channels
    end = min(rows, (part + 1) * part_rows)
    for begin in range(part * part_rows, end, BLOCK_R):
        o_r = begin + tl.arange(0, BLOCK_R)
        here = (o_r < end)[:, None] & exists[None, :]
        place = batch + o_r.to(tl.int64)[:, None] * channels + o_c[None, :]
        value = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        if residual_ptr is not None:
            value += tl.load(residual_ptr + place, mask=here, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value < 0, 0.0, value)
        tl.store(y_ptr + place, value.to(y_ptr.dtype.element_ty), mask=here)


@triton.jit
def _reduce_kernel(
    dy_ptr,
    other_dy_ptr,  # or None
    x_ptr,
    y_ptr,  # None: it is computed again
    g_ptr,  # None: g is not kept
    partial_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    inverse_ptr,
    rows,
    channels,
    part_rows,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g and of g h of a part of the rows."""
    part, group, parts, groups = (
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(0),
        tl.num_programs(1),
    )
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = o_c < channels
    mean = tl.load(mean_ptr + group * channels + o_c, mask=exists, other=0.0)
    inverse = tl.load(inverse_ptr + group * channels + o_c, mask=exists, other=0.0)
    weight = tl.load(weight_ptr + o_c, mask=exists, other=0.0)
    bias = tl.load(bias_ptr + o_c, mask=exists, other=0.0)
    first = tl.zeros([BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_C], tl.float32)
    batch = group.to(tl.int64) * rows * channels
    end = min(rows, (part + 1) * part_rows)
    for begin in range(part * part_rows, end, BLOCK_R):
        o_r = begin + tl.arange(0, BLOCK_R)
        here = (o_r < end)[:, None] & exists[None, :]
        place = batch + o_r.to(tl.int64)[:, None] * channels + o_c[None, :]
        value = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)
        g = tl.load(dy_ptr + place, mask=here, other=0.0).to(tl.float32)
        if other_dy_ptr is not None:
            g += tl.load(other_dy_ptr + place, mask=here, other=0.0).to(tl.float32)
        centred = value - mean[None, :]
        if RELU:
            if y_ptr is None:
                y = centred * (inverse * weight)[None, :] + bias[None, :]
            else:
                y = tl.load(y_ptr + place, mask=here, other=0.0).to(tl.float32)
            g = tl.where(y <= 0, 0.0, g)
        if g_ptr is not None:
            tl.store(g_ptr + place, g.to(g_ptr.dtype.element_ty), mask=here)
        g = tl.where(here, g, 0.0)
        first += tl.sum(g, 0)
        second += tl.sum(g * (centred * inverse[None, :]), 0)
    out = partial_ptr + (group * parts + part) * channels + o_c
    tl.store(out, first, mask=exists)
    tl.store(out + groups * parts * channels, second, mask=exists)


@triton.jit
def _gradient_kernel(
    g_ptr,  # None: it is computed again from dy
    dy_ptr,
    other_dy_ptr,  # or None
    x_ptr,
    y_ptr,  # or None
    dx_ptr,
    partial_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    inverse_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    channels,
    part_rows,
    RELU: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    part, group, parts, groups = (
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(0),
        tl.num_programs(1),
    )
    o_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = o_c < channels
    sums, products = _sums(partial_ptr, group, groups, parts, o_c, channels, exists)
    if part + group == 0:
        dweight = tl.zeros([BLOCK_C], tl.float32)
        dbias = tl.zeros([BLOCK_C], tl.float32)
        for other in range(groups):
            more, more_products = _sums(
                partial_ptr, group + other, groups, parts, o_c, channels, exists
            )
            dbias += more
            dweight += more_products
        tl.store(dweight_ptr + o_c, dweight, mask=exists)
        tl.store(dbias_ptr + o_c, dbias, mask=exists)
    mean = tl.load(mean_ptr + group * channels + o_c, mask=exists, other=0.0)
    inverse = tl.load(inverse_ptr + group * channels + o_c, mask=exists, other=0.0)
    weight = tl.load(weight_ptr + o_c, mask=exists, other=0.0)
    bias = tl.load(bias_ptr + o_c, mask=exists, other=0.0)
    batch = group.to(tl.int64) * rows * channels
    end = min(rows, (part + 1) * part_rows)
    for begin in range(part * part_rows, end, BLOCK_R):
        o_r = begin + tl.arange(0, BLOCK_R)
        here = (o_r < end)[:, None] & exists[None, :]
        place = batch + o_r.to(tl.int64)[:, None] * channels + o_c[None, :]
        value = tl.load(x_ptr + place, mask=here, other=0.0).to(tl.float32)
        centred = value - mean[None, :]
        if g_ptr is not None:
            g = tl.load(g_ptr + place, mask=here, other=0.0).to(tl.float32)
        else:
            g = tl.load(dy_ptr + place, mask=here, other=0.0).to(tl.float32)
            if other_dy_ptr is not None:
                g += tl.load(other_dy_ptr + place, mask=here, other=0.0).to(tl.float32)
            if RELU:
                if y_ptr is None:
                    y = centred * (inverse * weight)[None, :] + bias[None, :]
                else:
                    y = tl.load(y_ptr + place, mask=here, other=0.0).to(tl.float32)
                g = tl.where(y <= 0, 0.0, g)
        h = centred * inverse[None, :]
        dx = g - sums[None, :] / rows - h * (products[None, :] / rows)
        dx *= (inverse * weight)[None, :]
        tl.store(dx_ptr + place, dx.to(dx_ptr.dtype.element_ty), mask=here)


class _Tiles:
    """How the rows [groups, rows, channels] of x are dealt out to programs."""

    def __init__(self, x: Tensor, groups: int) -> None:
        images, self.channels, height, width = x.shape
        self.rows = images // groups * height * width
        block_channels = min(64, triton.next_power_of_2(self.channels))
        block_rows = 4096 // block_channels
        blocks = triton.cdiv(self.channels, block_channels)
        parts = max(1, min(triton.cdiv(self.rows, block_rows), PROGRAMS // (groups * blocks)))
        self.part_rows = triton.cdiv(triton.cdiv(self.rows, parts), block_rows) * block_rows
        parts = triton.cdiv(self.rows, self.part_rows)
        self.grid = (parts, groups, blocks)
        self.blocks = {"BLOCK_R": block_rows, "BLOCK_C": block_channels}
        self.partial = torch.empty(
            (2, groups, parts, self.channels), dtype=torch.float32, device=x.device
        )


def _last(x: Tensor | None) -> Tensor | None:
    """The tensor itself where it lies channels-last, else a copy that does."""
    if x is None or x.permute(0, 2, 3, 1).is_contiguous():
        return x
    return _channels_last(x)


def batch_norm_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    tracked: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    groups: int,
    relu: bool,
    track: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tiles = _Tiles(x, groups)
    values = _last(x)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    mean, inverse = (weight.new_empty((groups, tiles.channels)) for _ in range(2))
    sizes = (tiles.rows, tiles.channels, tiles.part_rows)
    _statistics_kernel[tiles.grid](values, tiles.partial, *sizes, **tiles.blocks)
    _normalise_kernel[tiles.grid](
        values, _last(residual), y, tiles.partial, weight, bias, mean, inverse, running_mean,
        running_var, tracked, momentum, eps, *sizes, RELU=relu, TRACK=track, **tiles.blocks,
    )  # fmt: skip
    return y, mean, inverse


def batch_norm_backward_fused(
    dy: Tensor,
    other_dy: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    relu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tiles = _Tiles(x, len(mean))
    sizes = (tiles.rows, tiles.channels, tiles.part_rows)
    dy_last, other_last, values, y_last = map(_last, (dy, other_dy, x, y))
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    g = torch.empty_like(dx) if keep else None
    dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
    statistics = (weight, bias, mean, inverse)
    _reduce_kernel[tiles.grid](
        dy_last, other_last, values, y_last, g, tiles.partial, *statistics, *sizes,
        RELU=relu, **tiles.blocks,
    )  # fmt: skip
    _gradient_kernel[tiles.grid](
        g, dy_last, other_last, values, y_last, dx, tiles.partial, *statistics, dweight, dbias,
        *sizes, RELU=relu, **tiles.blocks,
    )  # fmt: skip
    return dx, x.new_empty(0) if g is None else g, dweight, dbias


def _fake(x: Tensor, weight: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor]:
    groups = arguments[7]
    assert isinstance(groups, int)
    mean, inverse = (weight.new_empty((groups, x.shape[1])) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, inverse


def _fake_backward(
    dy: Tensor, other_dy: Tensor | None, x: Tensor, y: Tensor | None, weight: Tensor, *more: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    g = torch.empty_like(dx) if more[-1] else x.new_empty(0)
    return dx, g, torch.empty_like(weight), torch.empty_like(weight)


BATCH_NORM = Op(
    name="batch_norm",
    reference=batch_norm_reference,
    fused=batch_norm_fused,
    fake=_fake,
    mutates=("running_mean", "running_var", "tracked"),
)
BACKWARD = Op(
    name="batch_norm_backward",
    reference=batch_norm_backward_reference,
    fused=batch_norm_backward_fused,
    fake=_fake_backward,
)
