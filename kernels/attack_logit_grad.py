"""Gradients in the logits of what each attacked peer's adversary climbs, for all peers at once.

    dz[k, b] = scale * d loss_k(z[k, b], target) / d z[k, b]
    loss_k: ce, boosted_ce, margin, dlr with the labels, kl = KL(softmax(clean[k]) || softmax(z[k]))

PGD needs no loss value, and from these logit gradients on the backward is the network's alone.
Source: `losses.py`; the gradients by hand stand in `_gradients.py`.
"""

# mypy: allow-untyped-defs
# (Triton's arguments have no Python types)

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import _gradients
from ._op import Op, tl, triton
from ._tile_losses import (
    BOOSTED_CE,
    CE,
    DLR,
    KINDS,
    KL,
    boosted_ce,
    ce,
    dlr,
    kl,
    load_label,
    load_logits,
    margin,
    store_grad,
    tile,
)

# by code: the gradient of logits z, labels y and clean logits, z's last
CLIMBED: dict[int, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]] = {
    KINDS["ce"]: lambda z, y, clean: _gradients.ce(z, y),
    KINDS["boosted_ce"]: lambda z, y, clean: _gradients.boosted_ce(z, y),
    KINDS["kl"]: lambda z, y, clean: _gradients.kl(clean, z),
    KINDS["margin"]: lambda z, y, clean: _gradients.margin(z, y),
    KINDS["dlr"]: lambda z, y, clean: _gradients.dlr(z, y),
}
# 4 bits a peer in a signed argument of 64
MOST_PEERS = 15


def _check(z: Tensor, y: Tensor, kinds: Sequence[int]) -> None:
    """Raise ValueError for labels and kinds that do not fit z [K, B, C]."""
    peers, images, classes = z.shape
    if y.shape != (images,):
        raise ValueError(f"labels have shape {tuple(y.shape)}, expected ({images},)")
    if len(kinds) != peers or peers > MOST_PEERS or not CLIMBED.keys() >= set(kinds):
        raise ValueError(
            f"kinds are {list(kinds)}, expected one of {sorted(CLIMBED)} for each of {peers} peers,"
            f" {MOST_PEERS} at most"
        )
    if KINDS["dlr"] in kinds and classes < 3:
        raise ValueError(f"dlr needs the third largest logit: expected 3 classes, got {classes}")


def attack_logit_grad(
    z: Tensor, y: Tensor, clean: Tensor, kinds: Sequence[int], scale: float
) -> Tensor:
    """The gradient dz of the climbed losses, like z.

    z: logits [K, B, C] of K attacked peers, in any float type
    y: labels int64 [B], in [0, C)
    clean: clean logits [K, B, C], read for peers that climb kl
    kinds: a code of KINDS for each peer
    scale: factor of the losses

    Raises ValueError for labels and kinds that do not fit z, and for dlr without three classes.
    """
    return OP(z, y, clean, list(kinds), scale)


def attack_logit_grad_reference(
    z: Tensor, y: Tensor, clean: Tensor, kinds: list[int], scale: float
) -> Tensor:
    """The specification of `attack_logit_grad`; half precision is computed in float32."""
    _check(z, y, kinds)
    wide = z if z.dtype == torch.float64 else z.float()
    grads = [CLIMBED[kind](wide[k], y, clean[k].to(wide))[-1] for k, kind in enumerate(kinds)]
    return (scale * torch.stack(grads)).to(z.dtype)


@triton.jit(do_not_specialize=["kinds"])
def _attack_logit_grad_kernel(
    z_ptr,  # [K, B, C], as are clean and dz
    y_ptr,  # [B]
    clean_ptr,
    dz_ptr,
    kinds,
    scale,
    B,
    C,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (i, k): rows i * BLOCK_R onwards of peer k."""
    k = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    kind = (kinds.to(tl.int64) >> (4 * k)) & 15
    logits = load_logits(z_ptr, k, rows, classes, B, C)
    label = load_label(y_ptr, rows, classes, B)
    if kind == CE:
        _value, grad = ce(logits, label)
    elif kind == BOOSTED_CE:
        _value, grad = boosted_ce(logits, label, classes)
    elif kind == KL:
        target = load_logits(clean_ptr, k, rows, classes, B, C)
        _value, _d_teacher, grad = kl(target, logits)
    elif kind == DLR:
        _value, grad = dlr(logits, label, classes)
    else:
        _value, grad = margin(logits, label, classes)
    store_grad(dz_ptr, scale * grad, k, rows, classes, B, C)


def attack_logit_grad_fused(
    z: Tensor, y: Tensor, clean: Tensor, kinds: list[int], scale: float
) -> Tensor:
    """Launches the Triton kernel: one program for each tile of whole rows of a peer."""
    _check(z, y, kinds)
    K, B, C = z.shape
    assert clean.shape == z.shape
    dz = z.new_empty(z.shape)
    packed = sum(kind << (4 * k) for k, kind in enumerate(kinds))
    launch = tile(B, C)
    _attack_logit_grad_kernel[triton.cdiv(B, launch["BLOCK_R"]), K](
        z.contiguous(),
        y.contiguous(),
        clean.contiguous(),
        dz,
        packed,
        scale,
        B,
        C,
        **launch,
    )
    return dz


OP = Op(
    name="attack_logit_grad",
    reference=attack_logit_grad_reference,
    fused=attack_logit_grad_fused,
    fake=lambda z, y, clean, kinds, scale: z.new_empty(z.shape),
)
