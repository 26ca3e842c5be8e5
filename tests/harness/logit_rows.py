"""Logits and labels of tests that need no network."""

import torch
from torch import Tensor

from fastcat.objectives import make_objective

B, C = 9, 6
SEEDS = {"clean": 0, "adv": 1, "col": 2, "teacher.clean": 3, "teacher.adv": 4}


def logits(seed: int, size: float = 2.0) -> Tensor:
    """A float64 leaf [B, C]."""
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(B, C, generator=generator, dtype=torch.float64)).requires_grad_()


def labels() -> Tensor:
    return torch.randint(C, (B,), generator=torch.Generator().manual_seed(7))


def rows(name: str) -> dict[str, Tensor]:
    """Logits by view as the objective wants them; those of a teacher are no leaves."""
    objective = make_objective(name, {})
    read = {cell: logits(SEEDS[cell]).detach() for cell in objective.reads}
    return {view: logits(SEEDS[view]) for view in objective.views} | read
