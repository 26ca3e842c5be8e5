"""Every loss term of a step and its gradient in the logit table, for all peers at once.

    losses[t, b] = loss_t of image b,   dz = d (sum_{t, b} upstream[t, b] losses[t, b]) / d z

    ce, boosted_ce, uniform_ce (student)      kl (teacher || student)
    square (teacher, student)     mart_kl = (1.0000001 - p_y(teacher)) KL(teacher || student)

A term is the loss of its logits divided by its temperature. Gradients flow into the student and the
teacher, through MART's weight too, but not into the one of them that is held constant.
Source: `losses.py`; the gradients by hand stand in `_gradients.py`.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _gradients, losses
from ._op import Op, tl, triton
from ._tile_losses import (
    BOOSTED_CE,
    CE,
    KINDS,
    MART_KL,
    SQUARE,
    UNIFORM_CE,
    boosted_ce,
    ce,
    kl,
    load_label,
    load_logits,
    mart_kl,
    square,
    store_grad,
    tile,
    uniform_ce,
)

# by code: a loss, its gradients, whether they take labels after the logits
TERMS: dict[int, tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, ...]], bool]] = {
    KINDS["ce"]: (losses.ce, _gradients.ce, True),
    KINDS["uniform_ce"]: (losses.uniform_ce, _gradients.uniform_ce, False),
    KINDS["boosted_ce"]: (losses.boosted_ce, _gradients.boosted_ce, True),
    KINDS["kl"]: (losses.kl, _gradients.kl, False),
    KINDS["mart_kl"]: (losses.mart_kl, _gradients.mart_kl, True),
    KINDS["square"]: (losses.square, _gradients.square, False),
}


def multi_peer_loss(z: Tensor, y: Tensor, terms: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Unweighted losses [T, B], and dz [N, B, C] like z; losses are differentiable in z, once.

    z: logits of N cells, in any float type
    y: labels int64 [B], in [0, C)
    terms: float32 [T, 5] on z's device, T > 0: kind (a code of KINDS), student's cell, teacher's
        cell (-1 for kinds without one), the one of them without gradient (-1 for neither),
        temperature in [0.001, 1000]; they are not checked
    upstream: [T, B] or [T, 1], the weight of each loss in dz

    losses are float32, or float64 where z is. Raises ValueError for labels of another number.
    """
    if y.shape != z.shape[1:2]:
        raise ValueError(f"labels have shape {tuple(y.shape)}, expected {tuple(z.shape[1:2])}")
    return OP(z, y, terms, upstream)


def multi_peer_loss_reference(
    z: Tensor, y: Tensor, terms: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification of `multi_peer_loss`; half precision is computed in float32."""
    wide = z if z.dtype == torch.float64 else z.float()
    dz, values = torch.zeros_like(wide, memory_format=torch.contiguous_format), []
    for (*codes, temperature), weight in zip(terms.tolist(), upstream, strict=True):
        kind, student, teacher, constant = map(int, codes)
        loss, gradients, labelled = TERMS[kind]
        cells = [student] if teacher < 0 else [teacher, student]
        arguments = [wide[cell] / temperature for cell in cells] + [y] * labelled
        values.append(loss(*arguments))
        for cell, grad in zip(cells, gradients(*arguments), strict=True):
            if cell != constant:
                dz[cell] += weight[:, None] / temperature * grad
    return torch.stack(values), dz.to(z.dtype)


@triton.jit
def _multi_peer_loss_kernel(
    z_ptr,  # [N, B, C], as is dz
    y_ptr,  # [B]
    terms_ptr,  # [T, 5]
    upstream_ptr,  # [T, B] with strides of its own
    losses_ptr,  # [T, B]
    dz_ptr,
    upstream_stride_t,
    upstream_stride_b,
    B,
    C,
    T: tl.constexpr,  # a run has one T
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (i, cell): rows i * BLOCK_R onwards of dz[cell], and the losses of its student.

    A term of two cells is computed once for each, so that no program waits for another.
    A cell that teaches itself is right by itself: such a term is 0, and so is its gradient.
    """
    cell = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    label = load_label(y_ptr, rows, classes, B)
    own = load_logits(z_ptr, cell, rows, classes, B, C)
    grad = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for t in range(T):
        kind = tl.load(terms_ptr + 5 * t).to(tl.int32)
        student = tl.load(terms_ptr + 5 * t + 1).to(tl.int32)
        teacher = tl.load(terms_ptr + 5 * t + 2).to(tl.int32)
        learns = tl.load(terms_ptr + 5 * t + 3).to(tl.int32) != cell
        is_student = student == cell
        if is_student | ((teacher == cell) & learns):
            # exactly 1 where the temperature is
            sharpness = tl.div_rn(1.0, tl.load(terms_ptr + 5 * t + 4))
            z_own = sharpness * own
            if kind == CE:
                value, d_own = ce(z_own, label)
            elif kind == BOOSTED_CE:
                value, d_own = boosted_ce(z_own, label, classes)
            elif kind == UNIFORM_CE:
                value, d_own = uniform_ce(z_own, classes, C)
            else:
                cell_other = tl.where(is_student, teacher, student)
                z_other = sharpness * load_logits(z_ptr, cell_other, rows, classes, B, C)
                if kind == SQUARE:
                    value, d_own = square(z_own, z_other, C)
                else:
                    z_t = tl.where(is_student, z_other, z_own)
                    z_p = tl.where(is_student, z_own, z_other)
                    if kind == MART_KL:
                        value, d_teacher, d_student = mart_kl(z_t, z_p, label)
                    else:
                        value, d_teacher, d_student = kl(z_t, z_p)
                    d_own = tl.where(is_student, d_student, d_teacher)
            weights = upstream_ptr + t * upstream_stride_t + rows * upstream_stride_b
            weight = tl.load(weights, mask=rows < B, other=0.0).to(tl.float32)
            grad += tl.where(learns, (weight * sharpness)[:, None] * d_own, 0.0)
            if is_student:
                tl.store(losses_ptr + t * B + rows, value, mask=rows < B)
    store_grad(dz_ptr, grad, cell, rows, classes, B, C)


def multi_peer_loss_fused(
    z: Tensor, y: Tensor, terms: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """Launches the Triton kernel: one program for each tile of whole rows of a cell."""
    (N, B, C), T = z.shape, len(terms)
    assert y.shape == (B,)
    assert terms.shape == (T, 5)
    values, dz = _outputs(z, y, terms, upstream)
    weights = upstream.expand(T, B)
    launch = tile(B, C)
    _multi_peer_loss_kernel[triton.cdiv(B, launch["BLOCK_R"]), N](
        z.contiguous(),
        y.contiguous(),
        terms.contiguous(),
        weights,
        values,
        dz,
        *weights.stride(),
        B,
        C,
        T,
        **launch,
    )
    return values, dz


def _outputs(z: Tensor, y: Tensor, terms: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    return z.new_empty(len(terms), z.shape[1], dtype=wide), z.new_empty(z.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_values: Tensor | None, d_dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradient in z, by the op itself; none in labels, terms and upstream."""
    if d_dz is not None:
        raise RuntimeError(
            "multi_peer_loss: dz is a gradient and has none itself: differentiate the losses, once"
        )
    dz = None if d_values is None else OP.torch_op(*ctx.saved_tensors, d_values)[1]
    return dz, None, None, None


OP = Op(
    name="multi_peer_loss",
    reference=multi_peer_loss_reference,
    fused=multi_peer_loss_fused,
    fake=_outputs,
)
OP.torch_op.register_autograd(_backward, setup_context=_save)
