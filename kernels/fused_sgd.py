"""SGD over one flat buffer, in place, with its average and its low-precision copy in one pass.

    g   = grad / grad_scale + weight_decay p
    buf = momentum buf + g
    p  <- p - lr (g + momentum buf)   with Nesterov's momentum,   p - lr buf   without
    ema <- ema_decay ema + (1 - ema_decay) p

Source: torch.optim.SGD with dampening 0 and buffers that start at 0 (Sutskever et al. 2013). Where
found_inf is not 0 nothing changes, as with torch.amp.GradScaler.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

import torch
from torch import Tensor

from ._op import Op, tl, triton


def fused_sgd(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    lr: Tensor,
    weight_decay: float,
    momentum: Tensor,
    nesterov: bool = False,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    ema: Tensor | None = None,
    ema_shares: Tensor | None = None,
    low: Tensor | None = None,
) -> None:
    """One step of SGD, in place: changes param, momentum_buffer, ema and low.

    param, momentum_buffer, ema: float32 [N]
    grad, low: [N], of any float type
    lr, momentum, grad_scale, found_inf: float32 scalars on the device, which a captured step reads
    ema_shares: float32 [2], ema_decay and 1 - ema_decay, where there is ema
    """
    OP(
        param,
        grad,
        momentum_buffer,
        lr,
        weight_decay,
        momentum,
        nesterov,
        grad_scale,
        found_inf,
        ema,
        ema_shares,
        low,
    )


def fused_sgd_reference(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    lr: Tensor,
    weight_decay: float,
    momentum: Tensor,
    nesterov: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    ema: Tensor | None,
    ema_shares: Tensor | None,
    low: Tensor | None,
) -> None:
    """The specification of `fused_sgd`, in the precision of param."""
    if found_inf is not None and found_inf != 0:
        return
    grad = grad.to(param.dtype)
    if grad_scale is not None:
        grad = grad / grad_scale
    # as few passes over memory as torch allows: on a CPU this is what runs
    grad = torch.add(grad, param, alpha=weight_decay)
    m = float(momentum)
    torch.add(grad, momentum_buffer, alpha=m, out=momentum_buffer)
    direction = grad.add_(momentum_buffer, alpha=m) if nesterov else momentum_buffer
    param.addcmul_(direction, lr, value=-1)
    if ema is not None and ema_shares is not None:
        ema.mul_(ema_shares[0]).add_(ema_shares[1] * param)
    if low is not None:
        low.copy_(param)


@triton.jit
def _fused_sgd_kernel(
    param_ptr,  # [size], as are grad, momentum_buffer, ema and low
    grad_ptr,
    momentum_buffer_ptr,
    lr_ptr,
    momentum_ptr,
    grad_scale_ptr,  # from here on each pointer may be None
    found_inf_ptr,
    ema_ptr,
    ema_shares_ptr,  # [2]
    low_ptr,
    size,
    weight_decay,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if found_inf_ptr is not None:
        size = tl.where(tl.load(found_inf_ptr) == 0, size, 0)
    here = e < size
    param = tl.load(param_ptr + e, mask=here)
    grad = tl.load(grad_ptr + e, mask=here).to(tl.float32)
    buffer = tl.load(momentum_buffer_ptr + e, mask=here)
    if grad_scale_ptr is not None:
        grad /= tl.load(grad_scale_ptr)
    grad += weight_decay * param
    momentum = tl.load(momentum_ptr)
    buffer = momentum * buffer + grad
    if NESTEROV:
        grad += momentum * buffer
    else:
        grad = buffer
    param -= tl.load(lr_ptr) * grad
    tl.store(param_ptr + e, param, mask=here)
    tl.store(momentum_buffer_ptr + e, buffer, mask=here)
    if ema_ptr is not None:
        ema = tl.load(ema_ptr + e, mask=here)
        ema = tl.load(ema_shares_ptr) * ema + tl.load(ema_shares_ptr + 1) * param
        tl.store(ema_ptr + e, ema, mask=here)
    if low_ptr is not None:
        tl.store(low_ptr + e, param.to(low_ptr.dtype.element_ty), mask=here)


def fused_sgd_fused(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    lr: Tensor,
    weight_decay: float,
    momentum: Tensor,
    nesterov: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    ema: Tensor | None,
    ema_shares: Tensor | None,
    low: Tensor | None,
) -> None:
    """Launches the Triton kernel: one program for each block."""
    for buffer in (param, grad, momentum_buffer, ema, low):
        assert buffer is None or (buffer.shape == (param.numel(),) and buffer.is_contiguous())
    block = 1024
    _fused_sgd_kernel[(triton.cdiv(param.numel(), block),)](
        param,
        grad,
        momentum_buffer,
        lr,
        momentum,
        grad_scale,
        found_inf,
        ema,
        ema_shares,
        low,
        param.numel(),
        weight_decay,
        NESTEROV=nesterov,
        BLOCK=block,
    )


OP = Op(
    name="fused_sgd",
    reference=fused_sgd_reference,
    fused=fused_sgd_fused,
    mutates=("param", "momentum_buffer", "ema", "low"),
)
