"""How a GPU executes the steps of a team: what changes the speed and not the result.

No choice is best on every GPU, so they are measured there, once: what was found is kept for the
next run of such a team on such a GPU.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from fastcat.attacks.frozen import Epilogue
from fastcat.environment import package_version
from fastcat.errors import InputError
from fastcat.files import write_text
from fastcat.kernels._native import kept_file
from fastcat.step.apex_sgd import why_no_apex
from fastcat.step.streams import Streams
from fastcat.step.team import Team


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was chosen.

    merged: whether peers train on the views of a step at once (step/merged_views.py)
    epilogue: what follows a convolution of an attacked network (attacks/frozen.py)
    side_by_side: whether each member has a stream of its own
    compiled: whether Inductor compiles the networks
    """

    merged: bool = False
    epilogue: Epilogue = "kernel"
    side_by_side: bool = True
    compiled: bool = False

    def __str__(self) -> str:
        views = "views merged" if self.merged else "view by view"
        streams = "a stream a peer" if self.side_by_side else "one stream"
        compiled = ", compiled" if self.compiled else ""
        return f"{views}, epilogue by {self.epilogue}, {streams}{compiled}"


# in the order of what they may gain, each with the alternatives to try
CHOICES: dict[str, tuple[Any, ...]] = {
    "merged": (False, True),
    "epilogue": ("kernel", *(name for name in get_args(Epilogue) if name != "kernel")),
    "side_by_side": (True, False),
}


def choices_for(team: Team) -> dict[str, tuple[Any, ...]]:
    """The alternatives that a team may be tried with: apex's where it is, and in float16."""
    apex = team.precision.dtype == torch.float16 and why_no_apex() is None
    epilogues = [name for name in CHOICES["epilogue"] if apex or name != "apex"]
    return {**CHOICES, "epilogue": tuple(epilogues)}


def follow(plan: Plan, team: Team, example: Tensor) -> list[str]:
    """Let a team's steps be executed so; a line for each thing that cannot be had.

    example: two images or more [B, C, H, W] like those of the steps, on the device
    """
    everyone = list(range(len(team.members)))
    groups = [[k] for k in everyone] if plan.side_by_side else [everyone]
    team.streams = Streams(groups, example.device)
    remarks = []
    # networks that draw numbers of their own, as by dropout, are tried out
    with torch.random.fork_rng([example.device] if example.is_cuda else []):
        for peer in team.peers:
            if peer.frozen is not None and not peer.frozen.use(plan.epilogue):
                remarks.append(
                    f"{peer.name} ({peer.arch}) is attacked with torch's own bias, sum and ReLU: "
                    f"by {plan.epilogue} they give something else"
                )
        if plan.merged:
            remarks += team.merge_views(example)
        else:
            team.part_views()
    return remarks


@dataclass(frozen=True)
class Measured:
    """The fastest plan, and what each that was tried took, in milliseconds a step or as the error
    that kept it from running.
    """

    plan: Plan
    steps: dict[str, float | str]

    def ranked(self) -> list[tuple[str, float | str]]:
        """The plans that were tried, the fastest first; last those that failed."""
        return sorted(
            self.steps.items(), key=lambda item: (isinstance(item[1], str), item[1], item[0])
        )

    def to_dict(self) -> dict[str, Any]:
        return {"plan": asdict(self.plan), "steps": self.steps}


def search(
    milliseconds: Callable[[Plan], float], begin: Plan, choices: Mapping[str, Sequence[Any]]
) -> Measured:
    """Try the alternatives of one choice after the other, from the best plan so far.

    milliseconds: of a step; what it raises, as where a step cannot be captured, rules a plan out
    choices: values to try, by field of a plan
    """
    steps: dict[str, float | str] = {}

    def tried(plan: Plan) -> float:
        try:
            steps[str(plan)] = taken = milliseconds(plan)
        except Exception as error:  # whatever a compiler can come up with
            steps[str(plan)] = (str(error).strip() or type(error).__name__).splitlines()[0]
            return float("inf")
        return taken

    best, least = begin, tried(begin)
    for name, values in choices.items():
        for value in values:
            plan = replace(best, **{name: value})
            if str(plan) in steps:
                continue
            taken = tried(plan)
            if taken < least:
                best, least = plan, taken
    return Measured(best, steps)


FILE = "plans.json"


def key_of(team: Team, batch_size: int, example: Tensor) -> str:
    """What a plan is kept by: the GPU, the versions, the team and the shape of its batches.

    example: images [B, C, H, W] like those of the steps, on the device
    """
    gpu = torch.cuda.get_device_name(example.device) if example.is_cuda else example.device.type
    versions = [f"{name} {package_version(name)}" for name in ("torch", "triton")]
    members = [f"{member.name} {member.arch}" for member in team.members]
    shape = "x".join(map(str, (batch_size, *example.shape[1:])))
    cells = f"{len(team.blueprint.cells)} cells"
    return ", ".join([gpu, *versions, *members, cells, team.precision.name, shape])


def recall(key: str) -> Measured | None:
    """What was measured for a key; None where nothing was, or the file cannot be read."""
    path = kept_file(FILE)
    try:
        found = json.loads(path.read_text("utf-8"))[key] if path else {}
        return Measured(Plan(**found["plan"]), dict(found["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(key: str, measured: Measured) -> None:
    """Keep it for the next run, where something ran and a file can be written."""
    path = kept_file(FILE)
    if path is None or not any(isinstance(taken, float) for taken in measured.steps.values()):
        return
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(path, json.dumps(known | {key: measured.to_dict()}, indent=1) + "\n")
    except (OSError, InputError):
        return
