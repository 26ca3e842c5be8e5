"""Gather a batch, zero-pad and crop it at random, mirror it, scale it to [0, 1], channels-last.

    x[b, c, i, j] = images[index[b], i + dy[b] - pad, j' + dx[b] - pad, c] / 255,
    0 outside the image;  j' = W - 1 - j where flip[b], else j

Source: the crop-4-and-flip augmentation of He et al. 2016 (arXiv 1512.03385), section 4.2: the
crop comes first, then the flip.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton


def augment(images: Tensor, draws: Tensor, pad: int) -> Tensor:
    """A new batch [B, C, H, W], float32 in [0, 1], channels-last.

    images: uint8 [N, H, W, C]; draws: int64 [4, B], the rows index, dy and dx in [0, 2 * pad], and
    flip, 0 or 1; pad: pixels.
    """
    _, height, width, channels = images.shape
    out = torch.empty((draws.shape[1], height, width, channels), device=images.device)
    out = out.permute(0, 3, 1, 2)
    OP(out, images, draws, pad)
    return out


def augment_reference(out: Tensor, images: Tensor, draws: Tensor, pad: int) -> None:
    """The specification of `augment`, written into out, in its precision."""
    _, height, width, _ = images.shape
    index, dy, dx, flip = draws[:, :, None]
    rows = torch.arange(height, device=images.device) + dy - pad
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip != 0, width - 1 - columns, columns) + dx - pad
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    crop = images[
        index[:, None],
        rows.clamp(0, height - 1)[:, :, None],
        columns.clamp(0, width - 1)[:, None, :],
    ]
    crop = crop * (inside_rows[:, :, None, None] & inside_columns[:, None, :, None])
    # a tensor, as on a GPU torch divides by a number through its rounded reciprocal
    white = torch.full((), 255, dtype=out.dtype, device=out.device)
    out.copy_((crop / white).permute(0, 3, 1, 2))


@triton.jit
def _augment_kernel(
    out_ptr,  # [B, HEIGHT * WIDTH * CHANNELS]
    images_ptr,  # [N, HEIGHT * WIDTH * CHANNELS]
    draws_ptr,  # [4, B]
    out_stride,
    images_stride,
    draws_strides,
    pad,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_image = tl.program_id(0).to(tl.int64)
    draws_ptr += i_image * draws_strides[1]
    index = tl.load(draws_ptr)
    dy = tl.load(draws_ptr + draws_strides[0]).to(tl.int32)
    dx = tl.load(draws_ptr + 2 * draws_strides[0]).to(tl.int32)
    flip = tl.load(draws_ptr + 3 * draws_strides[0])

    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = e % CHANNELS
    column = e // CHANNELS % WIDTH
    row = e // (CHANNELS * WIDTH) + dy - pad
    column = tl.where(flip != 0, WIDTH - 1 - column, column) + dx - pad
    in_batch = e < HEIGHT * WIDTH * CHANNELS
    in_image = in_batch & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    place = (row * WIDTH + column) * CHANNELS + channel
    value = tl.load(images_ptr + index * images_stride + place, mask=in_image, other=0)
    # rounded as on the CPU: Triton's own division is approximate
    value = tl.div_rn(value.to(tl.float32), tl.full([BLOCK], 255.0, tl.float32))
    tl.store(out_ptr + i_image * out_stride + e, value, mask=in_batch)


def augment_fused(out: Tensor, images: Tensor, draws: Tensor, pad: int) -> None:
    """Launches the Triton kernel: one program for each block of an image."""
    batch, channels, height, width = out.shape
    assert images.shape[1:] == (height, width, channels)
    assert draws.shape == (4, batch)
    # views, which raise where pixels and channels do not count as one axis
    out_rows = out.permute(0, 2, 3, 1).view(batch, -1)
    image_rows = images.view(len(images), -1)
    block = 1024
    _augment_kernel[(batch, triton.cdiv(out_rows.shape[1], block))](
        out,
        images,
        draws,
        out_rows.stride(0),
        image_rows.stride(0),
        draws.stride(),
        pad,
        HEIGHT=height,
        WIDTH=width,
        CHANNELS=channels,
        BLOCK=block,
    )


OP = Op(name="augment", reference=augment_reference, fused=augment_fused, mutates=("out",))
