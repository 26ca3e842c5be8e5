"""The loops we are timed beside: right, by the float64 oracle, and as wasteful as published.

Where the published code departs from the oracle, the oracle's networks are made to depart
likewise, so that all else must agree to rounding: the forward after a step of several peers, and
the second clean forward of TRADES alone, which move running statistics and nothing else. MART adds
1e-12 inside its logarithms, which the oracle does not.
"""

import ast
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

import benchmarks.reference.mixed as mixed
from benchmarks.reference.loader import plain_loader
from benchmarks.reference.mixed import MixedLoop
from benchmarks.reference.plain import LOSSES, PlainLoop
from tests.networks import images, tiny_net
from tests.reference.attack import pgd
from tests.reference.losses import OBJECTIVES
from tests.reference.step import cat_step

pytestmark = pytest.mark.usefixtures("one_thread")

ATTACK: dict[str, Any] = {"eps": 8 / 255, "step_size": 3 / 255, "steps": 3}
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}
ALPHA = 0.3
TOLERANCE = 1e-11
MART_TOLERANCE = 1e-8


class Watched:
    """Takes its start noise, `[B, C, H, W]` a peer, and keeps what passes through."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.noise: Sequence[Tensor] = []
        self.given_views: dict[str, Tensor] | None = None
        self.seen: list[tuple[int, bool, Tensor, Tensor]] = []

    def gaussian_start(self, k: int, x: Tensor) -> Tensor:
        return (0.001 * self.noise[k]).to(x)

    def uniform_start(self, k: int, x: Tensor) -> Tensor:
        return (self.eps * self.noise[k]).to(x)

    def losses(self, views: dict[str, Tensor], y: Tensor) -> Any:
        self.views = self.given_views or views
        return super().losses(self.views, y)

    def forward(self, k: int, x: Tensor) -> Tensor:
        z = super().forward(k, x)
        self.seen.append((k, self.models[k].training, x, z))
        return z


class WatchedPlain(Watched, PlainLoop):
    pass


class WatchedMixed(Watched, MixedLoop):
    pass


def start_noise(methods: Sequence[str], x: Tensor, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(x).normal_(generator=generator)
        if method in ("trades", "mart")
        else torch.empty_like(x).uniform_(-1, 1, generator=generator)
        for method in methods
    ]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    error = (actual.detach().double() - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"{what} is off by {error:.3g}"


def published_statistics(before: nn.Module, net: nn.Module, views: Sequence[Tensor]) -> None:
    """Gives net the buffers that `before` has after train-mode forwards of the views."""
    twin = copy.deepcopy(before).train()
    with torch.no_grad():
        for view in views:
            twin(view)
    net.load_state_dict(dict(twin.named_buffers()), strict=False)


@pytest.mark.parametrize(
    "methods",
    [
        ["natural"],
        ["at"],
        ["trades"],
        ["alp"],
        ["mart"],
        ["trades", "alp"],
        ["natural", "trades"],
        ["trades", "alp", "at"],
        ["mart", "natural", "natural"],
    ],
    ids="-".join,
)
def test_three_steps_follow_the_oracle(methods: list[str]) -> None:
    tolerance = MART_TOLERANCE if "mart" in methods else TOLERANCE
    nets = [tiny_net(k).double() for k in range(len(methods))]
    loop = WatchedPlain(copy.deepcopy(nets), methods, alpha=ALPHA, **ATTACK, **SGD)
    buffers = None
    for step in range(3):
        x, y = images(100 + step, 11)
        x = x.double()
        loop.noise = start_noise(methods, x, step)
        before = copy.deepcopy(nets)

        log = loop.step(x, y)
        result = cat_step(
            nets,
            [(method, {}) for method in methods],
            x,
            y,
            torch.stack(loop.noise)[None],
            alpha=ALPHA,
            collab="cat",
            nesterov=False,
            buffers=buffers,
            **ATTACK,
            **SGD,
        )
        buffers = result.buffers

        assert loop.views.keys() == result.views.keys()
        for name, view in result.views.items():
            assert_close(loop.views[name], view, tolerance, f"view {name}")

        expected = {f"loss{k}": sum(terms.values()) for k, terms in enumerate(result.terms)}
        if len(methods) > 1:
            expected["guidance"] = sum(result.guidance)
            # not in the oracle: a train-mode forward of the first peer, after the step
            hits = nets[0](x).argmax(1) == y
            expected["accuracy"] = hits.double().mean()
        elif methods == ["trades"]:
            # not in the oracle: clean images a second time, before the step
            published_statistics(before[0], nets[0], [x, result.views["adv0"], x])
        assert list(log) == list(expected)
        for key, value in expected.items():
            assert log[key] == pytest.approx(value.item(), rel=tolerance), key

        for k, net in enumerate(nets):
            optimizer = loop.optimizers[k]
            for name, p in loop.models[k].named_parameters():
                what = f"{name} of peer {k} at step {step}"
                assert p.grad is not None
                assert_close(p.grad, result.grads[k][name], tolerance, f"gradient of {what}")
                momentum = optimizer.state[p]["momentum_buffer"]
                assert_close(momentum, result.buffers[k][name], tolerance, f"momentum of {what}")
            state = loop.models[k].state_dict()
            for name, value in net.state_dict().items():
                assert_close(state[name], value, tolerance, f"{name} of peer {k} at step {step}")


@pytest.mark.parametrize("method", ["at", "trades"])
def test_evaluation_attacks_every_method_by_cross_entropy(method: str) -> None:
    nets = [tiny_net(k).double() for k in range(2)]
    # 8/255 does not change what these networks say
    loop = WatchedPlain(copy.deepcopy(nets), [method] * 2, eps=0.25, step_size=0.1)
    x, _ = images(0, 60)
    x = x.double()
    # each network is right on half of the images
    y = torch.cat([net.eval()(x[k::2]).argmax(1) for k, net in enumerate(nets)])
    x = torch.cat([x[0::2], x[1::2]])
    loop.noise = start_noise(["at"] * 2, x, 0)
    for k, (clean, robust) in enumerate(loop.evaluate(x, y, steps=5)):
        x_adv = pgd(nets[k], x, y, "at", 0.25, 0.1, 5, loop.noise[k][None])
        nets[k].eval()
        assert clean == (nets[k](x).argmax(1) == y).double().mean()
        assert robust == (nets[k](x_adv).argmax(1) == y).double().mean()
        assert 0 < robust < clean
        assert loop.models[k].training
        for name, value in loop.models[k].state_dict().items():
            assert torch.equal(value, nets[k].state_dict()[name]), f"evaluation moved {name}"


# what is wasted, and only that


class WholeTracker(ModuleTracker):
    """Knows no modules: hooks on a module's input refuse torch.autograd.grad to that input."""

    def __enter__(self) -> "WholeTracker":
        return self

    def __exit__(self, *args: object) -> None:
        pass


def flops(function: Any, *args: Any) -> tuple[int, int]:
    """In all, and of the convolutions' forwards alone."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = WholeTracker()
    with counter:
        function(*args)
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    return counter.get_total_flops(), convolutions


@pytest.mark.parametrize(
    ("methods", "cost", "forwards", "backwards", "graded"),
    [
        pytest.param(["natural"], 3, 1, 1, 1, id="natural"),
        pytest.param(["at"], 33, 11, 11, 1, id="at"),
        pytest.param(["trades"], 39, 23, 13, 3, id="trades"),
        pytest.param(["alp"], 36, 12, 12, 2, id="alp"),
        pytest.param(["mart"], 26, 12, 12, 2, id="mart"),
        pytest.param(["trades", "alp"], 75, 37, 24, 4, id="trades+alp"),
        # 30 + 30 + 30 in the attacks, 3 (2 + 2 + 1) own views, 3 * 2 of others, 1 for the log
        pytest.param(["trades", "alp", "at"], 112, 52, 35, 5, id="trades+alp+at"),
    ],
)
@pytest.mark.parametrize("loop_type", [PlainLoop, MixedLoop])
def test_a_step_costs_what_the_published_one_does(
    loop_type: type[PlainLoop],
    methods: list[str],
    cost: int,
    forwards: int,
    backwards: int,
    graded: int,
) -> None:
    """In forwards F of the batch; the first layer of a graded forward has no input gradient.

    backwards: of activations; the rest of the cost is gradients of weights.
    """
    x, y = images(0, 2)
    loop = loop_type([tiny_net(k) for k in range(len(methods))], methods)
    f, f_convolutions = flops(loop.models[0], x)
    _, f_first = flops(loop.models[0].conv1, x)
    loop.step(x, y)
    total, convolutions = flops(loop.step, x, y)
    assert total == cost * f - graded * f_first
    assert convolutions == forwards * f_convolutions
    assert flops(loop.evaluate, x, y, 20)[0] == len(methods) * 62 * f
    gradients_of_weights = cost - forwards - backwards
    attack_steps = 10 * sum(method in ("at", "alp") for method in methods)
    assert gradients_of_weights == attack_steps + graded


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
    allowed = {"collections", "contextlib", "typing", "torch", "numpy", "torchvision", "PIL"}
    for file in Path(mixed.__file__).parent.glob("*.py"):
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
        assert ours <= {".plain"}, file.name


@pytest.mark.parametrize("methods", [[], ["at", "at"], ["mat"], ["boosted"]])
def test_models_need_a_known_method_each(methods: list[str]) -> None:
    others = {"boosted", "st", "ard", "rslad", "iad", "act"}
    assert set(LOSSES) == set(OBJECTIVES) - others
    with pytest.raises(ValueError, match=r"got 1 models .* expected one of natural, at, trades"):
        PlainLoop([tiny_net(0)], methods)


# mixed precision


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.bfloat16, 0.1, id="bf16"), pytest.param(torch.float16, 0.02, id="fp16")],
)
def test_mixed_follows_plain(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on the same views, with the tolerances and smooth networks of test_parity.py."""
    monkeypatch.setattr(mixed, "half_dtype", lambda device: dtype)
    methods = ["trades", "alp"]
    nets = [tiny_net(k, nn.SiLU) for k in range(2)]
    x, y = images(0, 11)
    plain = WatchedPlain(copy.deepcopy(nets), methods, alpha=ALPHA, **ATTACK)
    loop = WatchedMixed(nets, methods, alpha=ALPHA, **ATTACK)
    assert loop.scaler.is_enabled() == (dtype == torch.float16)
    if dtype == torch.float16:
        # the scale that a run finds by itself after some skipped steps
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    plain.noise = loop.noise = start_noise(methods, x, 0)
    expected = plain.step(x, y)
    loop.given_views = plain.views
    log = loop.step(x, y)
    for key in ("loss0", "loss1", "guidance"):
        assert log[key] == pytest.approx(expected[key], rel=tolerance), key
    scale = loop.scaler.get_scale()
    for net, twin in zip(loop.models, plain.models, strict=True):
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert p.dtype == torch.float32
            assert p.grad is not None
            assert q.grad is not None
            # the scaler has unscaled the gradients in place
            assert_close(p.grad, q.grad.double(), tolerance, f"gradient of {name}, scale {scale}")
            assert_close(p, q.detach().double(), tolerance, name)
        for name, value in net.named_buffers():
            assert_close(value, twin.get_buffer(name).double(), tolerance, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_mixed_attacks_as_hard_in_float32_pixels(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured by what float32 networks lose: 0.1 % less at most, 20 % of a KL.

    The KL of TRADES has a minimum at x, so half-precision noise at its start decides which of two
    opposite ways an image goes, and the pixels need not agree.
    """
    monkeypatch.setattr(mixed, "half_dtype", lambda device: dtype)
    methods = ["trades", "alp", "mart"]
    nets = [tiny_net(k, nn.SiLU) for k in range(3)]
    x, y = images(0, 11)
    judge, plain = PlainLoop(copy.deepcopy(nets), methods), WatchedPlain(nets, methods)
    loop = WatchedMixed(copy.deepcopy(nets), methods)
    plain.noise = loop.noise = start_noise(methods, x, 0)
    for k, method in enumerate(methods):
        expected, x_adv = plain.attack(k, x, y), loop.attack(k, x, y)
        assert x_adv.dtype == torch.float32
        assert (x_adv - x).abs().max() <= 8 / 255 + 2**-23
        judge.models[k].eval()
        climbed = []
        for view in (x, expected, x_adv):
            loss = judge.kl_to_clean(k, view, x) if k == 0 else judge.cross_entropy(k, view, y)
            climbed.append(loss.item())
        at_x, by_plain, by_mixed = climbed
        tolerance = 0.2 if method == "trades" else 0.001
        assert by_mixed - at_x == pytest.approx(by_plain - at_x, rel=tolerance), method
        differs = (x_adv - expected).abs() > 1e-6
        assert method == "trades" or differs.double().mean() < 0.02


def test_mixed_means_autocast_channels_last_and_cudnn_benchmark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = [tiny_net(0), tiny_net(1)]
    loop = WatchedMixed(nets, ["trades", "alp"], **ATTACK)
    x, y = images(0, 5)
    loop.noise = start_noise(loop.methods, x, 0)
    modes = set()

    def watch(conv: nn.Module, args: Any, out: Tensor) -> None:
        (x,) = args
        last = torch.channels_last
        modes.add((out.dtype, x.is_contiguous(memory_format=last), torch.backends.cudnn.benchmark))

    for net in nets:
        for conv in (net.conv1, net.conv2, net.conv3):
            conv.register_forward_hook(watch)
            assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    loop.step(x, y)
    loop.evaluate(x, y, steps=2)
    assert modes == {(torch.bfloat16, True, True)}
    assert not torch.backends.cudnn.benchmark
    # the losses are float32
    assert {z.dtype for _, _, _, z in loop.seen} == {torch.float32}


class CastsOf(TorchDispatchMode):
    """Counts the casts of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.addresses = {t.data_ptr() for t in tensors}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.addresses:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", ["attack", "training"])
def test_mixed_casts_the_weights_once_a_loss(loss: str) -> None:
    """Its forwards are under one autocast, which keeps the low-precision copies."""
    loop = MixedLoop([tiny_net(0)], ["trades"])
    x, y = images(0, 5)
    with CastsOf(list(loop.models[0].parameters())) as casts:
        if loss == "attack":
            loop.kl_to_clean(0, x, x)
        else:
            loop.losses({"clean": x, "adv0": x}, y)
    # three convolutions, a linear layer and its bias
    assert casts.count == 5


# data


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("workers", "epochs"), [(0, 8), (2, 1)])
def test_loader_yields_each_image_once(workers: int, epochs: int) -> None:
    """Each is one of the 2 * 9 * 9 flips and crops of the image that its label names."""
    torch.manual_seed(0)
    array = pictures(10)
    loader = plain_loader(array, range(10), 4, workers)
    padded = np.pad(array, ((0, 0), (4, 4), (4, 4), (0, 0)))
    orders, found = [], []
    for _ in range(epochs):
        batches = list(loader)
        assert [len(y) for _, y in batches] == [4, 4, 2]
        x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        assert x.shape == (10, 3, 32, 32)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert sorted(y.tolist()) == list(range(10))
        orders.append(y.tolist())
        for picture, label in zip(x, y.tolist(), strict=True):
            seen = (picture * 255).round().to(torch.uint8).numpy()
            # [9, 9, 3, 32, 32]
            crops = np.lib.stride_tricks.sliding_window_view(padded[label], (32, 32), (0, 1))
            both = np.stack([crops, crops[..., ::-1]])
            matches = np.argwhere((both == seen).all((3, 4, 5)))
            assert len(matches) == 1
            found.append(matches[0])
    if epochs > 1:
        assert len({tuple(order) for order in orders}) > 1
        # flips, rows and columns
        assert np.min(found, axis=0).tolist() == [0, 0, 0]
        assert np.max(found, axis=0).tolist() == [1, 8, 8]


def test_loader_follows_the_global_seed() -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.cat([x for x, _ in plain_loader(pictures(6), range(6), 6, 0)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_loader_names_what_is_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        plain_loader(pictures(2).astype(np.float32), [0, 1], 2, 0)
    with pytest.raises(ValueError, match="got 2 images and 3 labels"):
        plain_loader(pictures(2), [0, 1, 2], 2, 0)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        plain_loader(pictures(2), [0, 1], 2, 0)
