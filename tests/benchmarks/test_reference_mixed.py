"""The reference loops in mixed precision: the same step, cast as a careful user would."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcat.benchmarks.methods import METHODS, reference_for
from fastcat.benchmarks.reference import mixed
from fastcat.benchmarks.reference.mixed import MixedLoop
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.config.peers import parse_peers
from tests.harness.networks import images, tiny_net
from tests.harness.watched import ALPHA, ATTACK, assert_close, start_noise, watched

pytestmark = pytest.mark.usefixtures("one_thread")

WatchedPlain = watched(PlainLoop)
WatchedMixed = watched(MixedLoop)


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
    plain.noise, loop.noise = start_noise(methods, x, 0), start_noise(methods, x, 0)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_loop_has_its_mixed_form(name: str) -> None:
    """Catches an attack or a second network that autocast does not reach."""
    method = METHODS[name]
    specs = parse_peers(method.peers, "resnet18")
    methods = [spec.method for spec in specs]
    _, settings = reference_for(specs, method.collab)
    nets = [tiny_net(k, nn.SiLU) for k in range(len(specs))]
    x, y = images(0, 11)
    plain = watched(method.loop)(copy.deepcopy(nets), methods, **ATTACK, **settings)
    loop = watched(mixed.mixed(method.loop))(nets, methods, **ATTACK, **settings)
    plain.noise, loop.noise = start_noise(methods, x, 0), start_noise(methods, x, 0)
    dtypes: set[torch.dtype] = set()
    for net in (*nets, *([loop.proxy] if "gamma" in settings else [])):
        net.conv2.register_forward_hook(lambda conv, args, out: dtypes.add(out.dtype))
    expected = plain.step(x, y)
    # free's view is x at first, and has to gather its gradient
    loop.given_views = None if name == "free" else plain.views
    log = loop.step(x, y)
    assert dtypes == {torch.bfloat16}
    for k in range(len(loop.methods)):
        assert log[f"loss{k}"] == pytest.approx(expected[f"loss{k}"], rel=0.05)


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
    plain.noise, loop.noise = start_noise(methods, x, 0), start_noise(methods, x, 0)
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
            loop.climbed(loop.kl_to_clean, 0, x, x)
        else:
            loop.losses({"clean": x, "adv0": x}, y)
    # three convolutions, a linear layer and its bias
    assert casts.count == 5
