"""What all peers descend, as one function of the logit table.

All peers descend the sum of their losses, so one gradient of the table serves them all; where other
peers' logits are constants in a peer's loss, each descends its own alone. Terms of `fastcat.terms`
are computed by one kernel, an objective of another kind (a method of one's own) by autograd on its
row of the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastcat.batch import by_share
from fastcat.errors import InputError
from fastcat.guard import answers
from fastcat.objective import Place, own_views
from fastcat.step.blueprint import Blueprint
from fastcat.step.cells import places_of
from fastcat.terms import Sum, Term, TermTable


class TableLoss:
    """All losses of a team as one function of the logit table.

    names: of the values, as "0-trades/kl": each term as its objective weighted it, the guidance,
        the total loss, and the accuracy on the view that attacks made; teachers have none
    mixed: whether images may be mixed of two; InputError for a peer whose loss is a function of its
        own, which gives means over the batch where single images are needed
    """

    def __init__(
        self,
        blueprint: Blueprint,
        peer_names: Sequence[str],
        classes: int,
        device: torch.device,
        dtype: torch.dtype,
        mixed: bool = False,
    ) -> None:
        objectives, collaboration = blueprint.objectives, blueprint.collaboration
        places = [cell.place for cell in blueprint.cells]
        terms: list[Term] = []
        self.own: list[tuple[float, Callable, dict[str, int], tuple[str, ...]]] = []
        self.names: list[str] = []
        # what is measured: terms, terms of functions of one's own, accuracies; each counts, times
        # a factor, towards some values
        by_term: list[dict[str, float]] = []
        by_own: list[dict[str, float]] = []
        # the epochs before which the terms are left out
        term_begins: list[int] = []
        own_begins: list[int] = []
        for k, (peer, objective) in enumerate(zip(peer_names, objectives, strict=True)):
            if not objective.views:
                continue
            total, alpha = f"{peer}/loss", collaboration.objective_weights[k]
            cells, begins = places_of(k, objectives, collaboration.teacher_of), objective.begins
            if isinstance(objective.outer, Sum):
                for term in objective.outer.terms:
                    term = term.of_classes(classes)
                    terms.append(_placed(term, cells, k, alpha))
                    by_term.append({f"{peer}/{term.name}": term.weight, total: alpha * term.weight})
                    term_begins.append(begins.get(term.name, 0))
                reported = [term.name for term in objective.outer.terms]
            elif mixed:
                raise InputError(
                    f"{peer} cannot train on mixed images: its loss is a function of its own, "
                    "expected one put together from fastcat.terms; or mix no images"
                )
            else:
                slabs = {view: places.index(cell) for view, cell in cells.items()}
                self.own.append((alpha, objective.outer, slabs, objective.views))
                sample = {view: torch.zeros(2, classes, device=device) for view in cells}
                labels = torch.zeros(2, dtype=torch.int64, device=device)
                reported = list(objective.outer(sample, labels))
                by_own += [{f"{peer}/{name}": 1.0, total: alpha} for name in reported]
                own_begins += [begins.get(name, 0) for name in reported]
            if not begins.keys() <= set(reported):
                raise InputError(
                    f"{peer}: begins names {list(begins)}, expected some of {reported}"
                )
            for term in collaboration.guidance[k].terms:
                terms.append(term)
                by_term.append({f"{peer}/guidance": term.weight, total: term.weight})
                term_begins.append(0)
                reported.append("guidance")
            names = dict.fromkeys([*reported, "loss", "accuracy"])
            self.names += [f"{peer}/{name}" for name in names]
        tested = [
            ((k, view), {f"{peer_names[k]}/accuracy": 1 / len(objective.tested_on)})
            for k, objective in enumerate(objectives)
            if objective.views
            for view in own_views(k, objective)
        ]
        counts_towards = [*by_term, *by_own, *(counts for _, counts in tested)]
        self.report = torch.tensor(
            [[names.get(name, 0.0) for names in counts_towards] for name in self.names],
            dtype=dtype,
            device=device,
        )
        self.terms = TermTable(terms, places, device)
        self.weights = torch.tensor([term.weight for term in terms], dtype=dtype, device=device)
        self.begins = [(n, epoch) for n, epoch in enumerate([*term_begins, *own_begins]) if epoch]
        # 1 for what counts: on the device, so that a captured step follows the epochs
        self.counting = torch.ones(len(counts_towards), dtype=dtype, device=device)
        self.set_epoch(0)
        # terms that count some images alone: their numbers, the peers whose threat models make the
        # images, and the numbers of these
        self.only = [
            (n, term.student[0], term.only) for n, term in enumerate(terms) if term.only is not None
        ]
        self.tested = torch.tensor([places.index(place) for place, _ in tested], device=device)

    def set_epoch(self, finished: int) -> None:
        """Terms count that begin after so many finished epochs, or fewer."""
        for n, begin in self.begins:
            self.counting[n].fill_(float(finished >= begin))

    def __call__(
        self,
        z: Tensor,
        y: Tensor,
        scale: Callable[[Tensor], Tensor],
        y_mixed: Tensor | None = None,
        share: Tensor | None = None,
        which: Mapping[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The values [names], and the gradient of the sum of all total losses, like z.

        z: logits [N, B, C], a slab for each cell of the blueprint
        y: labels [B]
        scale: applied to the losses before their gradient, against underflow
        y_mixed, share: of a `Batch`; the accuracy counts the label with the larger share
        which: by peer the numbers [B] of the threat models that made its images, for terms with
            `only`
        """
        weights = self.weights * self.counting[: len(self.weights)]
        upstream = scale(weights / len(y))[:, None].expand(-1, len(y))
        if self.only:
            assert which is not None
            counted = torch.ones_like(upstream)
            for n, k, number in self.only:
                counted[n] = which[k] == number
            upstream = upstream * counted
        losses, dz = self.terms(z, y, upstream)
        if y_mixed is not None and share is not None:
            assert not self.own
            other_losses, other_dz = self.terms(z, y_mixed, upstream)
            losses = by_share(losses, other_losses, share)
            dz = by_share(dz, other_dz, share[:, None])
            y = torch.where(share < 0.5, y_mixed, y)
        if self.only:
            losses = torch.where(counted == 0, 0, losses)
        hits = answers(z.index_select(0, self.tested)) == y
        measured, count = [losses.mean(1)], len(self.weights)
        for alpha, outer, cells, views in self.own:
            row = {v: z[n].detach().to(losses.dtype) for v, n in cells.items()}
            learning = [row[v].requires_grad_() for v in views]
            with torch.enable_grad():
                own_terms = torch.stack(list(outer(row, y).values()))
                counting = self.counting[count : count + len(own_terms)]
                total = scale(alpha * (counting * own_terms).sum())
            # a view may be forwarded for BatchNorm's sake alone
            grads = torch.autograd.grad(total, learning, materialize_grads=True)
            for view, grad in zip(views, grads, strict=True):
                dz[cells[view]] += grad
            measured.append(own_terms.detach())
            count += len(own_terms)
        measured.append(hits.to(losses.dtype).mean(1))
        # what a value does not count may be infinite, and 0 times that is NaN
        report = self.report * self.counting
        return torch.where(report == 0, 0, report * torch.cat(measured)).sum(1), dz


def _placed(term: Term, cells: dict[str, Place], k: int, weight: float) -> Term:
    """A term of peer k's objective with its cells as places in the table; a teacher's logits are
    constant.
    """
    student = cells[term.student]
    teacher = None if term.teacher is None else cells[term.teacher]
    constant = term.constant
    if teacher is not None and teacher[0] != k:
        constant = "teacher"
    elif student[0] != k:
        constant = "student"
    return replace(
        term, student=student, teacher=teacher, constant=constant, weight=weight * term.weight
    )
