"""One step of collaborative adversarial training, as Algorithm 1 of the paper has it.

Device tensors of static shape in, device tensors out; nothing here asks the host a question.
K members, B images; z[k, v] are member k's logits on view v.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor

from fastcat.attacks.modes import attack_mode
from fastcat.batch import Batch
from fastcat.objective import Place, view_name
from fastcat.step.attack_views import find_views
from fastcat.step.team import Team


def start_noise(team: Team, x: Tensor, generator: torch.Generator) -> Tensor:
    """Start noise [restarts, S, B, C, H, W] for the S starts of the team's searches."""
    starts = [start for task in team.blueprint.attacks for start in task.starts]
    if not starts:
        return x.new_empty(0)
    restarts = starts[0][0].restarts
    draws = [
        torch.stack([model.draw_noise(start, x, generator) for model, start in starts])
        for _ in range(restarts)
    ]
    return torch.stack(draws)


@torch.no_grad()
def clean_logits(team: Team, x: Tensor) -> dict[int | None, Tensor]:
    """Of those away from whose predictions attacks climb, their logits on the clean images x.

    In the modes in which they teach: peers by statistics of the batch, as in `forward`, the running
    ones left alone, teachers in eval mode.
    """
    logits: dict[int | None, Tensor] = {}
    for j in team.targets:
        member, bn = team.members[j], "train" if j in team.learners else "eval"
        with attack_mode(member.model, bn), team.precision.autocast():
            logits[j] = member.logits(x)
    return logits


def attack_views(team: Team, batch: Batch, noise: Tensor, turn: int = 0) -> dict[str, Tensor]:
    """All views by name, and what else `seek` finds: the clean images, and what is sought;
    "target0", ...: the `clean_logits` of member 0. turn: as in `Work`.
    """
    views = {"clean": batch.x}
    targets = clean_logits(team, batch.x)
    views.update({f"target{j}": logits for j, logits in targets.items()})

    def attack(group: list[int]) -> None:
        tasks = [task for task in team.blueprint.attacks if task.peer in group]
        states = {k: peer.attack_state for k, peer in team.learners.items()}
        scale = team.precision.attack_scale
        with team.precision.autocast():
            views.update(
                find_views(tasks, team.attacked, batch, noise, states, targets, scale, turn)
            )

    team.streams.run(attack)
    return views


def forward(team: Team, views: dict[str, Tensor]) -> dict[Place, Tensor]:
    """The logit table, one forward a cell, in the plan's order: peers in train mode."""
    # what is not trained has said it before the attack
    said = [k for k in team.targets if k not in team.learners]
    z: dict[Place, Tensor] = {(k, "clean"): views[f"target{k}"] for k in said}

    def fill(group: list[int]) -> None:
        for k in group:
            member = team.members[k]
            # one autocast region a member: weights are cast once, for the cells with gradient first
            with team.precision.autocast():
                for cell in team.cells_of(k):
                    if cell.place in z:
                        continue
                    mode = nullcontext() if cell.tracked else attack_mode(member.model, "train")
                    with torch.set_grad_enabled(cell.grad), mode:
                        z[cell.place] = member.logits(views[cell.view])

    team.streams.run(fill)
    return z


def losses(
    team: Team, z: dict[Place, Tensor], batch: Batch, views: dict[str, Tensor]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """The values of team.loss.names, and the gradients of the logits."""
    table = torch.stack([z[cell.place].detach() for cell in team.blueprint.cells])
    which = {k: views[f"which{k}"] for k in team.learners if f"which{k}" in views}
    values, dz = team.loss(table, batch.y, team.scaler.scale, batch.y_mixed, batch.share, which)
    return values, {cell.place: dz[n] for n, cell in enumerate(team.blueprint.cells)}


def backward(team: Team, k: int, z: dict[Place, Tensor], dz: dict[Place, Tensor]) -> None:
    """Peer k's gradients from those of its logits, gathered in its optimizer."""
    optimizer = team.learners[k].optimizer
    optimizer.zero_grad()
    places = [cell.place for cell in team.cells_of(k) if cell.grad]
    torch.autograd.backward(
        [z[place] for place in places],
        [dz[place].to(z[place].dtype) for place in places],
    )
    optimizer.gather()


def perturb(team: Team, batch: Batch, views: dict[str, Tensor]) -> None:
    """Weights of peers with AWP from w to w + v; running statistics stay as they are."""
    with ExitStack() as modes:
        for peer in team.peers:
            modes.enter_context(attack_mode(peer.model, "train"))
        z = forward(team, views)
    _, dz = losses(team, z, batch, views)

    def climb(group: list[int]) -> None:
        for k in group:
            peer = team.learners.get(k)
            if peer is not None and peer.awp is not None:
                backward(team, k, z, dz)
                peer.awp.perturb()
                peer.optimizer.zero_grad()
                # a view may gather its gradient for the attack
                for task in team.attacks_on(k):
                    for view in task.views:
                        views[view].grad = None

    team.streams.run(climb)


@contextmanager
def perturbed(team: Team, batch: Batch, views: dict[str, Tensor]) -> Iterator[None]:
    """At w + v, until `descend` or an exception restores w; without AWP nothing is done."""
    perturbations = [peer.awp for peer in team.peers if peer.awp is not None]
    try:
        if perturbations:
            with team.weights_cached(True):
                perturb(team, batch, views)
        yield
    finally:
        for perturbation in perturbations:
            perturbation.undo()


def descend(
    team: Team,
    z: dict[Place, Tensor],
    dz: dict[Place, Tensor],
    batch: Batch,
    views: dict[str, Tensor],
) -> None:
    """Backward through every peer from the gradient of its logits, and the optimizers' steps."""

    def update(group: list[int]) -> None:
        for k in group:
            peer = team.learners.get(k)
            if peer is None:
                continue
            backward(team, k, z, dz)
            if peer.awp is not None:
                peer.awp.restore(team.scaler.scale)
            team.scaler.step(peer.optimizer)
            for task in team.attacks_on(k):
                task.attack.after_backward(task, views, batch.x, peer.attack_state)

    team.streams.run(update)
    team.scaler.update()


def forward_after(team: Team, views: dict[str, Tensor]) -> None:
    """What methods forward after the update, in train mode, for BatchNorm's statistics alone."""

    def log(group: list[int]) -> None:
        for k in group:
            member = team.members[k]
            for view in member.objective.after:
                with team.precision.autocast(), torch.no_grad():
                    member.logits(views[view_name(k, view)])

    team.streams.run(log)


def collaborative_step(team: Team, batch: Batch, noise: Tensor) -> Tensor:
    """Attack, forward, loss, backward and update of all peers; the values of team.loss.names.

    Where a batch has several turns, all of it for each, and the mean of the values.
    """
    if team.turns == 1:
        return step_in_turn(team, batch, noise)
    values = [step_in_turn(team, batch, noise, turn).clone() for turn in range(team.turns)]
    return torch.stack(values).mean(0)


def step_in_turn(team: Team, batch: Batch, noise: Tensor, turn: int = 0) -> Tensor:
    """`collaborative_step` in one turn, numbered as in `Work`."""
    with team.weights_cached(False):
        views = attack_views(team, batch, noise, turn)
    # no peer's weights are read after its update
    with perturbed(team, batch, views), team.weights_cached(True):
        z = forward(team, views)
        values, dz = losses(team, z, batch, views)
        descend(team, z, dz, batch, views)
    with team.weights_cached(False):
        forward_after(team, views)
    return values
