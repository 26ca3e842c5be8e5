"""What follows a convolution with constant weights, in one pass forward and one backward.

    y  = relu(conv + bias[c] + residual + residual_bias[c])      in the place of conv
    dy = (g_1 + g_2) (y > 0)                                     g_i: from each that reads y

Source: He et al. 2016 (arXiv 1512.03385), the end of a residual block, after BatchNorm has been
folded into the convolution. torch needs up to three passes forward and two backward.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton

BLOCK = 2048


def epilogue(
    conv: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    residual_bias: Tensor | None = None,
) -> None:
    """conv <- relu(conv + bias + residual + residual_bias), in place, without gradient.

    conv: [B, C, H, W] of any float type, of which the others are too
    bias, residual_bias: [C], or None for 0
    residual: like conv, or None for 0
    """
    EPILOGUE(conv, bias, residual, residual_bias)


def masked_sum(y: Tensor, grad: Tensor, other: Tensor | None = None) -> Tensor:
    """(grad + other) where y > 0, else 0, laid out like y: the gradient before a ReLU.

    y, grad, other: [B, C, H, W] of one float type
    """
    return MASKED_SUM(y, grad, other)


def epilogue_reference(
    conv: Tensor, bias: Tensor | None, residual: Tensor | None, residual_bias: Tensor | None
) -> None:
    """The specification of `epilogue`."""
    if bias is not None:
        conv += bias[:, None, None]
    if residual is not None:
        conv += residual
    if residual_bias is not None:
        conv += residual_bias[:, None, None]
    conv.relu_()


def masked_sum_reference(y: Tensor, grad: Tensor, other: Tensor | None) -> Tensor:
    """The specification of `masked_sum`."""
    total = grad if other is None else grad + other
    return torch.empty_like(y).copy_(torch.where(y <= 0, 0, total))


@triton.jit
def _epilogue_kernel(
    conv_ptr,
    bias_ptr,  # or None
    residual_ptr,  # or None
    residual_bias_ptr,  # or None
    size,
    channels,
    channel_stride,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = n < size
    channel = (n // channel_stride) % channels
    value = tl.load(conv_ptr + n, mask=here).to(tl.float32)
    if bias_ptr is not None:
        value += tl.load(bias_ptr + channel, mask=here).to(tl.float32)
    if residual_ptr is not None:
        value += tl.load(residual_ptr + n, mask=here).to(tl.float32)
    if residual_bias_ptr is not None:
        value += tl.load(residual_bias_ptr + channel, mask=here).to(tl.float32)
    # not tl.maximum, which would hide a NaN
    value = tl.where(value < 0, 0.0, value)
    tl.store(conv_ptr + n, value.to(conv_ptr.dtype.element_ty), mask=here)


@triton.jit
def _masked_sum_kernel(
    y_ptr,
    grad_ptr,
    other_ptr,  # or None
    out_ptr,
    size,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = n < size
    y = tl.load(y_ptr + n, mask=here)
    value = tl.load(grad_ptr + n, mask=here).to(tl.float32)
    if other_ptr is not None:
        value += tl.load(other_ptr + n, mask=here).to(tl.float32)
    value = tl.where(y <= 0, 0.0, value)
    tl.store(out_ptr + n, value.to(out_ptr.dtype.element_ty), mask=here)


def _dense(tensor: Tensor) -> Tensor:
    """The tensor, or where it has gaps a copy without."""
    return tensor if _channel_stride(tensor) else tensor.contiguous()


def _channel_stride(tensor: Tensor) -> int:
    """Distance in memory of two channels; 0 where the elements do not fill it without gaps."""
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return 1
    return tensor.shape[2] * tensor.shape[3] if tensor.is_contiguous() else 0


def _like(tensor: Tensor, other: Tensor | None) -> Tensor | None:
    """`other`, laid out like the dense `tensor`."""
    if other is None or other.stride() == tensor.stride():
        return other
    return torch.empty_like(tensor).copy_(other)


def epilogue_fused(
    conv: Tensor, bias: Tensor | None, residual: Tensor | None, residual_bias: Tensor | None
) -> None:
    values = _dense(conv)
    size = values.numel()
    assert size < 2**31 - BLOCK
    assert bias is None or bias.is_contiguous()
    assert residual_bias is None or residual_bias.is_contiguous()
    _epilogue_kernel[(triton.cdiv(size, BLOCK),)](
        values,
        bias,
        _like(values, residual),
        residual_bias,
        size,
        conv.shape[1],
        _channel_stride(values),
        BLOCK=BLOCK,
    )
    if values is not conv:
        conv.copy_(values)


def masked_sum_fused(y: Tensor, grad: Tensor, other: Tensor | None) -> Tensor:
    values = _dense(y)
    size = values.numel()
    assert size < 2**31 - BLOCK
    out = torch.empty_like(values)
    _masked_sum_kernel[(triton.cdiv(size, BLOCK),)](
        values, _like(values, grad), _like(values, other), out, size, BLOCK=BLOCK
    )
    return out if values is y else torch.empty_like(y).copy_(out)


EPILOGUE = Op(
    name="epilogue",
    reference=epilogue_reference,
    fused=epilogue_fused,
    mutates=("conv",),
)
MASKED_SUM = Op(
    name="masked_sum",
    reference=masked_sum_reference,
    fused=masked_sum_fused,
    fake=lambda y, grad, other: torch.empty_like(y),
)
