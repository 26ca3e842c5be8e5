"""The step on a GPU: every engine and precision against the float64 oracle, graphs against eager,
no question to the host, one graph launch a step.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fastcat.step.algorithm
import fastcat.step.engine
from fastcat.attacks.frozen import Epilogue, Frozen
from fastcat.evaluation import NoiseAttack, parse_attacks
from fastcat.evaluation.evaluate import answers_after
from fastcat.kernels.augment import augment
from fastcat.models import make_model
from fastcat.models.ghost import split_norms
from fastcat.precision import make_precision
from fastcat.runs.validation_answers import ValidationAnswers
from tests.harness.gpu_runs import (
    AFTER_MAINI,
    BATCH,
    DEVICE,
    MAT_MP,
    SGD,
    SIDE,
    THREAT,
    Run,
    nets_of,
)
from tests.harness.kernel_cases import augment_draws
from tests.harness.networks import images, mixing
from tests.reference.step import StepResult, cat_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

TEAMS = [
    pytest.param(("at",), "cat", id="at"),
    pytest.param(("trades",), "cat", id="trades"),
    pytest.param(("mart",), "cat", id="mart"),
    pytest.param(("trades", "alp"), "cat", id="trades+alp"),
    pytest.param(("trades", "alp"), "none", id="trades+alp-side_by_side"),
    pytest.param(("natural", "trades"), "cat", id="natural+trades"),
    pytest.param(("at", "alp", "trades"), "cat", id="at+alp+trades"),
    # each is the other's teacher
    pytest.param(("rslad", "ard"), "none", id="rslad+ard"),
]
ENGINES = ["eager", "graph", "compile", "compile+graph"]
# compiling takes a minute a team, so one team stands for all
RUNS = [
    pytest.param(*team.values, engine, mixed, id=f"{team.id}-{engine}" + "-mixed" * mixed)
    for team in TEAMS
    for engine in ENGINES
    for mixed in (False, True)
    if team.id == "trades+alp" or not ("compile" in engine or mixed)
]
# of the losses and of the weights after three free steps, where the attack's signs amplify
# rounding; fp32 as measured on a CPU, tf32 wider by its shorter numbers
TOLERANCES = {"fp32": (0.01, 0.05), "tf32": (0.03, 0.1)}
# of a step on the oracle's views, as on a CPU
HALF_TOLERANCES = {"bf16": 0.1, "fp16": 0.02}


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic = True
    yield
    cudnn.deterministic, cudnn.benchmark = before
    # variants of one network would soon exceed what dynamo compiles of one function
    torch._dynamo.reset()


def draw(methods: tuple[str, ...], step: int) -> tuple[Tensor, Tensor, Tensor]:
    x, y = images(100 + step, BATCH, SIDE)
    generator = torch.Generator().manual_seed(200 + step)
    noise = torch.empty(1, len(methods), *x.shape)
    for k, method in enumerate(methods):
        if method in ("trades", "mart", "rslad"):
            noise[:, k].normal_(generator=generator)
        else:
            noise[:, k].uniform_(-1, 1, generator=generator)
    return x, y, noise


def oracle_step(
    nets: list[nn.Module],
    methods: tuple[str, ...],
    collab: str,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    buffers: list[dict[str, Tensor]] | None,
    mixing: Sequence[Tensor] = (),
) -> StepResult:
    return cat_step(
        nets,
        [(method, {}) for method in methods],
        x.double(),
        y,
        noise.double(),
        eps=THREAT.eps,
        step_size=THREAT.step,
        steps=THREAT.steps,
        alpha=0.3,
        collab=collab,
        **SGD,
        buffers=buffers,
        bn="eval",
        **dict(zip(("y_mixed", "share"), mixing, strict=bool(mixing))),
    )


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("methods", "collab", "engine", "mixed"), RUNS)
def test_three_steps_follow_the_oracle(
    methods: tuple[str, ...], collab: str, engine: str, mixed: bool, precision: str
) -> None:
    """A graph that replays a stale input, a lane that races, a rate baked in: all leave it."""
    nets = nets_of(len(methods))
    run = Run(nets, methods, engine, precision, collab)
    nets = [net.double() for net in nets]
    buffers = None
    losses, weights = TOLERANCES[precision]
    attacked = [k for k, method in enumerate(methods) if method != "natural"]
    for step in range(3):
        x, y, noise = draw(methods, step)
        others = mixing(step, BATCH) if mixed else ()
        values = run.step(x, y, noise[:, attacked], mixing=others)
        result = oracle_step(nets, methods, collab, x, y, noise, buffers, others)
        buffers = result.buffers
        named = dict(zip(run.team.loss.names, values.tolist(), strict=True))
        for peer, total in zip(run.team.peers, result.totals, strict=True):
            assert named[f"{peer.name}/loss"] == pytest.approx(total.item(), rel=losses)
    assert not run.said, run.said
    for peer, net in zip(run.team.peers, nets, strict=True):
        for name, expected in net.state_dict().items():
            error = (peer.model.state_dict()[name].cpu().double() - expected).abs().max()
            assert error <= weights * expected.abs().max(), f"{name} of {peer.name}"


@pytest.mark.parametrize("precision", HALF_TOLERANCES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_in_half_precision_on_the_views_of_the_oracle(engine: str, precision: str) -> None:
    methods = ("trades", "alp")
    nets = nets_of(2)
    run = Run(nets, methods, engine, precision)
    if precision == "fp16":
        # the scale that a run finds by itself after some skipped steps
        run.team.scaler = torch.amp.GradScaler(DEVICE.type, init_scale=256.0)
    nets = [net.double() for net in nets]
    x, y, noise = draw(methods, 0)
    result = oracle_step(nets, methods, "cat", x, y, noise, None)
    views = {
        name: view.float().to(DEVICE).contiguous(memory_format=torch.channels_last)
        for name, view in result.views.items()
    }
    with mock.patch.object(fastcat.step.algorithm, "attack_views", return_value=views):
        values = run.step(x, y, noise)
    assert not run.said, run.said
    named = dict(zip(run.team.loss.names, values.tolist(), strict=True))
    tolerance = HALF_TOLERANCES[precision]
    for peer, total, net in zip(run.team.peers, result.totals, nets, strict=True):
        assert named[f"{peer.name}/loss"] == pytest.approx(total.item(), rel=tolerance)
        for name, expected in net.state_dict().items():
            error = (peer.model.state_dict()[name].cpu().double() - expected).abs().max()
            assert error <= tolerance * expected.abs().max(), f"{name} of {peer.name}"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize(
    ("methods", "settings", "bn_groups"),
    [
        pytest.param(("trades", "alp"), {}, 1, id="trades+alp"),
        pytest.param(("trades", "alp"), {"awp": 0.01}, 1, id="trades+alp-awp"),
        pytest.param(("trades", "alp"), {"merged": True}, 1, id="trades+alp-merged"),
        pytest.param(("at", "st"), {}, 1, id="at+st"),
        pytest.param(("at", "st"), {"awp": 0.01}, 3, id="at+st-awp-bn_groups"),
        pytest.param(("rslad", "iad"), {}, 1, id="rslad+iad"),
        *(
            pytest.param(("boosted", "trades", "at"), settings, 1, id=f"mat_mp-{way}")
            for way, settings in MAT_MP.items()
        ),
        *(pytest.param(("at",), settings, 1, id=name) for name, settings in AFTER_MAINI.items()),
    ],
)
def test_graph_equals_eager_from_the_first_step(
    methods: tuple[str, ...],
    settings: dict[str, Any],
    bn_groups: int,
    precision: str,
    ema: float | None,
) -> None:
    """Warm-up that trains, momentum that restarts, noise that does not advance."""
    nets = nets_of(len(methods))
    for net in nets if bn_groups > 1 else ():
        split_norms(net, BATCH // bn_groups)
    ends = []
    for engine in ("eager", "graph"):
        run = Run(nets, methods, engine, precision, ema=ema, **settings)
        values = []
        for step in range(8):
            # IAD's second term begins with the fifth step
            run.team.loss.set_epoch(0 if step < 4 else 60)
            for peer in run.team.peers:
                if peer.awp is not None:
                    peer.awp.set_active(step >= 2)
            x, y = images(step, BATCH, SIDE)
            values.append(run.step(x, y, seed=step).clone())
        ends.append((torch.stack(values), [peer.optimizer.flat for peer in run.team.peers]))
        assert not run.said
        assert (run.engine.graph is not None) == (engine == "graph")
    (eager_values, eager_weights), (graph_values, graph_weights) = ends
    assert not torch.equal(eager_values[0], eager_values[1])
    torch.testing.assert_close(graph_values[0], eager_values[0], rtol=1e-3, atol=1e-5)
    for ours, expected in zip(graph_weights, eager_weights, strict=True):
        assert (ours - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_views_in_one_batch_train_as_one_after_the_other(
    engine: str, precision: str, tolerance: float
) -> None:
    """On the same views, which rounding cannot part."""
    methods = ("trades", "alp")
    x, y, noise = draw(methods, 0)
    nets = nets_of(2)
    views = {
        name: view.float().to(DEVICE).contiguous(memory_format=torch.channels_last)
        for name, view in oracle_step(
            [copy.deepcopy(net).double() for net in nets], methods, "cat", x, y, noise, None
        ).views.items()
    }
    ends = []
    with mock.patch.object(fastcat.step.algorithm, "attack_views", return_value=views):
        for merged in (False, True):
            run = Run(nets, methods, engine, precision, merged=merged)
            run.step(x, y, noise)
            ends.append([*(peer.model.state_dict() for peer in run.team.peers)])
    for apart, together in zip(*ends, strict=True):
        for name, expected in apart.items():
            error = (together[name].double() - expected.double()).norm()
            assert error <= tolerance * expected.double().norm(), name


@pytest.mark.parametrize("engine", ["graph", "compile", "compile+graph"])
def test_rehearsal_leaves_nothing_behind(engine: str) -> None:
    run = Run(nets_of(2), ("trades", "alp"), engine, ema=0.9)
    x, y, noise = draw(("trades", "alp"), 0)
    before = run.state()
    inputs = [t.to(DEVICE) for t in (x, y, torch.arange(BATCH), noise)]
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    run.engine._prepare(*inputs)
    assert not run.said
    for old, new in zip(before, run.state(), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize(
    ("methods", "settings", "mixed"),
    [
        pytest.param(("trades", "alp"), {}, False, id="alp"),
        pytest.param(("trades", "alp"), {}, True, id="mixed"),
        # ST cannot train on mixed images
        pytest.param(("trades", "st"), {}, False, id="st"),
        *(
            pytest.param(("boosted", "trades", "at"), settings, True, id=f"mat_mp-{way}")
            for way, settings in MAT_MP.items()
        ),
        *(pytest.param(("at",), settings, True, id=name) for name, settings in AFTER_MAINI.items()),
    ],
)
def test_a_step_asks_the_host_nothing(
    methods: tuple[str, ...],
    settings: dict[str, Any],
    mixed: bool,
    engine: str,
    precision: str,
) -> None:
    run = Run(nets_of(len(methods)), methods, engine, precision, awp=0.01, **settings)
    x, y = images(0, BATCH, SIDE)
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    others = mixing(0, BATCH) if mixed else ()
    inputs = (x, *(t.to(DEVICE) for t in (y, torch.arange(BATCH), *others)))
    for _ in range(2):
        run.engine.step(inputs, x, 0, 0.1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            run.engine.step(inputs, x, step, 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_is_one_graph_launch() -> None:
    run = Run(nets_of(2), ("trades", "alp"), "graph", "bf16")
    x, y = images(0, BATCH, SIDE)
    for _ in range(2):
        run.step(x, y)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            run.step(x, y)
        torch.cuda.synchronize()
    launches = sum(
        event.count for event in profile.key_averages() if event.key == "cudaGraphLaunch"
    )
    assert launches == 3


def test_the_learning_rate_is_read_from_the_device() -> None:
    run = Run(nets_of(1), ("at",), "graph")
    x, y = images(0, BATCH, SIDE)
    run.step(x, y)
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    inputs = (x, y.to(DEVICE), torch.arange(BATCH, device=DEVICE))
    before = run.team.peers[0].optimizer.flat.clone()
    run.engine.step(inputs, x, 1, 0.0)
    assert torch.equal(run.team.peers[0].optimizer.flat, before)
    run.engine.step(inputs, x, 2, 0.1)
    assert not torch.equal(run.team.peers[0].optimizer.flat, before)


def test_momentum_and_the_decay_of_the_average_are_read_from_the_device() -> None:
    """A graph captured with 0.9 for both goes on with what is set later."""
    run = Run(nets_of(1), ("at",), "graph", ema=0.9)
    x, y = images(0, BATCH, SIDE)
    run.step(x, y)
    optimizer = run.team.peers[0].optimizer
    assert not torch.equal(optimizer.ema, optimizer.flat)
    optimizer.momentum_buffer.fill_(1e6)
    optimizer.set_momentum(0.0)
    optimizer.set_ema_decay(0.0)
    run.step(x, y)
    assert optimizer.momentum_buffer.abs().max() < 1e3
    assert torch.equal(optimizer.ema, optimizer.flat)


def test_a_ragged_batch_runs_eagerly_and_counts() -> None:
    run = Run(nets_of(2), ("trades", "alp"), "graph")
    for step, size in enumerate((BATCH, 5, BATCH)):
        x, y = images(step, size, SIDE)
        values = run.step(x, y)
        assert values.isfinite().all()
    assert run.said == [f"batches of other than {BATCH} images run eagerly"]


def test_an_overflow_in_fp16_skips_the_step_and_halves_the_scale() -> None:
    run = Run(nets_of(1), ("at",), "graph", "fp16")
    x, y = images(0, BATCH, SIDE)
    run.step(x, y)
    run.team.scaler._scale.fill_(2.0**40)
    before = run.team.peers[0].optimizer.flat.clone()
    run.step(x, y)
    assert torch.equal(run.team.peers[0].optimizer.flat, before)
    assert run.team.scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("arch", ["resnet18", "preactresnet18"])
@pytest.mark.parametrize("epilogue", ["torch", "kernel", "cudnn"])
@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [
        (torch.float32, (1e-4, 1e-3)),
        (torch.bfloat16, (0.05, 0.3)),
        (torch.float16, (0.01, 0.1)),
    ],
)
def test_the_twin_equals_the_model(
    dtype: torch.dtype, tolerances: tuple[float, float], epilogue: Epilogue, arch: str
) -> None:
    """Tolerances of the logits and of the gradient, in their own length."""
    make_precision("fp32", DEVICE)
    torch.manual_seed(0)
    model = make_model(arch, 10, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
    model = model.to(DEVICE, memory_format=torch.channels_last).eval()
    x = images(0, 8, 32)[0].to(DEVICE).contiguous(memory_format=torch.channels_last)
    twin = Frozen(model, dtype, x[:2], epilogue)
    assert twin.epilogue == epilogue
    outcomes = []
    for network, door in ((model, x), (twin, x.to(dtype))):
        door = door.detach().requires_grad_()
        z = network(door)
        # gradients of 1e-6 would be lost in fp16
        (grad,) = torch.autograd.grad(1024 * z.float().logsumexp(1).sum(), door)
        outcomes.append((z.float(), grad.float()))
    for expected, ours, tolerance in zip(*outcomes, tolerances, strict=True):
        assert (ours - expected).norm() <= tolerance * expected.norm()


def test_judging_by_graph_equals_judging_eagerly() -> None:
    run = Run(nets_of(1), ("at",), "graph")
    x, y = (t.to(DEVICE) for t in images(0, BATCH, SIDE))
    x = x.contiguous(memory_format=torch.channels_last)
    answers = ValidationAnswers(run.engine)
    network, judged = answers.of(0)
    for attack in (each.attack for each in parse_attacks("clean,pgd5,cw5")):
        assert isinstance(attack, NoiseAttack)
        threat = attack.under(THREAT)
        noise = threat.draw_noise("uniform", x, None)
        expected = answers_after(network, x, y, attack, threat, noise)
        for _ in range(2):
            assert torch.equal(judged(network, x, y, attack, threat, noise), expected)
    run.step(*images(1, BATCH, SIDE))
    network, judged = answers.of(0)
    attack = parse_attacks("clean")[0].attack
    noise = torch.zeros_like(x)
    said = judged(network, x, y, attack, THREAT, noise)
    assert torch.equal(said, answers_after(network, x, y, attack, THREAT, noise))


def test_the_gpu_augments_like_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    draws = augment_draws(16, 20, SIDE, SIDE, generator)
    ours = augment(pixels.to(DEVICE), draws.to(DEVICE), 3)
    torch.testing.assert_close(ours.cpu(), augment(pixels, draws, 3), rtol=0, atol=2**-23)


# last: in some versions of torch a failed capture spoils the captures after it
def test_what_cannot_be_captured_runs_eagerly_and_says_so() -> None:
    run = Run(nets_of(1), ("at",), "graph")

    def asks(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].sum().item()

    run.team.peers[0].model.conv1.register_forward_pre_hook(asks)
    x, y = images(0, BATCH, SIDE)
    assert run.step(x, y).isfinite().all()
    assert run.engine.graph is None
    assert run.engine.name == "eager"
    assert len(run.said) == 1
    assert run.said[0].startswith("no graph engine, going on with eager: ")
