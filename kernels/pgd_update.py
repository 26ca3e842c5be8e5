"""One PGD step of all views, in place: steepest ascent, projection on the ball, clip to the box.

    x_adv <- clip(x + project(x_adv + step - x), 0, 1)

    norm   step                              project(d)
    linf   s sign(g)                         clip(d, -eps, eps)
    l2     s g / ||g||_2                     d min(1, eps / ||d||_2)
    l1     s sign(g) / n on n coordinates    sign(d) max(|d| - theta, 0) of l1 norm eps

or, for l2 and with box_first, the box before the ball, which keeps more of the length:

    x_adv <- x + project(clip(x_adv + step, 0, 1) - x)

The n coordinates of l1 are those of the `sparsity` largest |g| that have room for s / sparsity
before they meet the box, all ties with the last included, fewer where fewer can move.
theta: the zero of a decreasing, piecewise linear function; where d is in the ball, it is 0.

Sources: Madry et al. 2018 (arXiv 1706.06083) for linf and l2; the public code of TRADES, Zhang et
al. 2019 (arXiv 1901.08573), for box_first; Maini et al. 2020 (arXiv 1909.04068), section 4 and its
appendix, for l1; Duchi et al. 2008 for theta. A zero or NaN gradient moves nothing, and an infinite
one counts as the largest number.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton

NORMS = ("linf", "l2", "l1")


def pgd_update(
    x_adv: Tensor,
    low: Tensor | None,
    x: Tensor,
    grad: Tensor,
    norm: str,
    eps: float,
    step_size: float,
    sparsity: int = 20,
    box_first: bool = False,
) -> None:
    """Move x_adv one step along grad, in place, inside the ball around x and [0, 1].

    x_adv: [K, B, C, H, W], float32
    low: gets x_adv's new value in a lower precision, or None
    x: [B, C, H, W], float32 in [0, 1]
    grad: like x_adv, of any float type
    norm: one of NORMS
    eps, step_size: lengths in that norm, of pixels in [0, 1]
    sparsity: of l1: coordinates that a step moves
    box_first: of l2: clip to [0, 1] before the ball

    Strides are any in which H and W count as one axis.
    """
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}: expected one of {', '.join(NORMS)}")
    OP(x_adv, low, x, grad, norm, eps, step_size, sparsity, box_first)


def pgd_update_reference(
    x_adv: Tensor,
    low: Tensor | None,
    x: Tensor,
    grad: Tensor,
    norm: str,
    eps: float,
    step_size: float,
    sparsity: int,
    box_first: bool,
) -> None:
    """The specification of `pgd_update`, in the precision of x_adv."""
    grad = grad.to(x_adv.dtype).nan_to_num()
    if norm == "linf":
        moved = (x_adv + step_size * grad.sign()).clamp(x - eps, x + eps)
    elif norm == "l2":
        moved = x_adv + step_size * direction_l2(grad)
        moved = x + project_l2((moved.clamp(0, 1) if box_first else moved) - x, eps)
    else:
        direction = direction_l1(x_adv, grad, step_size / sparsity, sparsity)
        moved = x + project_l1(x_adv + step_size * direction - x, eps)
    x_adv.copy_(moved.clamp(0, 1))
    if low is not None:
        low.copy_(x_adv)


def direction_l2(grad: Tensor) -> Tensor:
    """grad [K, B, C, H, W] scaled to length 1 in each image, 0 where it is 0."""
    largest = grad.abs().amax((2, 3, 4), keepdim=True)
    # squares of a small gradient would be 0; from here on the largest entry is 1
    grad = torch.where(largest > 0, grad / largest, 0)
    return grad / grad.square().sum((2, 3, 4), keepdim=True).sqrt().clamp(min=1)


def direction_l1(x_adv: Tensor, grad: Tensor, room: float, sparsity: int) -> Tensor:
    """The signs of the `sparsity` largest entries of grad, scaled to l1 norm 1 in each image."""
    ahead = x_adv + room * grad.sign()
    size = torch.where((ahead >= 0) & (ahead <= 1), grad.abs(), 0)
    last = size.flatten(2).topk(min(sparsity, size[0, 0].numel())).values[..., -1]
    chosen = (size >= last[..., None, None, None]) & (size > 0)
    return grad.sign() * chosen / chosen.sum((2, 3, 4), keepdim=True).clamp(min=1)


def project_l2(delta: Tensor, eps: float) -> Tensor:
    """The nearest point to delta [K, B, C, H, W] of l2 norm eps at most, in each image."""
    length = delta.square().sum((2, 3, 4), keepdim=True).sqrt()
    return delta * (eps / length).clamp(max=1)


def project_l1(delta: Tensor, eps: float) -> Tensor:
    """The nearest point to delta [K, B, C, H, W] of l1 norm eps at most, in each image."""
    size = delta.abs()
    largest = size.flatten(2).sort(descending=True).values
    counts = torch.arange(1, largest.shape[2] + 1, device=delta.device)
    # with too few or too many coordinates left above it, theta would come out smaller
    theta = ((largest.cumsum(2) - eps) / counts).amax(2).clamp(min=0)
    return delta.sign() * (size - theta[..., None, None, None]).clamp(min=0)


@triton.jit
def _load(ptr, strides, e, size, CHANNELS: tl.constexpr):
    """Elements e of an image in float32, 0 outside it."""
    offsets = e % CHANNELS * strides[2] + e // CHANNELS * strides[3]
    return tl.load(ptr + offsets, mask=e < size, other=0.0).to(tl.float32)


@triton.jit
def _store(ptr, strides, e, size, value, CHANNELS: tl.constexpr):
    offsets = e % CHANNELS * strides[2] + e // CHANNELS * strides[3]
    tl.store(ptr + offsets, value.to(ptr.dtype.element_ty), mask=e < size)


@triton.jit
def _load_grad(ptr, strides, e, size, CHANNELS: tl.constexpr):
    """A gradient's elements, all of them finite."""
    grad = _load(ptr, strides, e, size, CHANNELS)
    grad = tl.where(grad == grad, grad, 0.0)
    return tl.minimum(tl.maximum(grad, -3.4028234663852886e38), 3.4028234663852886e38)


@triton.jit
def _sign(grad):
    return (grad > 0).to(tl.float32) - (grad < 0).to(tl.float32)


@triton.jit
def _bits_with_room(x_adv, grad, room):
    """The bits of |grad|, which are ordered as |grad| is; 0 where x_adv is at the edge ahead."""
    ahead = x_adv + room * _sign(grad)
    size = tl.where((ahead >= 0) & (ahead <= 1), tl.abs(grad), 0.0)
    return size.to(tl.int32, bitcast=True)


@triton.jit
def _pgd_update_kernel(
    x_adv_ptr,  # [views, images, CHANNELS, pixels], like all four; x has view stride 0
    low_ptr,  # or None
    x_ptr,
    grad_ptr,
    x_adv_strides,
    low_strides,
    x_strides,
    grad_strides,
    images,
    size,  # CHANNELS * pixels
    eps,
    step_size,
    sparsity,
    NORM: tl.constexpr,
    BOX_FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    view = row // images
    image = row % images
    x_adv_ptr += view * x_adv_strides[0] + image * x_adv_strides[1]
    x_ptr += view * x_strides[0] + image * x_strides[1]
    grad_ptr += view * grad_strides[0] + image * grad_strides[1]
    o_block = tl.arange(0, BLOCK)

    # linf knows no neighbours: a program for each block; else a program for each image
    begin = tl.program_id(1) * BLOCK
    end = size
    if NORM == "linf":
        end = tl.minimum(begin + BLOCK, size)

    if NORM == "l2":
        b_largest = tl.zeros([BLOCK], tl.float32)
        for first in range(0, size, BLOCK):
            grad = _load_grad(grad_ptr, grad_strides, first + o_block, size, CHANNELS)
            b_largest = tl.maximum(b_largest, tl.abs(grad))
        largest = tl.max(b_largest)
        largest = tl.where(largest > 0, largest, 1.0)
        b_squares = tl.zeros([BLOCK], tl.float32)
        for first in range(0, size, BLOCK):
            grad = _load_grad(grad_ptr, grad_strides, first + o_block, size, CHANNELS) / largest
            b_squares += grad * grad
        step = step_size / tl.maximum(tl.sqrt(tl.sum(b_squares)), 1.0)
        b_squares = tl.zeros([BLOCK], tl.float32)
        for first in range(0, size, BLOCK):
            e = first + o_block
            grad = _load_grad(grad_ptr, grad_strides, e, size, CHANNELS) / largest
            moved = _load(x_adv_ptr, x_adv_strides, e, size, CHANNELS) + step * grad
            if BOX_FIRST:
                moved = tl.minimum(tl.maximum(moved, 0.0), 1.0)
            delta = moved - _load(x_ptr, x_strides, e, size, CHANNELS)
            b_squares += delta * delta
        shrink = tl.minimum(eps / tl.sqrt(tl.sum(b_squares)), 1.0)

    if NORM == "l1":
        room = step_size / sparsity
        # the last of the `sparsity` largest, bit by bit from the highest
        last = 0
        for shift in range(31):
            higher = last + (1 << (30 - shift))
            b_count = tl.zeros([BLOCK], tl.int32)
            for first in range(0, size, BLOCK):
                e = first + o_block
                grad = _load_grad(grad_ptr, grad_strides, e, size, CHANNELS)
                x_adv = _load(x_adv_ptr, x_adv_strides, e, size, CHANNELS)
                b_count += (_bits_with_room(x_adv, grad, room) >= higher).to(tl.int32)
            last = tl.where(tl.sum(b_count) >= sparsity, higher, last)
        last = tl.maximum(last, 1)
        b_count = tl.zeros([BLOCK], tl.int32)
        for first in range(0, size, BLOCK):
            e = first + o_block
            grad = _load_grad(grad_ptr, grad_strides, e, size, CHANNELS)
            x_adv = _load(x_adv_ptr, x_adv_strides, e, size, CHANNELS)
            b_count += (_bits_with_room(x_adv, grad, room) >= last).to(tl.int32)
        step = step_size / tl.maximum(tl.sum(b_count), 1)
        # Newton's method from below, exact as soon as the same coordinates stay above theta
        theta = 0.0
        before = size + 2
        above = size + 1
        while above < before:
            before = above
            b_sum = tl.zeros([BLOCK], tl.float32)
            b_count = tl.zeros([BLOCK], tl.int32)
            for first in range(0, size, BLOCK):
                e = first + o_block
                grad = _load_grad(grad_ptr, grad_strides, e, size, CHANNELS)
                x_adv = _load(x_adv_ptr, x_adv_strides, e, size, CHANNELS)
                chosen = _bits_with_room(x_adv, grad, room) >= last
                x_adv += tl.where(chosen, step * _sign(grad), 0.0)
                delta = tl.abs(x_adv - _load(x_ptr, x_strides, e, size, CHANNELS))
                b_sum += tl.where(delta > theta, delta, 0.0)
                b_count += (delta > theta).to(tl.int32)
            above = tl.sum(b_count)
            theta = tl.maximum(theta, (tl.sum(b_sum) - eps) / tl.maximum(above, 1))

    for first in range(begin, end, BLOCK):
        e = first + o_block
        grad = _load_grad(grad_ptr, grad_strides, e, size, CHANNELS)
        x_adv = _load(x_adv_ptr, x_adv_strides, e, size, CHANNELS)
        x = _load(x_ptr, x_strides, e, size, CHANNELS)
        if NORM == "linf":
            moved = x_adv + step_size * _sign(grad)
            moved = tl.minimum(tl.maximum(moved, x - eps), x + eps)
        elif NORM == "l2":
            moved = x_adv + step * (grad / largest)
            if BOX_FIRST:
                moved = tl.minimum(tl.maximum(moved, 0.0), 1.0)
            moved = x + (moved - x) * shrink
        else:
            chosen = _bits_with_room(x_adv, grad, room) >= last
            delta = x_adv + tl.where(chosen, step * _sign(grad), 0.0) - x
            moved = x + _sign(delta) * tl.maximum(tl.abs(delta) - theta, 0.0)
        moved = tl.minimum(tl.maximum(moved, 0.0), 1.0)
        _store(x_adv_ptr, x_adv_strides, e, size, moved, CHANNELS)
        if low_ptr is not None:
            b_low = low_ptr + view * low_strides[0] + image * low_strides[1]
            _store(b_low, low_strides, e, size, moved, CHANNELS)


def pgd_update_fused(
    x_adv: Tensor,
    low: Tensor | None,
    x: Tensor,
    grad: Tensor,
    norm: str,
    eps: float,
    step_size: float,
    sparsity: int,
    box_first: bool,
) -> None:
    """Launches the Triton kernel: one program for each view of an image, for linf one a block."""
    views, images = x_adv.shape[:2]
    size = x_adv[0, 0].numel()
    channels, strides = _strides(x_adv, x_adv if low is None else low, x.expand_as(x_adv), grad)
    block = 1024 if norm == "linf" else min(2048, triton.next_power_of_2(size))
    blocks = triton.cdiv(size, block) if norm == "linf" else 1
    _pgd_update_kernel[(views * images, blocks)](
        x_adv,
        low,
        x,
        grad,
        *strides,
        images,
        size,
        eps,
        step_size,
        sparsity,
        NORM=norm,
        BOX_FIRST=box_first,
        CHANNELS=channels,
        BLOCK=block,
        num_warps=4 if norm == "linf" else 8,
    )


def _strides(*tensors: Tensor) -> tuple[int, list[tuple[int, int, int, int]]]:
    """The number of channels and each tensor's strides of (view, image, channel, pixel).

    Where all are dense in the same order there is but one channel, and the GPU loads vectors.
    """
    shape = tensors[0].shape
    assert all(tensor.shape == shape for tensor in tensors), [tensor.shape for tensor in tensors]
    channels, pixels = shape[2], shape[3] * shape[4]
    # a view, which raises where H and W do not count as one axis
    strides = [tensor.view(*shape[:3], pixels).stride() for tensor in tensors]
    if all(pixel == channels * channel for _, _, channel, pixel in strides):
        return 1, [(view, image, 0, channel) for view, image, channel, _ in strides]
    if all(channel == pixels * pixel for _, _, channel, pixel in strides):
        return 1, [(view, image, 0, pixel) for view, image, _, pixel in strides]
    return channels, [(view, image, channel, pixel) for view, image, channel, pixel in strides]


OP = Op(
    name="pgd_update",
    reference=pgd_update_reference,
    fused=pgd_update_fused,
    mutates=("x_adv", "low"),
)
