"""Hard inputs for the two ops on logits, and their launchers held against float64 on them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastcat.kernels._op import Op
from fastcat.kernels.attack_logit_grad import OP as ATTACK_LOGIT_GRAD
from fastcat.kernels.multi_peer_loss import KINDS
from fastcat.kernels.multi_peer_loss import OP as MULTI_PEER_LOSS
from tests.harness.kernel_comparison import results

CONTENTS = ["random", "extreme", "constant", "sure"]
ATTACKS = ["ce", "kl", "boosted_ce", "margin", "dlr"]
SINGLES = ["ce", "boosted_ce", "uniform_ce"]
PAIRS = ["kl", "mart_kl", "square"]


class Case(NamedTuple):
    shape: tuple[int, int, int]
    content: str
    dtype: torch.dtype


def logits(shape: tuple[int, int, int], content: str, y: Tensor) -> Tensor:
    """[N, B, C] in float64; no two of a row's four largest are equal, whatever the dtype.

    extreme: up to 1e4; constant: all slabs and all classes equal; sure: p_y is 1 in float32 in
    every other slab.
    """
    N, B, C = shape
    generator = torch.Generator().manual_seed(N * B * C)
    if content == "constant":
        return torch.full(shape, 3.0, dtype=torch.float64)
    z = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(max=2.5)
    places = torch.rand(shape, generator=generator).topk(min(C, 4), dim=2).indices
    largest = torch.tensor([4.5, 4.0, 3.5, 3.0], dtype=torch.float64)
    z.scatter_(2, places, largest[: min(C, 4)].expand(places.shape))
    if content == "extreme":
        z = (2000 * z).clamp(-1e4, 1e4)
    if content == "sure":
        z[::2].scatter_(2, y.expand(N, B)[::2, :, None], 200.0)
    return z


def strided(x: Tensor) -> Tensor:
    """The values of x, no dimension where it would be in a contiguous tensor."""
    return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))


def every_term(cells: int) -> Tensor:
    """Every kind, each pair of cells both ways, neither or one constant, cells by themselves.

    Temperatures are 1 and 4 in turn.
    """
    rows = [(KINDS[kind], cell, -1, -1) for cell in range(cells) for kind in SINGLES]
    rows += [
        (KINDS[kind], student, teacher, constant)
        for student in range(cells)
        for teacher in range(cells)
        for constant in (-1, teacher, student)
        for kind in PAIRS
    ]
    return torch.tensor([(*row, 1 + 3 * (i % 2)) for i, row in enumerate(rows)]).float()


def attack_kinds(case: Case, first: int) -> list[int]:
    """One kind a peer, from the `first`; dlr's gradient at equal logits would drown every other."""
    with_dlr = case.shape[2] > 2 and case.content != "constant"
    names = [name for name in ATTACKS if name != "dlr" or with_dlr]
    return [KINDS[names[(first + k) % len(names)]] for k in range(case.shape[0])]


def assert_close(fused: Tensor, plain: Tensor, gold: Tensor) -> None:
    """No worse than twice the reference in the case's dtype, slab by slab; no slack is chosen."""
    assert fused.dtype == plain.dtype
    assert fused.shape == gold.shape
    assert gold.isfinite().all()
    fused, plain = fused.double().cpu(), plain.double().cpu()
    for slab, (f, p, g) in enumerate(zip(fused, plain, gold, strict=True)):
        error, bound = (f - g).abs().max(), 2 * (p - g).abs().max()
        bound += 8 * 2**-24 * max(1.0, g.abs().max().item())
        assert error <= bound, f"slab {slab}: off by {error:.3g}, allowed {bound:.3g}"


def launched(op: Op, *args: Any) -> list[Tensor]:
    return [*results(op, op.fused, args).values()]


def labels(case: Case) -> Tensor:
    return torch.arange(case.shape[1]) * 7 % case.shape[2]


def check_attack(case: Case, device: str) -> None:
    """dz of every kind, peers of different kinds side by side."""
    y = labels(case)
    z = logits(case.shape, case.content, y).to(case.dtype)
    clean = logits(case.shape, "random", y).flip(1).to(case.dtype)
    if case.content == "random":
        z, clean = strided(z), strided(clean.float())
    for first in range(0, len(ATTACKS), case.shape[0]):
        kinds = attack_kinds(case, first)
        gold = ATTACK_LOGIT_GRAD.reference(z.double(), y, clean.double(), kinds, 0.75)
        plain = ATTACK_LOGIT_GRAD.reference(z, y, clean, kinds, 0.75)
        inputs = [x.to(device) for x in (z, y, clean)]
        (fused,) = launched(ATTACK_LOGIT_GRAD, *inputs, kinds, 0.75)
        assert_close(fused, plain, gold)


def check_sum(case: Case, device: str) -> None:
    """Many terms at once, weighted image by image or by one weight each; and weights of 0."""
    y = labels(case)
    z = logits(case.shape, case.content, y).to(case.dtype)
    # every fifth is quicker, and 5 shares no factor with the 9 combinations of kind and constant
    terms = every_term(case.shape[0])[:: 5 if case.shape[0] > 1 else 1]
    upstream = torch.linspace(-1, 2, len(terms))[:, None]
    if case.content == "random":
        z = strided(z)
    else:
        upstream = upstream * torch.linspace(0.5, 1, case.shape[1])
    gold = MULTI_PEER_LOSS.reference(z.double(), y, terms, upstream.double())
    plain = MULTI_PEER_LOSS.reference(z, y, terms, upstream)
    inputs = [x.to(device) for x in (z, y, terms)]
    fused = launched(MULTI_PEER_LOSS, *inputs, upstream.to(device))
    unweighted = launched(MULTI_PEER_LOSS, *inputs, upstream.to(device) * 0)
    for values in zip(fused, plain, gold, strict=True):
        assert_close(*values)
    assert torch.equal(unweighted[0], fused[0])
    assert not unweighted[1].any()


def check_each_term(case: Case, device: str) -> None:
    """One term at a time, where no other hides it; cells that it does not touch get zeros."""
    y = labels(case)
    z = logits(case.shape, case.content, y).to(case.dtype)
    upstream = torch.full((1, case.shape[1]), 2.0)
    for term in every_term(case.shape[0]).split(1):
        gold = MULTI_PEER_LOSS.reference(z.double(), y, term, upstream.double())
        plain = MULTI_PEER_LOSS.reference(z, y, term, upstream)
        inputs = [x.to(device) for x in (z, y, term, upstream)]
        fused = launched(MULTI_PEER_LOSS, *inputs)
        for values in zip(fused, plain, gold, strict=True):
            assert_close(*values)
        _, student, teacher, constant, _ = term[0].tolist()
        touched = {student, teacher} - {constant}
        for cell in set(range(case.shape[0])) - touched:
            assert not fused[1][cell].any()
