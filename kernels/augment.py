"""Gather a batch, crop and shift, mirror, cut a hole, scale to [0, 1], channels-last.

    x[b, c, i, j] = images[index[b], r, s, c] / white        white = 255 for uint8, 1 for floats
    r = i + dy[b],   s = j' + dx[b],   j' = W - 1 - j where flip[b], else j

where `reflect`, r and s are mirrored at the first and the last row and column. 0 where (r, s) is
outside the window [top[b], bottom[b]) x [left[b], right[b]), or (i, j) inside the square of side
`hole` that begins at (hole_y[b], hole_x[b]).

Source: crop and flip as in He et al. 2016 (arXiv 1512.03385), section 4.2, the crop first; the
window is CropShift of Li & Spratling 2023 (arXiv 2301.09879); the hole is Cutout, DeVries & Taylor
2017 (arXiv 1708.04552).
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton

ROWS = ("index", "dy", "dx", "flip", "top", "bottom", "left", "right", "hole_y", "hole_x")


def augment(images: Tensor, draws: Tensor, hole: int = 0, reflect: bool = False) -> Tensor:
    """A new batch [B, C, H, W], float32 in [0, 1], channels-last.

    images: [N, H, W, C], uint8 or float in [0, 1]
    draws: int64 [10, B], rows as in ROWS, in pixels; windows lie within the image
    reflect: whether shifts show the image mirrored at its edges; they are then less than its sides
    hole: side of the black square, in pixels
    """
    _, height, width, channels = images.shape
    out = torch.empty((draws.shape[1], height, width, channels), device=images.device)
    out = out.permute(0, 3, 1, 2)
    OP(out, images, draws, hole, reflect)
    return out


def augment_reference(out: Tensor, images: Tensor, draws: Tensor, hole: int, reflect: bool) -> None:
    """The specification of `augment`, written into out, in its precision."""
    _, height, width, channels = images.shape
    index, dy, dx, flip, top, bottom, left, right, hole_y, hole_x = draws[:, :, None]
    i, j = (torch.arange(side, device=images.device) for side in (height, width))
    row = i + dy
    column = torch.where(flip != 0, width - 1 - j, j) + dx
    if reflect:
        row, column = _mirrored(row, height), _mirrored(column, width)
    # behind the last row and column there is a black one, for what is not seen
    framed = images.new_zeros(len(index), height + 1, width + 1, channels)
    framed[:, :height, :width] = images.index_select(0, draws[0])
    row = torch.where((row >= top) & (row < bottom), row, height)
    column = torch.where((column >= left) & (column < right), column, width)
    first = torch.arange(len(index), device=images.device)[:, None] * (height + 1)
    place = ((first + row) * (width + 1))[:, :, None] + column[:, None, :]
    pixels = framed.view(-1, channels).index_select(0, place.flatten())
    # a tensor, as on a GPU torch divides by a number through its rounded reciprocal
    white = torch.full((), _white(images), dtype=out.dtype, device=out.device)
    rows = out.permute(0, 2, 3, 1)
    torch.div(pixels.view(rows.shape), white, out=rows)
    if hole:
        hole_rows = (i >= hole_y) & (i < hole_y + hole)
        hole_columns = (j >= hole_x) & (j < hole_x + hole)
        rows.masked_fill_((hole_rows[:, :, None] & hole_columns[:, None, :])[..., None], 0)


def _mirrored(place: Tensor, side: int) -> Tensor:
    return side - 1 - (side - 1 - place.abs()).abs()


def _white(images: Tensor) -> float:
    return 255.0 if images.dtype == torch.uint8 else 1.0


@triton.jit
def _augment_kernel(
    out_ptr,  # [B, HEIGHT * WIDTH * CHANNELS]
    images_ptr,  # [N, HEIGHT * WIDTH * CHANNELS]
    draws_ptr,  # [10, B]
    out_stride,
    images_stride,
    draws_strides,
    hole,
    white,
    REFLECT: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_image = tl.program_id(0).to(tl.int64)
    draws_ptr += i_image * draws_strides[1]
    stride = draws_strides[0]
    index = tl.load(draws_ptr)
    dy = tl.load(draws_ptr + stride).to(tl.int32)
    dx = tl.load(draws_ptr + 2 * stride).to(tl.int32)
    flip = tl.load(draws_ptr + 3 * stride)
    top = tl.load(draws_ptr + 4 * stride).to(tl.int32)
    bottom = tl.load(draws_ptr + 5 * stride).to(tl.int32)
    left = tl.load(draws_ptr + 6 * stride).to(tl.int32)
    right = tl.load(draws_ptr + 7 * stride).to(tl.int32)
    hole_y = tl.load(draws_ptr + 8 * stride).to(tl.int32)
    hole_x = tl.load(draws_ptr + 9 * stride).to(tl.int32)

    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = e % CHANNELS
    j = e // CHANNELS % WIDTH
    i = e // (CHANNELS * WIDTH)
    row = i + dy
    column = tl.where(flip != 0, WIDTH - 1 - j, j) + dx
    if REFLECT:
        row = HEIGHT - 1 - tl.abs(HEIGHT - 1 - tl.abs(row))
        column = WIDTH - 1 - tl.abs(WIDTH - 1 - tl.abs(column))
    in_batch = e < HEIGHT * WIDTH * CHANNELS
    in_hole = (i >= hole_y) & (i < hole_y + hole) & (j >= hole_x) & (j < hole_x + hole)
    in_window = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    place = (row * WIDTH + column) * CHANNELS + channel
    seen = in_batch & in_window & (in_hole == 0)
    value = tl.load(images_ptr + index * images_stride + place, mask=seen, other=0)
    # rounded as on the CPU: Triton's own division is approximate
    value = tl.div_rn(value.to(tl.float32), tl.full([BLOCK], white, tl.float32))
    tl.store(out_ptr + i_image * out_stride + e, value, mask=in_batch)


def augment_fused(out: Tensor, images: Tensor, draws: Tensor, hole: int, reflect: bool) -> None:
    """Launches the Triton kernel: one program for each block of an image."""
    batch, channels, height, width = out.shape
    assert images.shape[1:] == (height, width, channels)
    assert draws.shape == (len(ROWS), batch)
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
        hole,
        _white(images),
        REFLECT=reflect,
        HEIGHT=height,
        WIDTH=width,
        CHANNELS=channels,
        BLOCK=block,
    )


OP = Op(name="augment", reference=augment_reference, fused=augment_fused, mutates=("out",))
