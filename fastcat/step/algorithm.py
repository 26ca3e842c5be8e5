"""One step of collaborative adversarial training, as Algorithm 1 of the paper has it.

    attack_views   adversarial images for every peer
    forward        logits of every network on every view that a loss reads: the table z
    losses         all losses, and their gradient in the table
    descend        each peer's backward pass and update

Tensors in and out are on the device and of static shape, and no function waits for the device, so
that the step can be captured as a CUDA graph. K members, B images; z[k, v] are member k's logits on
view v.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import groupby

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
    """Logits on the clean images x, by member, of those whose prediction another's attack moves
    away from.

    Peers are in train mode, without change of BatchNorm's running statistics; teachers in eval
    mode.
    """
    logits: dict[int | None, Tensor] = {}
    for j in team.targets:
        member, bn = team.members[j], "train" if j in team.learners else "eval"
        with attack_mode(member.model, bn), team.precision.autocast():
            logits[j] = member.logits(x)
    return logits


def attack_views(team: Team, batch: Batch, noise: Tensor, turn: int = 0) -> dict[str, Tensor]:
    """All views by name: "clean", and what the attacks find ("adv0", "col0", "which0", ...).

    "target0" holds `clean_logits` of member 0.
    turn: number of the threat model, where a batch has a step for each
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
    """The logit table: each cell forwarded once, in the blueprint's order, peers in train mode."""
    # teachers that attacks ask have been forwarded on the clean images already
    teachers = [k for k in team.targets if k not in team.learners]
    z: dict[Place, Tensor] = {(k, "clean"): views[f"target{k}"] for k in teachers}

    def fill(group: list[int]) -> None:
        for k in group:
            member = team.members[k]
            cells = [cell for cell in team.cells_of(k) if cell.place not in z]
            # one autocast region a member: weights are cast once, for the cells with gradient first
            with team.precision.autocast():
                for (grad, tracked), group_of in groupby(cells, lambda c: (c.grad, c.tracked)):
                    alike = list(group_of)
                    mode = nullcontext() if tracked else attack_mode(member.model, "train")
                    with torch.set_grad_enabled(grad), mode:
                        logits = member.logits_on([views[cell.view] for cell in alike])
                    z.update(zip((cell.place for cell in alike), logits, strict=True))

    team.streams.run(fill)
    return z


def losses(
    team: Team, z: dict[Place, Tensor], batch: Batch, views: dict[str, Tensor]
) -> tuple[Tensor, dict[Place, Tensor]]:
    """The values of team.loss.names, and the gradient of the total loss in each cell's logits."""
    table = torch.stack([z[cell.place].detach() for cell in team.blueprint.cells])
    which = {k: views[f"which{k}"] for k in team.learners if f"which{k}" in views}
    values, dz = team.loss(table, batch.y, team.scaler.scale, batch.y_mixed, batch.share, which)
    return values, {cell.place: dz[n] for n, cell in enumerate(team.blueprint.cells)}


def backward(team: Team, k: int, z: dict[Place, Tensor], dz: dict[Place, Tensor]) -> None:
    """Back-propagate peer k's logits; its optimizer gathers the gradients."""
    optimizer = team.learners[k].optimizer
    optimizer.zero_grad()
    places = [cell.place for cell in team.cells_of(k) if cell.grad]
    torch.autograd.backward(
        [z[place] for place in places],
        [dz[place].to(z[place].dtype) for place in places],
    )
    optimizer.gather()


def perturb(team: Team, batch: Batch, views: dict[str, Tensor]) -> None:
    """Move the weights of peers with AWP from w to w + v; running statistics stay as they are."""
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
    """Within it the weights of peers with AWP are w + v.

    `descend` puts w back, and so does an exception. Without AWP nothing is done.
    """
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
    """Back-propagate every peer from the gradient of its logits, and let the optimizers step."""

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
    """The forwards that methods ask for after the update, for BatchNorm's statistics alone."""

    def log(group: list[int]) -> None:
        for k in group:
            member = team.members[k]
            for view in member.objective.after:
                with team.precision.autocast(), torch.no_grad():
                    member.logits(views[view_name(k, view)])

    team.streams.run(log)


def collaborative_step(team: Team, batch: Batch, noise: Tensor) -> Tensor:
    """Train all peers for one step: the values of team.loss.names.

    A batch with several turns is trained on once for each, and values are their means.
    """
    if team.turns == 1:
        return step_in_turn(team, batch, noise)
    values = [step_in_turn(team, batch, noise, turn).clone() for turn in range(team.turns)]
    return torch.stack(values).mean(0)


def step_in_turn(team: Team, batch: Batch, noise: Tensor, turn: int = 0) -> Tensor:
    """One turn of `collaborative_step`.

    turn: number of the threat model, where a batch has a step for each
    """
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
