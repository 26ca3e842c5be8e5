"""Which attacks a step runs, and the views that they find."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fastcat.attacks.modes import Network
from fastcat.attacks.threat import Threats
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.batch import Batch
from fastcat.objective import Objective, view_name


def make_attacks(
    objectives: Sequence[Objective], threats: Sequence[Threats], teacher_of: Mapping[int, int]
) -> list[PeerAttack]:
    """The attacks on all members, in their order.

    objectives, threats: of each member
    teacher_of: of each peer whose objective reads a teacher, that teacher's number

    Raises InputError for an attack that cannot run under the peer's threat models.
    """
    attacks: list[PeerAttack] = []
    first = 0
    for k, (objective, of_peer) in enumerate(zip(objectives, threats, strict=True)):
        for own, attack in objective.attacks.items():
            under = of_peer
            if of_peer.name == "avg":
                norm = own[0].partition(".")[0]
                under = Threats((of_peer.models[of_peer.norms.index(norm)],))
            attack.check(under, k)
            views = tuple(view_name(k, view) for view in own)
            teacher = teacher_of[k] if attack.target == "teacher" else None
            attacks.append(PeerAttack(k, views, attack, attack.explored(under), first, teacher))
            first += len(attacks[-1].starts)
    return attacks


def find_views(
    attacks: Sequence[PeerAttack],
    network_of: Callable[[int, str], Network],
    batch: Batch,
    noise: Tensor,
    states: Mapping[int, dict[str, Tensor]],
    targets: Mapping[int | None, Tensor],
    grad_scale: float,
    turn: int = 0,
) -> dict[str, Tensor]:
    """All that these attacks find, by name, as in `TrainingAttack.find`.

    network_of: what attacks on a peer run on, by their BatchNorm mode
    batch, noise, states, targets, grad_scale, turn: as in `Work`
    """
    wanted = {(task.peer, task.attack.bn) for task in attacks}
    networks_of = {each: network_of(*each) for each in sorted(wanted)}
    networks = {task: networks_of[task.peer, task.attack.bn] for task in attacks}
    work = Work(batch, noise, networks, states, targets, grad_scale, turn)
    families: dict[type[TrainingAttack], list[PeerAttack]] = {}
    for task in attacks:
        families.setdefault(task.attack.family(), []).append(task)
    found: dict[str, Tensor] = {}
    for family, tasks in families.items():
        found |= family.find_all(tasks, work)
    return found
