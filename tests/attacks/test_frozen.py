"""The frozen twin of a network: the same function of the images, and nothing else.

In float64 twin and model differ by rounding alone, measured up to 3e-15 of the largest number in
18 layers; the tolerance is 1e-12.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastcat.attacks.frozen import CannotFreeze, Epilogue, Frozen
from fastcat.attacks.modes import attack_mode
from fastcat.attacks.pgd import PGD, attack_all
from fastcat.attacks.threat import ThreatModel
from fastcat.batch import Batch
from fastcat.kernels import winograd
from fastcat.objectives import make_objective
from fastcat.precision import make_precision
from fastcat.step.algorithm import attack_views, collaborative_step, start_noise
from tests.harness.comparison import assert_same
from tests.harness.foldable import NETWORKS
from tests.harness.networks import images, seeded, tiny_net
from tests.harness.teams import team_of

TOLERANCE = 1e-12


def randomised(net: nn.Module) -> nn.Module:
    """In float64 and train mode, no BatchNorm statistic or scale at 0 or 1."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return net.double().train()


def images64(seed: int = 0, size: int = 3) -> Tensor:
    return images(seed, size, 16)[0].double().to(memory_format=torch.channels_last)


def outcome(net: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient in x of a sum that tells the classes apart."""
    x = x.detach().requires_grad_()
    z = net(x)
    weights = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).reshape(z.shape)
    return z.detach(), torch.autograd.grad((z * weights.to(z.dtype)).sum(), x)[0]


def assert_same_function(model: nn.Module, twin: Frozen, x: Tensor, tolerance: float) -> None:
    with attack_mode(model, "eval"):
        pairs = zip(outcome(twin, x.to(twin.dtype)), outcome(model, x), strict=True)
        for ours, expected in pairs:
            error = (ours.double() - expected).abs().max().item()
            assert error <= tolerance * expected.abs().max().item(), f"off by {error:.3g}"


def everything(net: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {name: value.clone() for name, value in net.state_dict().items()}
    for name, module in net.named_modules():
        found[f"{name} training"] = module.training
        found[f"{name} tracks"] = getattr(module, "track_running_stats", None)
        found[f"{name} children"] = [child for child, _ in module.named_children()]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epilogue"),
    [
        *((name, "torch") for name in NETWORKS),
        *(
            pytest.param(name, "kernel", marks=[] if n % 4 == 0 else pytest.mark.represented)
            for n, name in enumerate(NETWORKS)
        ),
    ],
)
def test_twin_equals_model(name: str, epilogue: Epilogue) -> None:
    """Before and after the weights and statistics change, and without a trace in the model.

    Where something cannot be folded, it is left as it is.

    Catches a fold with the wrong sign, scale, eps or order, one that reads yesterday's weights, and
    one that takes a node for something else than it is.
    """
    model = randomised(NETWORKS[name]())
    before = everything(model)
    twin = Frozen(model, torch.float64, images64(5, 2), epilogue)
    assert twin.epilogue == epilogue
    assert_same(before, everything(model))
    assert_same_function(model, twin, images64(), TOLERANCE)
    assert_same(before, everything(model))
    assert all(p.grad is None for p in model.parameters())

    # a training step: other weights, other statistics
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with torch.random.fork_rng():
        model(images64(1)).square().mean().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    before = everything(model)
    twin.refold()
    assert_same(before, everything(model))
    assert_same_function(model, twin, images64(2, 5), TOLERANCE)
    assert_same(before, everything(model))
    for name, grad in grads.items():
        assert torch.equal(model.get_parameter(name).grad, grad), "the twin gave it a gradient"


@pytest.mark.slow
def test_what_can_be_folded_is_folded() -> None:
    """A twin that copies the model is right, too, and slow: no BatchNorm may be left over."""
    folded = [
        "resnet18",
        "preactresnet18",
        "wrn-10-2",
        "swish-10-1",
        "separable",
        "two convolutions in a sum",
        "dropout",
    ]
    for name in folded:
        twin = Frozen(randomised(NETWORKS[name]()), torch.float64, images64())
        left = {str(node.target) for node in twin._network.graph.nodes if node.op == "call_module"}
        modules = [twin._network.get_submodule(target) for target in left]
        assert not [m for m in modules if isinstance(m, nn.BatchNorm2d | nn.Conv2d | nn.Dropout)]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in twin.model.modules())
    assert convolutions == sum(
        node.name.startswith("conv_block") for node in twin._network.graph.nodes
    )


@pytest.mark.slow
def test_a_compiled_twin_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a question that some versions of dynamo cannot trace, in every convolution."""

    def current() -> None:
        raise AssertionError("asked for while compiling")

    twin = Frozen(randomised(tiny_net(0)), torch.float64, images64())
    x = images64(1)
    expected = twin(x)
    monkeypatch.setattr(winograd, "current", current)
    compiled = torch.compile(twin._network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_twin_is_yesterdays_until_it_is_refolded() -> None:
    """Weights stand still during an attack; a twin that reads them live casts them each time."""
    model = randomised(tiny_net(0))
    twin = Frozen(model, torch.float64, images64())
    before = twin(images64())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert torch.equal(twin(images64()), before)
    twin.refold()
    assert not torch.allclose(twin(images64()), before, rtol=0.01)


def test_the_twin_is_in_eval_mode_whatever_mode_the_model_is_in() -> None:
    """Catches a dropout that still draws, and a BatchNorm that takes the batch's statistics."""
    for name in ("dropout", "functional dropout", "normalised"):
        model = randomised(NETWORKS[name]())
        model.train()
        twin = Frozen(model, torch.float64, images64())
        x, state, before = images64(), torch.get_rng_state(), everything(model)
        in_train_mode = twin(x)
        model.eval()
        assert torch.equal(twin(x), in_train_mode)
        model.train()
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(before, everything(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "wrn-10-2", "without statistics", "other norms"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_twins_are_close_to_autocast(
    name: str, precision: str, tolerance: float
) -> None:
    """Both round to 8 or 11 bits at every layer; neither may be further from float64.

    Catches a fold in half precision, where scale and weight are rounded before they are multiplied.
    """
    exact = randomised(NETWORKS[name]())
    model = copy.deepcopy(exact).float()
    arithmetic = make_precision(precision, torch.device("cpu"))
    x = images64()
    with attack_mode(exact, "eval"):
        expected = exact(x).detach()
    twin = Frozen(model, arithmetic.dtype, x[:2].float())
    with arithmetic.autocast(), attack_mode(model, "eval"), torch.no_grad():
        ours = twin(x.to(arithmetic.dtype))
        theirs = model(x.float())
    assert ours.dtype == arithmetic.dtype
    size = expected.norm()
    assert (ours.double() - theirs.double()).norm() <= tolerance * size
    error, allowed = (ours.double() - expected).norm(), (theirs.double() - expected).norm()
    assert error <= 2 * allowed + 1e-3 * size


def test_attacks_on_a_low_precision_twin_read_a_copy_of_the_view() -> None:
    """Step by step, in the twin's type; the view itself stays in float32, finer than bf16.

    Catches a copy that is not brought up to date, and images that are rounded to bf16.
    """
    model = tiny_net(0)
    x, y = images(0, 5)
    twin = Frozen(model, torch.bfloat16, x[:2])
    threat = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=4)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return twin._network(x)

    twin.forward = watched
    noise = threat.draw_noise("uniform", x, seeded())[None, None]
    (x_adv,) = attack_all([twin], [PGD()], x, y, threat, noise)
    assert [view.dtype for view in seen] == [torch.bfloat16] * 4
    assert not any(torch.equal(a, b) for a, b in pairwise(seen))
    assert torch.equal(seen[0], threat.start(x, "uniform", noise[0, 0]).bfloat16())
    assert x_adv.dtype == torch.float32
    assert (x_adv.bfloat16().float() != x_adv).any()
    assert (x_adv - x).abs().max() <= threat.eps + 2**-23
    # as the model itself under autocast, but where rounding decides the sign of a small gradient
    with torch.autocast("cpu", torch.bfloat16):
        (by_model,) = attack_all([model], [PGD()], x, y, threat, noise)
    assert ((x_adv - by_model).abs() < 1e-6).float().mean() > 0.8


class Branching(nn.Module):
    """What it computes depends on the numbers that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2.0 if x.mean() > 0.4 else 1.0)


class Drawing(nn.Module):
    """It draws in eval mode, too, so that no two forwards are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.5))


@pytest.mark.parametrize("make", [Branching, Drawing])
def test_networks_without_a_twin_are_refused(make: type[nn.Module]) -> None:
    model = make().double()
    before = everything(model)
    with pytest.raises(CannotFreeze) as caught:
        Frozen(model, torch.float64, images64())
    assert len(str(caught.value).splitlines()) == 1
    assert_same(before, everything(model))


class Drifting(nn.Module):
    """While it is traced, something else becomes of its logits."""

    def __init__(self, traced: Callable[[Any], Any]) -> None:
        super().__init__()
        self.net = tiny_net(0)
        self.traced = traced

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return self.traced(z) if isinstance(x, fx.Proxy) else z


@pytest.mark.parametrize(
    "traced",
    [
        pytest.param(lambda z: 1.01 * z, id="logits-and-gradients"),
        pytest.param(lambda z: z + 0.01 * z.detach(), id="logits-by-1-percent"),
        pytest.param(lambda z: 0.97 * z + 0.03 * z.detach(), id="gradients-by-3-percent"),
    ],
)
def test_a_twin_that_is_slightly_off_is_refused(traced: Callable[[Any], Any]) -> None:
    """Catches a comparison that leaves out one of both, or has the patience of half precision."""
    assert Frozen(Drifting(lambda z: z).double(), torch.float64, images64())
    with pytest.raises(CannotFreeze, match="its traced form computes something else"):
        Frozen(Drifting(traced).double(), torch.float64, images64())


def test_a_team_goes_on_without_a_twin_and_says_so() -> None:
    """With the very numbers of a team whose peers are all attacked as they are.

    Catches a team that stops, one that keeps silent, and one that freezes the wrong peer.
    """
    teams = [team_of(["trades", "alp"], [Branching(), tiny_net(1)]) for _ in range(2)]
    for team in teams:
        (remark,) = team.remarks
        assert remark.startswith("0-trades (tiny) is attacked as it is, more slowly: it cannot be")
        assert team.peers[0].frozen is None
        assert team.attacked(0) is team.peers[0].model
        assert team.attacked(1) is team.peers[1].frozen is not None
    teams[1].peers[1].frozen = None
    for step in range(3):
        x, y = images(step, 6)
        results = []
        for team in teams:
            noise = start_noise(team, x, seeded(step))
            results.append(collaborative_step(team, Batch(x, y, y), noise))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_peers_attacked_on_the_batchs_statistics_are_attacked_as_they_are() -> None:
    """A twin knows the running statistics only."""
    team = team_of([make_objective("at", {"bn": "train"}), "at", "natural"])
    assert not team.remarks
    assert team.attacked(0, "train") is team.peers[0].model
    assert team.attacked(1) is team.peers[1].frozen
    x, y = images(0, 6)
    views = attack_views(team, Batch(x, y, y), start_noise(team, x, seeded()))
    assert views.keys() == {"clean", "adv0", "adv1"}


def test_each_attack_is_on_the_weights_of_its_step() -> None:
    """Catches a twin that is folded once and for all."""
    team = team_of(["at"], lr=0.5)
    (peer,) = team.peers
    x, y = images(0, 6)
    former = x
    for _ in range(3):
        noise = start_noise(team, x, seeded())
        view = attack_views(team, Batch(x, y, y), noise)["adv0"]
        threat = ThreatModel(steps=2)
        (alone,) = attack_all([peer.model], [peer.objective.inner], x, y, threat, noise)
        assert ((view - alone).abs() < 1e-6).float().mean() > 0.99
        assert (view - former).abs().max() > 1e-3
        former = view.clone()
        collaborative_step(team, Batch(x, y, y), noise)


def test_an_epilogue_that_gives_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcat.attacks.frozen.masked_sum", lambda y, grad, _: grad)
    model = tiny_net(0).double().eval()
    twin = Frozen(model, torch.float64, images64(), "kernel")
    assert twin.epilogue == "torch"
    assert not twin.use("kernel")
    assert twin.use("torch")
    assert_same_function(model, twin, images64(), TOLERANCE)


def test_the_gradients_of_all_readers_arrive() -> None:
    """Catches a gradient that is dropped where three read one block, or where nobody learns."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.linear = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out = self.conv(x).relu()
            return self.linear((out + out.square() + out.sin()).mean((2, 3)))

    model = Three().double().eval()
    twin = Frozen(model, torch.float64, images64(), "kernel")
    assert twin.epilogue == "kernel"
    assert_same_function(model, twin, images64(), TOLERANCE)
