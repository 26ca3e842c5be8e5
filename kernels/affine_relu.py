"""BatchNorm with constant statistics, then ReLU, and its gradient in x alone.

    y  = max(x scale[c] + shift[c], 0)
    dx = dy scale[c] (y > 0)

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Algorithm 2: in evaluation mode BatchNorm is an
affine map. Before a convolution, as in pre-activation networks (He et al. 2016, arXiv 1603.05027),
it cannot be folded into the weights.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

from typing import Any

import torch
from torch import Tensor

from ._op import Op, block_sizes, tl, triton


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """relu(x * scale + shift), like x; the gradient flows into x alone.

    x: [B, C, H, W], fastest channels-last
    scale, shift: [C], of x's float type
    """
    return OP(x, scale, shift)


def affine_relu_reference(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The specification of `affine_relu`."""
    return (x * scale[:, None, None] + shift[:, None, None]).relu()


def affine_relu_backward_reference(dy: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """dx [B, C, H, W], laid out like y."""
    dx = torch.where(y > 0, dy * scale[:, None, None], 0)
    return torch.empty_like(y).copy_(dx)


@triton.jit
def _affine_relu_kernel(
    in_ptr,  # x, or dy in the gradient's kernel: [B, channels, pixels], as are y and out
    y_ptr,  # None in the forward kernel
    scale_ptr,  # [channels]
    shift_ptr,  # [channels], or None in the gradient's kernel
    out_ptr,
    in_strides,
    y_strides,
    out_strides,
    pixels,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    o_p = (tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    o_c = tl.arange(0, BLOCK_C)[None, :]
    here = (o_p < pixels) & (o_c < channels)
    in_ptr += image * in_strides[0]
    out_ptr += image * out_strides[0]
    value = tl.load(in_ptr + o_c * in_strides[1] + o_p * in_strides[2], mask=here).to(tl.float32)
    value *= tl.load(scale_ptr + o_c, mask=o_c < channels).to(tl.float32)
    if y_ptr is None:
        value += tl.load(shift_ptr + o_c, mask=o_c < channels).to(tl.float32)
        # not tl.maximum, which would hide a NaN
        value = tl.where(value < 0, 0.0, value)
    else:
        y_ptr += image * y_strides[0]
        y = tl.load(y_ptr + o_c * y_strides[1] + o_p * y_strides[2], mask=here)
        value = tl.where(y > 0, value, 0.0)
    place = out_ptr + o_c * out_strides[1] + o_p * out_strides[2]
    tl.store(place, value.to(out_ptr.dtype.element_ty), mask=here)


def _launch(source: Tensor, y: Tensor | None, scale: Tensor, shift: Tensor | None) -> Tensor:
    """One program for each tile of whole pixels in an image."""
    batch, channels, height, width = source.shape
    out = torch.empty_like(source if y is None else y)
    assert out.shape == source.shape
    assert scale.is_contiguous()
    assert shift is None or shift.is_contiguous()
    # views, which raise where H and W do not count as one axis
    strides = [t.view(batch, channels, -1).stride() for t in (source, out if y is None else y, out)]
    pixels = height * width
    block_pixels, block_channels = block_sizes(pixels, channels, 2048)
    _affine_relu_kernel[(batch, triton.cdiv(pixels, block_pixels))](
        source,
        y,
        scale,
        shift,
        out,
        *strides,
        pixels,
        channels,
        BLOCK_P=block_pixels,
        BLOCK_C=block_channels,
    )
    return out


def affine_relu_fused(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return _launch(x, None, scale, shift)


def affine_relu_backward_fused(dy: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return _launch(dy, y, scale, None)


OP = Op(
    name="affine_relu",
    reference=affine_relu_reference,
    fused=affine_relu_fused,
    fake=lambda x, scale, shift: torch.empty_like(x),
)
BACKWARD = Op(
    name="affine_relu_backward",
    reference=affine_relu_backward_reference,
    fused=affine_relu_backward_fused,
    fake=lambda dy, y, scale: torch.empty_like(y),
)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[1])


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
    return BACKWARD.torch_op(dy, *ctx.saved_tensors), None, None


OP.torch_op.register_autograd(_backward, setup_context=_save)
