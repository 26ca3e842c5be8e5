"""Engines change what the computer does, never what is computed; where one fails, another goes on.

Graphs need a GPU and are tested in tests/gpu; here the compiled engine runs on the CPU.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.kernels import winograd
from fastcat.runs.trainer import Trainer
from fastcat.runs.validation_answers import ValidationAnswers
from fastcat.step.algorithm import collaborative_step, start_noise
from fastcat.step.engine import ENGINES, Engine, _reason, choose_engine
from fastcat.step.team import Team
from tests.harness import tiny
from tests.harness.comparison import assert_close, assert_same
from tests.harness.engines import BATCH, engine_of, gather, run, stand_in, state_of
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.parity import Ours, networks
from tests.harness.parity_cases import CASES, Case, represented
from tests.harness.teams import team_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def compiled_code() -> Iterator[None]:
    """Kept for all tests of this file, as equal graphs are then compiled once, and no longer.

    What could not be kept, torch would run uncompiled without a word.
    """
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


# eager


def test_an_eager_step_is_the_step() -> None:
    """At the rate and from the noise asked for. Catches a stale rate, and networks in eval mode."""
    teams = [team_of(["trades", "alp"]) for _ in range(2)]
    engine, _ = engine_of(teams[0])
    for step in range(3):
        for peer in teams[0].peers:
            peer.model.eval()  # as judging may leave them
        values = run(engine, step)
        x, y = images(100 + step, 11)
        x = x.to(memory_format=torch.channels_last)
        for peer in teams[1].peers:
            peer.optimizer.set_lr(0.1 / (1 + step))
        noise = start_noise(teams[1], x, seeded(step))
        assert torch.equal(values, collaborative_step(teams[1], gather(x, y), noise))
        assert_same(state_of(teams[0]), state_of(teams[1]))


def test_totals_weigh_every_image_alike() -> None:
    """Catches a sum over batches, the last of which is smaller."""
    engine, _ = engine_of(team_of(["trades", "alp"]))
    expected = torch.zeros(len(engine.team.loss.names))
    for step, size in enumerate((11, 11, 4)):
        expected += size * run(engine, step, size)
    torch.testing.assert_close(engine.totals, expected, rtol=1e-6, atol=0)
    engine.totals.zero_()
    assert torch.equal(engine.totals, run(engine, 3) * 0 + engine.totals)


def test_the_seed_alone_decides_the_noise() -> None:
    ends = []
    for seed in (1, 1, 2):
        engine, _ = engine_of(team_of(["at"]))
        torch.manual_seed(torch.seed() % 2**32)
        x, y = images(0, 11)
        ends.append(engine.step((x, y), x, seed=seed, lr=0.1))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_a_rehearsal_runs_on_tensors_like_a_graphs_own() -> None:
    """A loader's are slices: other strides and alignment are other kernels, which a capture cannot
    compile.
    """
    engine, _ = engine_of(team_of(["at"]))
    rehearsed: list[Tensor] = []
    engine._prepare = lambda *inputs: rehearsed.extend(inputs)
    x, y = (torch.cat([part, part])[1:12] for part in images(0, 11))
    draws = torch.rand(2, 3 * 11)[:, 11:22]
    engine.gather = lambda x, y, draws: gather(x, y)
    engine.step((x, y, draws), x, seed=0, lr=0.1)
    assert draws.stride() != draws.clone().stride()
    for tensor in rehearsed:
        assert tensor.stride() == tensor.clone().stride()
        assert not tensor.storage_offset()


def test_a_reason_is_the_cause_not_the_wrapper() -> None:
    """Inductor's errors begin with "backend='inductor' raised:"."""
    wrapped = RuntimeError("backend='inductor' raised:\nOSError: no compiler")
    wrapped.inner_exception = OSError("no compiler")  # type: ignore[attr-defined]
    assert _reason(wrapped) == "no compiler"
    lookup = RuntimeError("out of memory")
    lookup.__context__ = KeyError("cache")
    assert _reason(lookup) == "out of memory"
    assert _reason(RuntimeError()) == "RuntimeError"


# compiled


def assert_close_run(
    case: Case,
    dtype: torch.dtype,
    activation: type[nn.Module],
    compared: Callable[[str], bool],
    of_values: float,
    of_weights: float,
) -> None:
    """Three steps, compiled and not, equal to these tolerances in the values that are compared."""
    engines = []
    for name in ("eager", "compile"):
        nets = [net.to(dtype) for net in networks(case, activation)]
        engine, said = engine_of(Ours(case, nets, ema=0.9).team, name)
        engines.append(engine)
        assert not said
    for step in range(3):
        plain, compiled = (run(engine, step, dtype=dtype) for engine in engines)
        assert engines[1].name == "compile"
        names = engines[1].team.loss.names
        for what, value, expected in zip(names, compiled, plain, strict=True):
            if compared(what):
                assert_close(value, expected.double(), of_values, what)
    assert all(peer.forward is not peer.model for peer in engines[1].team.peers)
    before, after = (state_of(engine.team) for engine in engines)
    for what, expected in before.items():
        if "-" in what and ("momentum" not in what or of_weights < 1e-6):
            assert_close(after[what], expected.double(), of_weights, what)
    assert torch.equal(before["random"], after["random"])


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("case", represented(CASES))
def test_three_compiled_steps_in_float64(case: Case) -> None:
    """The same numbers in another order, as against the oracle in test_parity."""
    assert_close_run(case, torch.float64, nn.ReLU, lambda name: True, 1e-11, 1e-11)


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.represented
@pytest.mark.parametrize("case", represented(CASES))
def test_three_compiled_steps_in_float32(case: Case) -> None:
    """Each with its own views, where rounding decides some signs.

    Compared are, with the tolerances of test_parity for that, what is compared there: losses and
    weights of smooth networks.
    """
    of_loss = lambda name: name.endswith("/loss")  # noqa: E731
    assert_close_run(case, torch.float32, nn.SiLU, of_loss, 0.01, 0.05)


def smooth_team() -> Team:
    """The graphs of the float32 runs above, so that nothing more is compiled here."""
    return team_of(["trades", "alp"], [tiny_net(k, nn.SiLU) for k in range(2)])


@pytest.mark.compile
def test_after_the_first_step_nothing_is_compiled_again() -> None:
    """Catches a guard on the rate, on the weights, or on the mode that judging leaves."""
    engine, said = engine_of(smooth_team(), "compile")
    run(engine, 0)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in (1, 2):
            run(engine, step)
            with engine.team.peers[0].optimizer.averaged():
                network, _ = ValidationAnswers(engine).of(0)
                assert isinstance(network, Frozen)
    assert not said


@pytest.mark.compile
def test_a_warm_up_of_perturbed_weights_compiles_once() -> None:
    """Catches a guard on the strength, and on the statistics held still for the gradient."""
    nets = [tiny_net(k, nn.SiLU) for k in range(2)]
    engine, said = engine_of(team_of(["trades", "alp"], nets, awp=[0.02, 0.01]), "compile")
    for step, active in enumerate((False, True, True)):
        for peer in engine.team.peers:
            assert peer.awp is not None
            peer.awp.set_active(active)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            run(engine, step)
    assert not said
    assert engine.name == "compile"


@pytest.mark.compile
def test_a_ragged_batch_runs_eagerly_and_is_mentioned_once() -> None:
    """Catches a compilation for each epoch's last batch, and one line for each of them."""
    engines, said = zip(
        *(engine_of(smooth_team(), name) for name in ("eager", "compile")),
        strict=True,
    )
    for step, size in enumerate((11, 4, 11, 4, 7)):
        if step:
            with torch.compiler.set_stance("fail_on_recompile"):
                compiled = run(engines[1], step, size)
        else:
            compiled = run(engines[1], step, size)
        assert_close(compiled, run(engines[0], step, size).double(), 0.05, f"step {step}")
    assert said == ([], ["batches of other than 11 images run eagerly"])
    assert engines[1].name == "compile"


def test_a_run_resumed_at_a_ragged_batch_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that goes on uncompiled to its end, because its first batch was the odd one."""
    monkeypatch.setattr(torch, "compile", stand_in("never"))
    monkeypatch.setattr(Frozen, "compile", lambda self: None)
    monkeypatch.chdir(tmp_path)
    tiny.register()
    config = TrainConfig(
        arch="tiny", data="digits", engine="compile", steps=1,
        train_size=70, val_size=20, batch_size=20,
    )  # fmt: skip
    trainer = Trainer(config)
    (ragged,) = trainer.loader.inputs(0, first_batch=3)
    trainer.train_step(ragged)
    trainer.train_step(next(trainer.loader.inputs(1)))
    assert trainer.engine.batch_size == 20
    assert trainer.engine.prepared


@pytest.mark.compile
def test_on_a_cpu_the_twins_alone_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a minute of compiling training passes, which are then no faster."""
    compiled: list[nn.Module] = []

    def compile(network: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        compiled.append(network)
        return network.forward

    monkeypatch.setattr(torch, "compile", compile)
    engine = Engine(team_of(["trades", "alp"]), gather, BATCH, "compile")
    run(engine, 0)
    assert engine.name == "compile"
    twins = [peer.frozen for peer in engine.team.peers]
    assert compiled == [twin._network for twin in twins]
    assert all(twin.forward is not twin._network for twin in twins)
    assert all(peer.forward is peer.model for peer in engine.team.peers)


@pytest.mark.compile
def test_an_engine_that_cannot_compile_goes_on_with_the_right_numbers() -> None:
    """A backend that does not exist: whatever it is that fails, one line and the eager numbers."""
    eager, _ = engine_of(team_of(["trades", "alp"]))
    engine, said = engine_of(team_of(["trades", "alp"]), "compile")
    with pytest.MonkeyPatch.context() as patched:
        real = torch.compile
        patched.setattr(
            torch, "compile", lambda model, **options: real(model, backend=broken, **options)
        )
        values = run(engine, 0)
    assert torch.equal(values, run(eager, 0))
    assert torch.equal(run(engine, 1), run(eager, 1))
    assert engine.name == "eager"
    (line,) = said
    assert line.startswith("no compile engine, going on with eager: ")
    assert len(line.splitlines()) == 1
    for peer in engine.team.peers:
        assert peer.forward is peer.model
        assert peer.frozen is not None
        assert peer.frozen.forward is peer.frozen._network


def broken(graph: Any, inputs: Any) -> Any:
    raise ValueError("this compiler is broken")


# names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("graph", "engine 'graph' needs a GPU: type --engine eager", id="graph"),
        pytest.param("compile+graph", "engine 'compile+graph' needs a GPU", id="both"),
        pytest.param("egaer", "unknown engine 'egaer': did you mean 'eager'?", id="typo"),
        pytest.param(
            "zzz", "known are auto, compile, compile+graph, eager, graph, winograd", id="unknown"
        ),
    ],
)
def test_engines_that_cannot_be_had_are_refused(name: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_engine(name, CPU)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_without_a_compiler_a_run_goes_on_eagerly_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(winograd, "library", winograd.library.__wrapped__)
    said: list[str] = []
    assert choose_engine("auto", CPU, said.append) == "eager"
    reason = "there is no C++ compiler, 'no-such-compiler' of CXX is not there: install g++"
    assert said == [f"no winograd engine, going on with eager: {reason}"]
    with pytest.raises(InputError) as caught:
        choose_engine("winograd", CPU)
    assert str(caught.value) == f"no engine 'winograd': {reason}; type --engine eager"
    tiny.register()
    config = TrainConfig(arch="tiny", data="digits", train_size=70, val_size=20, batch_size=20)
    trainer = Trainer(config)
    assert trainer.engine.name == "eager"
    assert said[0] in trainer.remarks


def test_engines_that_can_be_had() -> None:
    on_cpu, gpu = ("eager", "winograd", "compile"), torch.device("cuda")
    assert [choose_engine(name, CPU) for name in ("auto", *on_cpu)] == ["winograd", *on_cpu]
    on_gpu = [name for name in ENGINES if name != "winograd"]
    assert [choose_engine(name, gpu) for name in ("auto", *on_gpu)] == ["graph", *on_gpu]
    with pytest.raises(InputError, match="'winograd' is for CPUs: type --engine graph"):
        choose_engine("winograd", gpu)
