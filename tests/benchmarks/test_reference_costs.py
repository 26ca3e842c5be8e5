"""The loops we are timed beside: as wasteful as published, and only that."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tests.reference.squeeze as oracle
from fastcat.benchmarks.methods import METHODS, reference_for
from fastcat.benchmarks.reference import mixed
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.benchmarks.reference.squeeze import SqueezeLoop
from fastcat.config.peers import parse_peers
from tests.harness.networks import images, tiny_net
from tests.harness.watched import ATTACK, start_noise, watched
from tests.reference.losses import OBJECTIVES

pytestmark = pytest.mark.usefixtures("one_thread")

WatchedPlain = watched(PlainLoop)


class Work(TorchDispatchMode):
    """Counts the calls of convolutions behind the first: TinyNet has two."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.activations = self.weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[0].shape[1] != 3:
            self.forwards += 1
        if func is torch.ops.aten.convolution_backward.default and args[1].shape[1] != 3:
            activations, weights, _ = args[-1]
            self.activations += activations
            self.weights += weights
        return func(*args, **(kwargs or {}))


def work(function: Callable[..., object], *args: Any) -> tuple[float, float, float]:
    """Forwards of the batch through a network, backwards of activations and of weights."""
    with Work() as counted:
        function(*args)
    return counted.forwards / 2, counted.activations / 2, counted.weights / 2


# in a step with 10 attack steps
WORK = {
    "at": (13, 11, 11),
    "trades": (23, 13, 3),
    "alp": (12, 12, 12),
    "mart": (12, 12, 2),
    "at-awp": (14, 12, 12),
    "trades-awp": (26, 16, 6),
    "fast": (2, 2, 2),
    "n-fgsm": (2, 2, 1),
    "free": (1, 1, 1),
    "cat": (37, 24, 14),
    "cat-official": (37, 24, 14),
    # 2 (10 + 1)
    "pgd-cw": (22, 22, 22),
    # 2 (10 + 1 + 1 of the clean images)
    "mat": (24, 22, 2),
    # 3 (20 + 1), 60 + 3 + 1, 10 (1 + 3) + 1
    "at-avg": (63, 33, 33),
    "at-max": (64, 31, 31),
    "at-msd": (41, 11, 11),
    # specialists 3 (20 + 1), clean images 4, and the generalist as above
    "mat-mp-avg": (130, 66, 66),
    "mat-mp-max": (131, 64, 64),
    "mat-mp-msd": (108, 44, 44),
    "ard": (13, 12, 2),
    "rslad": (13, 12, 2),
    "iad": (15, 13, 3),
    "act": (12, 12, 2),
}
TEAMS = {
    "natural": (1, 1, 1),
    # attacks 20 + 10 + 10, own views 2 + 2 + 1, 3 * 2 of others, 1 for the log
    "trades,alp,at": (52, 35, 25),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "mixed"])
@pytest.mark.parametrize("name", [*WORK, *TEAMS])
def test_a_step_costs_what_the_published_one_does(name: str, form: str) -> None:
    peers, collab = (METHODS[name].peers, METHODS[name].collab) if name in WORK else (name, "cat")
    specs = parse_peers(peers, "resnet18")
    loop_type, settings = reference_for(specs, collab)
    loop_type = mixed.mixed(loop_type) if form == "mixed" else loop_type
    nets = [tiny_net(k) for k in range(len(specs))]
    loop = loop_type(nets, [spec.method for spec in specs], **settings)
    x, y = images(0, 2)
    assert work(loop.step, x, y) == (WORK | TEAMS)[name]
    trained = sum(spec.weights is None for spec in specs)
    assert work(loop.evaluate, x, y, 20) == (22 * trained, 20 * trained, 20 * trained)


def test_no_method_is_without_its_count() -> None:
    assert {*WORK, "st"} == set(METHODS)


def test_squeeze_training_forwards_clean_images_again_where_any_image_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the oracle's choices: catches a clean forward in steps without need, or left out."""
    net = tiny_net(0).double()
    x, y = images(0, 5)
    x = x.double()
    loop = watched(SqueezeLoop)([net], ["st"])
    loop.noise = start_noise(["st"], x, 0)
    needed = []

    def counting_roles(*arguments: Any) -> list[tuple[str, str]]:
        chosen = roles(*arguments)
        needed.append(any("clean" in names for names in chosen))
        return chosen

    roles = oracle.roles
    monkeypatch.setattr(oracle, "roles", counting_roles)
    noise = torch.stack([loop.noise[0], loop.noise[0].flip(0)])
    oracle.squeeze(net, x, y, 8 / 255, 2 / 255, 10, noise)
    n = sum(needed)
    assert 0 < n < 10
    assert work(loop.step, x, y) == (24 + n, 23 + n, 3)


def test_an_attack_by_backward_fills_gradients_that_nobody_reads() -> None:
    x, y = images(0, 5)
    for method in ("at", "alp", "trades", "mart"):
        loop = PlainLoop([tiny_net(0)], [method])
        x_adv = loop.attack(0, x, y)
        grads = [p.grad for p in loop.models[0].parameters()]
        wasted = [g for g in grads if g is not None and g.abs().max() > 0]
        assert len(wasted) == (len(grads) if method in ("at", "alp") else 0)
        assert not x_adv.requires_grad
        assert all(p.requires_grad for p in loop.models[0].parameters())
        assert loop.models[0].training


def test_forwards_of_a_pair_are_the_published_ones_in_their_order() -> None:
    """Attacks in eval mode; own views, the other's view with a graph, and x again for the log."""
    x, y = images(0, 5)
    loop = WatchedPlain([tiny_net(0), tiny_net(1)], ["trades", "alp"], **ATTACK)
    loop.noise = start_noise(["trades", "alp"], x, 0)
    loop.step(x, y)
    names = {id(view): name for name, view in loop.views.items()}
    assert [(k, training) for k, training, _, _ in loop.seen[:9]] == [(0, False)] * 6 + [
        (1, False)
    ] * 3
    assert [(k, names[id(view)]) for k, _, view, _ in loop.seen[9:]] == [
        (0, "clean"),
        (0, "adv0"),
        (1, "adv1"),
        (1, "clean"),
        (0, "adv1"),
        (1, "adv0"),
        (0, "clean"),
    ]
    assert all(training and z.requires_grad for _, training, _, z in loop.seen[9:])
    assert loop.models[0].bn1.num_batches_tracked == 4
    assert loop.models[1].bn1.num_batches_tracked == 3


def test_a_pair_asks_the_host_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(0, 5)
    loop = PlainLoop([tiny_net(0), tiny_net(1)], ["trades", "alp"], **ATTACK)
    item, asked = Tensor.item, []

    def watched_item(self: Tensor) -> Any:
        asked.append(self)
        return item(self)

    monkeypatch.setattr(Tensor, "item", watched_item)
    loop.step(x, y)
    assert len(asked) == 4


def test_starts_are_the_methods_own() -> None:
    loop = PlainLoop([tiny_net(0)], ["trades"])
    x, _ = images(0, 50)
    gaussian, uniform = loop.gaussian_start(0, x), loop.uniform_start(0, x)
    assert gaussian.std().item() == pytest.approx(0.001, rel=0.05)
    assert uniform.abs().max() <= 8 / 255
    assert uniform.std().item() == pytest.approx(8 / 255 / 3**0.5, rel=0.05)


def test_the_loops_use_nothing_of_ours() -> None:
    allowed = {
        "collections",
        "contextlib",
        "copy",
        "functools",
        "typing",
        "torch",
        "numpy",
        "torchvision",
        "PIL",
    }
    folder = Path(mixed.__file__).parent
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text())
        names = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in (
                ["." * node.level + (node.module or "")]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
        }
        ours = {name for name in names if name.split(".")[0] not in allowed}
        assert ours <= {f".{path.stem}" for path in folder.glob("*.py")}, file.name


@pytest.mark.parametrize("methods", [[], ["at", "at"], ["mat"], ["st"]])
def test_models_need_a_known_method_each(methods: list[str]) -> None:
    assert set(PlainLoop.OBJECTIVES) <= set(OBJECTIVES)
    with pytest.raises(ValueError, match=r"got 1 models .* expected one of natural, at, trades"):
        PlainLoop([tiny_net(0)], methods)
