"""What is sought before a step: the views that attacks find, for whom and under which threats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.errors import InputError
from fastcat.objectives.objective import Objective
from fastcat.official import ends_official, msd_official, starts_official
from fastcat.pgd import Inner, Network, attack_all, stack_images
from fastcat.plan import view_name
from fastcat.replay import Replay
from fastcat.squeeze import Squeeze, squeeze
from fastcat.threat import Start, ThreatModel, Threats
from fastcat.union import msd, msd_start, worst


class Search(NamedTuple):
    """Peer k's views, by the table's names, and the attack that finds them.

    first: place of its first start noise among those of all searches; target: the teacher whose
    prediction the attack climbs away from, None for its own.
    """

    peer: int
    views: tuple[str, ...]
    inner: Inner | Squeeze
    threats: Threats
    first: int
    target: int | None = None

    @property
    def starts(self) -> list[tuple[ThreatModel, Start]]:
        """The starts that it needs, each in the ball of a threat model."""
        models, start = self.threats.models, self.inner.start
        if self.threats.official:
            return starts_official(self.threats)
        if self.threats.way == "msd":
            assert isinstance(self.inner, Inner)
            return [(models[0], msd_start(self.inner))]
        return [(model, start) for model in models for _ in self.views]


def make_searches(
    objectives: Sequence[Objective], threats: Sequence[Threats], asked: Mapping[int, int]
) -> list[Search]:
    """The searches of all peers, in their order.

    asked: as `Collaboration` has it. Raises InputError for an attack that cannot have several
    starts.
    """
    searches: list[Search] = []
    first = 0
    for k, (objective, of_peer) in enumerate(zip(objectives, threats, strict=True)):
        for own, inner in objective.searches.items():
            if isinstance(inner, Replay):
                # carried along, not sought
                if of_peer.models[0].restarts > 1:
                    raise InputError("free has no start to choose: type --restarts 1")
                continue
            under = of_peer
            if of_peer.way == "avg" and not of_peer.official:
                norm = own[0].partition(".")[0]
                under = Threats((of_peer.models[of_peer.norms.index(norm)],))
            if under.official and (not isinstance(inner, Inner) or inner.loss != "ce"):
                raise InputError(
                    f"threat={under.name} climbs cross-entropy, as its code does, and peer {k} "
                    f"does not: type threat={under.way}, or a method like at"
                )
            fixed = ""
            if under.official:
                fixed = f"{under.name} has the starts of its code"
            elif under.way == "msd":
                fixed = "msd starts once"
            elif isinstance(inner, Squeeze):
                fixed = "st seeks its two views from one start"
            if fixed and under.models[0].restarts > 1:
                raise InputError(f"{fixed}: type --restarts 1")
            if isinstance(inner, Inner):
                under = replace(under, models=tuple(map(inner.under, under.models)))
            views = tuple(view_name(k, view) for view in own)
            aims = isinstance(inner, Inner) and inner.target == "teacher"
            searches.append(Search(k, views, inner, under, first, asked[k] if aims else None))
            first += len(searches[-1].starts)
    return searches


def seek(
    searches: Sequence[Search],
    network_of: Callable[[int, str], Network],
    batch: Batch,
    noise: Tensor,
    grad_scale: float,
    targets: Mapping[int | None, Tensor],
    turn: int = 0,
) -> dict[str, Tensor]:
    """The views that are sought, by name; for `max` also "which0", ...: of each image of peer 0
    [B], the number of the threat model that made its view.

    network_of: what attacks on a peer run on, by their BatchNorm mode; noise: [restarts, S, B, C,
    H, W] for the S starts of all searches; grad_scale: as in `Goal`; targets: clean logits [B,
    classes] by teacher, for the searches that have it as `target`; turn: the threat model of
    avg-official by number. Searches under the same threat model advance together.
    """
    found: dict[str, Tensor] = {}
    climbs: dict[ThreatModel, list[tuple[Search, int]]] = {}
    wanted = {(search.peer, search.inner.bn) for search in searches}
    networks_of = {each: network_of(*each) for each in sorted(wanted)}
    networks = {search: networks_of[search.peer, search.inner.bn] for search in searches}
    for search, network in networks.items():
        inner, way = search.inner, search.threats.way
        if isinstance(inner, Squeeze):
            starts = noise[0, search.first : search.first + len(search.views)]
            both = squeeze(
                network, inner, batch.x, batch.y, search.threats.models[0], starts, grad_scale
            )
            found.update(zip(search.views, both, strict=True))
        elif search.threats.official:
            starts = noise[0, search.first : search.first + len(search.starts)]
            models = search.threats.models
            if way == "msd":
                view = msd_official(network, inner, batch, models, starts, grad_scale)
            else:
                models = models[turn : turn + 1] if way == "avg" else models
                ends = ends_official(network, inner, batch, models, starts, grad_scale)
                view = ends[0]
                if way == "max":
                    view, found[f"which{search.peer}"] = worst(network, inner, batch, ends)
            found[search.views[0]] = view
        elif way == "msd":
            start = noise[0, search.first]
            found[search.views[0]] = msd(
                network,
                inner,
                batch,
                search.threats.models,
                start,
                grad_scale,
                targets.get(search.target),
            )
        else:
            for m, model in enumerate(search.threats.models):
                climbs.setdefault(model, []).append((search, m))
    ends_of: dict[Search, dict[int, Tensor]] = {search: {} for search in searches}
    for model, group in climbs.items():
        x_adv = attack_all(
            [networks[search] for search, _ in group],
            [search.inner for search, _ in group],  # type: ignore[misc]
            batch.x,
            batch.y,
            model,
            torch.stack([noise[:, search.first + m] for search, m in group], 1),
            grad_scale,
            batch.y_mixed,
            batch.share,
            [targets.get(search.target) for search, _ in group],
        )
        for (search, m), end in zip(group, x_adv, strict=True):
            ends_of[search][m] = end
    for search, by_model in ends_of.items():
        if len(by_model) == 1:
            found[search.views[0]] = by_model[0]
        elif by_model:
            assert isinstance(search.inner, Inner)
            candidates = stack_images([by_model[m] for m in range(len(by_model))])
            target = targets.get(search.target)
            view, which = worst(networks[search], search.inner, batch, candidates, target)
            found[search.views[0]], found[f"which{search.peer}"] = view, which
    return found
