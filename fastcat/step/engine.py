"""How a step is run: as it stands (eager), with faster convolutions, compiled, as one CUDA graph.

An engine changes what the computer does, never what is computed. Where one fails, the next slower
takes over and a line says why.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.choices import ENGINES
from fastcat.errors import InputError, nearest
from fastcat.kernels import winograd
from fastcat.runtime import without_search
from fastcat.step.algorithm import collaborative_step, start_noise
from fastcat.step.plan import (
    Measured,
    Plan,
    choices_for,
    follow,
    key_of,
    recall,
    remember,
    search,
)
from fastcat.step.team import Team

# replays that are timed together
STEPS_A_TURN = 5


def choose_engine(name: str, device: torch.device, say: Callable[[str], object] = print) -> str:
    """The engine called `name`.

    "auto" is graph on a GPU. On a CPU it is winograd where that can be built, else eager.
    say: gets a line where "auto" has to be eager
    Raises InputError for what cannot be had.
    """
    if name not in (*ENGINES, "auto"):
        raise InputError(f"unknown engine {name!r}: {nearest(name, [*ENGINES, 'auto'])}")
    if device.type == "cuda":
        if name == "winograd":
            raise InputError("engine 'winograd' is for CPUs: type --engine graph")
        return "graph" if name == "auto" else name
    if "graph" in name:
        raise InputError(f"engine {name!r} needs a GPU: type --engine eager or --engine compile")
    if name not in ("auto", "winograd"):
        return name
    try:
        winograd.library()
    except winograd.CannotBuild as error:
        if name == "winograd":
            raise InputError(f"no engine 'winograd': {error}; type --engine eager") from None
        say(f"no winograd engine, going on with eager: {error}")
        return "eager"
    return "winograd"


class CudaGraph:
    """A function of device tensors, captured once; a call copies its tensors in and replays it."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        stream: torch.cuda.Stream | None,
        pool: Any = None,
    ) -> None:
        """Capture the function.

        It must have run before on `static_inputs`, on this stream and in this thread.
        pool: of `torch.cuda.graph_pool_handle()`, shared by graphs that never run at the same time.
            None: memory of its own
        """
        self.inputs = static_inputs(inputs)
        self.graph = torch.cuda.CUDAGraph()
        pool = pool or torch.cuda.graph_pool_handle()
        random_state = torch.cuda.get_rng_state()
        # weights that autocast cast before would be gone at a replay, those cast within after it
        torch.clear_autocast_cache()
        failure = None
        try:
            # some versions of torch stay on the capture's stream when it fails;
            # thread_local: a loader's threads may use the device meanwhile
            with (
                _no_garbage_collection(),
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(
                    self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                try:
                    self.output = function(*self.inputs)
                except Exception as error:
                    failure = error
                    raise
        except BaseException as error:
            _end_capture(pool)
            # the end of the capture fails too then, and says less
            raise failure or error from None
        finally:
            torch.clear_autocast_cache()
            torch.cuda.set_rng_state(random_state)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output, which the next call overwrites."""
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()
        return self.output


def static_inputs(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Copies as a graph keeps them: aligned and without gaps, where a loader's are parts of more.

    Triton compiles another kernel for other alignments and strides, which a capture forbids.
    """
    return [tensor.clone() for tensor in inputs]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection during a capture could free an older graph, which the capture forbids."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _end_capture(pool: Any) -> None:
    """After a failed capture: what torch 2.11 leaves undone, so that work can go on eagerly.

    Its generator would refuse to draw, and memory that crossed streams would never be reused.
    """
    device = torch.cuda.current_device()
    with suppress(RuntimeError):  # the pool was closed already
        torch._C._cuda_endAllocateToPool(device, pool)
    with suppress(RuntimeError):  # the device is lost, which the capture's own error tells
        generator = torch.cuda.default_generators[device]
        generator.graphsafe_set_state(generator.clone_state())


class Engine:
    """Runs the steps of a team; batches of another size than `batch_size` run eagerly.

    gather: from a loader's inputs to the Batch, on the device
    totals: the values of `team.loss.names`, summed over the images since it was last zeroed
    say: gets a line for each thing that could not be had
    compile_training: whether "compile" compiles the training passes too. None: on a GPU alone,
        since on a CPU they are no faster and take most of a minute to compile
    tuned: whether a graph is captured by the plan that is fastest here, which is measured where
        none is kept, or by `Plan()`
    """

    def __init__(
        self,
        team: Team,
        gather: Callable[..., Batch],
        batch_size: int,
        name: str,
        say: Callable[[str], object] = print,
        compile_training: bool | None = None,
        tuned: bool = False,
    ) -> None:
        self.team = team
        if name == "winograd":
            team.weights_cached = winograd.Winograd
        self.gather = gather
        self.name = name
        self.say = say
        self.device = team.loss.report.device
        self.totals = torch.zeros_like(team.loss.report[:, 0])
        self.batch_size = batch_size
        self.prepared = False
        self.tuned = tuned
        self.measured: Measured | None = None
        self.printed: set[str] = set()
        self.graph: CudaGraph | None = None
        on_gpu = self.device.type == "cuda"
        self.compile_training = on_gpu if compile_training is None else compile_training
        self.generator = torch.Generator(self.device)
        # graphs are captured on a stream of their own, and what they need is rehearsed there
        self.stream: torch.cuda.Stream | None = None
        # shared by all graphs: each one's output is read before the next is replayed
        self.pool: Any = None
        if on_gpu:
            self.pool = torch.cuda.graph_pool_handle()
            self.stream = torch.cuda.Stream(self.device)
            # shapes never change, so each convolution's fastest algorithm is worth a search
            torch.backends.cudnn.benchmark = True

    def step(self, inputs: Sequence[Tensor], like: Tensor, seed: int, lr: float) -> Tensor:
        """A collaborative step; the values of `team.loss.names`, until the next step.

        inputs: of `gather`; like: any images of the batch's shape and layout, for the start noise
        that `seed` determines.
        """
        for peer in self.team.peers:
            peer.optimizer.set_lr(lr)
        noise = start_noise(self.team, like, self.generator.manual_seed(seed))
        if not self.prepared and len(like) == self.batch_size:
            self.prepared = True
            self._prepare(*static_inputs([*inputs, noise]))
        if len(like) != self.batch_size:
            if self.name not in ("eager", "winograd"):
                self._say_once(f"batches of other than {self.batch_size} images run eagerly")
            # another shape is not worth another compilation, nor a search for algorithms
            with torch.compiler.set_stance("force_eager"), without_search():
                return self._run(*inputs, noise)
        return (self.graph or self._run)(*inputs, noise)

    def _run(self, *inputs_and_noise: Tensor) -> Tensor:
        *inputs, noise = inputs_and_noise
        for peer in self.team.peers:
            peer.model.train()
        batch = self.gather(*inputs)
        values = collaborative_step(self.team, batch, noise)
        self.totals += values * len(batch.y)
        return values

    def _prepare(self, *inputs: Tensor) -> None:
        """Compile and capture, as the name says and as it can be had."""
        if self.tuned and self.name == "graph":
            self._choose(inputs)
        if "compile" in self.name:
            self._compile(True)
            try:
                self._rehearse(inputs, 1)
            except Exception as error:  # whatever a compiler can come up with
                self._give_up("compile", error)
                self._compile(False)
        if "graph" in self.name:
            try:
                self._rehearse(inputs, 3)
                self.graph = CudaGraph(self._run, inputs, self.stream, self.pool)
            except RuntimeError as error:
                self._forget_steps()
                self._give_up("graph", error)

    def _compile(self, compiled: bool) -> None:
        """Let networks be compiled where they run next, or be run as they are."""
        training = compiled and self.compile_training
        for member in self.team.members:
            member.forward = (
                torch.compile(member.model, dynamic=False) if training else member.model
            )
        for peer in self.team.peers:
            if peer.frozen is not None:
                peer.frozen.compile() if compiled else peer.frozen.uncompile()

    def tune(self, inputs: Sequence[Tensor], like: Tensor, compiled: bool = True) -> Measured:
        """Measure every way to run a step, and keep what was found for `tuned` engines.

        inputs: of `gather`; like: images of the batch's shape and layout
        compiled: whether to try networks that Inductor compiles
        """
        choices = choices_for(self.team)
        if compiled:
            choices["compiled"] = (False, True)
        noise = start_noise(self.team, like, self.generator.manual_seed(0))
        inputs = static_inputs([*inputs, noise])
        measured = Measured(Plan(), {})
        # what one choice is worth depends on the others
        for _ in range(2):
            again = search(lambda plan: self.milliseconds(plan, inputs, 10), measured.plan, choices)
            measured = Measured(again.plan, {**measured.steps, **again.steps})
        remember(key_of(self.team, self.batch_size, self.gather(*inputs[:-1]).x[:2]), measured)
        return measured

    def _choose(self, inputs: Sequence[Tensor]) -> None:
        """Follow the plan that is fastest here."""
        example = self.gather(*inputs[:-1]).x[:2]
        key = key_of(self.team, self.batch_size, example)
        self.measured = recall(key)
        if self.measured is None:
            self.say("measuring how this GPU runs a step fastest: some seconds, once")
            self.measured = search(
                lambda plan: self.milliseconds(plan, inputs), Plan(), choices_for(self.team)
            )
            remember(key, self.measured)
            # what was tried is not what the run takes
            torch.cuda.reset_peak_memory_stats(self.device)
        plan = self.measured.plan
        for remark in follow(plan, self.team, example):
            self.say(remark)
        self.name = "compile+graph" if plan.compiled else "graph"
        self.say(f"steps are run so: {plan}")

    def milliseconds(self, plan: Plan, inputs: Sequence[Tensor], repetitions: int = 3) -> float:
        """Of a step by a plan, as a graph; the best of some turns. Nothing is trained.

        inputs: those of a step, and its noise

        Raises RuntimeError where the step cannot be captured.
        """
        follow(plan, self.team, self.gather(*inputs[:-1]).x[:2])
        self._compile(plan.compiled)
        try:
            self._rehearse(inputs, 3)
            graph = CudaGraph(self._run, inputs, self.stream, self.pool)
        except RuntimeError:
            self._forget_steps()
            raise
        finally:
            self._compile(False)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        turns = []
        with self._undone():
            for _ in range(repetitions):
                begin.record()
                for _ in range(STEPS_A_TURN):
                    graph.graph.replay()
                end.record()
                end.synchronize()
                turns.append(begin.elapsed_time(end) / STEPS_A_TURN)
        return min(turns)

    def _give_up(self, what: str, error: Exception) -> None:
        self.name = "+".join(part for part in self.name.split("+") if part != what) or "eager"
        self.say(f"no {what} engine, going on with {self.name}: {_reason(error)}")

    def _say_once(self, line: str) -> None:
        if line not in self.printed:
            self.printed.add(line)
            self.say(line)

    def _rehearse(self, inputs: Sequence[Tensor], steps: int) -> None:
        """Run some steps, for compilers and allocators, and undo all that they changed."""
        with self._undone(), self._on_stream():
            for _ in range(steps):
                self._run(*inputs)

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Afterwards all that steps change is as it was."""
        state = [self.totals]
        for peer in self.team.peers:
            state += [peer.optimizer.flat, *peer.optimizer.tensors().values()]
            state += peer.model.buffers()
            state += peer.attack_state.values()
        before = [tensor.clone() for tensor in state]
        scaler = self.team.scaler.state_dict()
        devices = [self.device] if self.stream is not None else []
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            with torch.no_grad():
                for tensor, old in zip(state, before, strict=True):
                    tensor.copy_(old)
            self.team.scaler.load_state_dict(scaler)
            self._forget_steps()

    def _forget_steps(self) -> None:
        """After a failure: optimizers that count as stepped for the scaler could not step again."""
        getattr(self.team.scaler, "_per_optimizer_states", {}).clear()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Within it work goes to the stream of captures, if there is one; then the host waits for
        it.
        """
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            torch.cuda.synchronize()

    def captured(
        self, what: str, function: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Callable[..., Tensor]:
        """The function as a CUDA graph, in the memory of the steps' graph.

        It is the function itself where the engine has no graphs, or this one cannot be captured.
        what: what the line about a failure calls it
        function: of device tensors of static shape; it must not wait for the device
        inputs: tensors of the shapes and layouts that it will get
        """
        if "graph" not in self.name:
            return function
        inputs = static_inputs(inputs)
        try:
            with self._on_stream():
                function(*inputs)
            return CudaGraph(function, inputs, self.stream, self.pool)
        except RuntimeError as error:
            self._say_once(f"{what} runs eagerly: {_reason(error)}")
            return function


def _reason(error: Exception) -> str:
    """An error in one line; of a compiler's error, its cause."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip() or type(error).__name__).splitlines()[0]
