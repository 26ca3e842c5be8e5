"""Networks that do not fit: one sentence before anything is made; the trial moves nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.models import make_model
from fastcat.models.ghost import split_norms
from fastcat.precision import Precision
from fastcat.runs.trial import check_network
from fastcat.weights.file import WeightsInfo, save_weights
from tests.harness import tiny
from tests.harness.runs import SMALL

FP32 = Precision("fp32", "cpu")
HERE = "tests.runs.test_network_fits"


class Then(nn.Module):
    """A small network, and what is done to its logits."""

    def __init__(self, net: nn.Module, then: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, self.net(x))


def small(classes: int, channels: int) -> nn.Module:
    return tiny.Tiny(classes, channels)


def then(function: Callable[[Any, Tensor], Any]) -> nn.Module:
    return Then(small(10, 1), function)


def fewer(classes: int, channels: int) -> nn.Module:
    return small(2, channels)


def maps(classes: int, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, classes, 3), nn.AdaptiveAvgPool2d(1))


def broken(classes: int, channels: int) -> nn.Module:
    raise ValueError("no weights\nfor you")


def nothing(classes: int, channels: int) -> nn.Module:
    return None  # type: ignore[return-value]


def normed_points() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 10, 8), nn.BatchNorm2d(10), nn.Flatten(), nn.Linear(10, 10)
    )  # fmt: skip


def diverged() -> nn.Module:
    net = small(10, 1)
    nn.init.constant_(net.get_parameter("linear.bias"), torch.nan)
    return net


class Counting(nn.Module):
    """Puts another buffer in the place of its own at every forward."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x


def without_grad(x: Tensor) -> Tensor:
    return x.detach()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return small(10, 1)


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "too many": (lambda: small(1000, 1), "gives 1000 logits an image, expected 10, one for each"),
    "too few": (lambda: small(2, 1), "gives 2 logits an image, expected 10"),
    "one": (lambda: small(1, 1), "gives one logit an image"),
    "a map": (lambda: maps(10, 1), "shape (2, 10, 1, 1), expected float logits (2, 10): let its"),
    "a tuple": (lambda: then(lambda _, z: (z, z)), "gives a tuple, expected a tensor"),
    "a dict": (lambda: then(lambda _, z: {"logits": z}), "gives a dict, expected a tensor"),
    "nothing": (lambda: then(lambda _, z: None), "gives a NoneType, expected a tensor"),
    "classes": (lambda: then(lambda _, z: z.argmax(1)), "gives int64 of shape (2,)"),
    "one answer for the batch": (lambda: then(lambda _, z: z.mean(0)), "of shape (10,)"),
    "a tuple in training": (lambda: then(lambda m, z: (z, z) if m.training else z), "a tuple"),
    "a tuple in evaluation": (lambda: then(lambda m, z: z if m.training else (z, z)), "a tuple"),
    "frozen": (lambda: small(10, 1).requires_grad_(False), "has nothing to train"),
    "without parameters": (lambda: nn.Sequential(nn.Flatten(), nn.Identity()), "nothing to train"),
    "doubles": (lambda: small(10, 1).double(), "has weights of float64, expected float32"),
    "halves": (lambda: small(10, 1).half(), "has weights of float16, expected float32"),
    "lazy": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "has weights without values",
    ),
    "on no device": (on_meta, "has weights without values"),
    "other channels": (lambda: small(10, 3), "cannot take images [2, 1, 8, 8], "),
    "other sizes": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), "cannot take images [2, 1, 8, 8]",
    ),
    "views": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(7, 10)), "cannot take",
    ),
    "NaN": (diverged, "gives NaN or infinite logits before the first step"),
    "no gradient": (
        lambda: then(lambda _, z: without_grad(z)), "depend on none of its parameters",
    ),
    "a point normalised alone": (normed_points, "choose a --batch-size that leaves no single"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_one_sentence(name: str) -> None:
    make, text = ODD[name]
    with pytest.raises(InputError) as caught:
        check_network(make(), "0-at (odd)", (8, 8, 1), 10, FP32, last_batch=1)
    assert str(caught.value).startswith("0-at (odd)")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_judged_alone_need_not_train() -> None:
    """Frozen weights, BatchNorm of single points and NaN, which counts as wrong, may be judged."""
    for net in (small(10, 1).requires_grad_(False), normed_points(), diverged()):
        check_network(net, "it", (8, 8, 1), 10, FP32)
    check_network(normed_points(), "it", (8, 8, 1), 10, FP32, last_batch=2)


def test_the_trial_moves_nothing() -> None:
    """Catches BatchNorm statistics, modes, random numbers and gradients that a run would notice."""
    torch.manual_seed(3)
    net = nn.Sequential(
        small(10, 1), nn.BatchNorm1d(10, momentum=None), nn.Dropout(0.5), Counting()
    )
    split_norms(net, 2)
    net[0].eval()
    modes = [module.training for module in net.modules()]
    before, state = {n: t.clone() for n, t in net.state_dict().items()}, torch.get_rng_state()
    check_network(net, "it", (8, 8, 1), 10, FP32, last_batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(InputError):
        check_network(Then(net, lambda m, z: (z,)), "it", (8, 8, 1), 10, FP32, last_batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken", "cannot be built for 10 classes in 3 channels: no weights"),
        ("nothing", "gives a NoneType, expected an nn.Module"),
    ],
)
def test_what_cannot_be_built(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        make_model(f"{HERE}:{name}", 10, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def teaching(folder: Path) -> list[str]:
    """A teacher from a file that says rightly how it is built, but is none."""
    info = WeightsInfo(
        peer="0-at", arch=f"{HERE}:maps", data="digits", classes=tuple("0123456789"), channels=1,
        mean=None, std=None, threats="linf:eps=0.1", epoch=1, selected="last",
    )  # fmt: skip
    save_weights(folder / "t.safetensors", maps(10, 1).state_dict(), info)
    return ["--peers", "teacher:weights=t.safetensors,rslad"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--arch", f"{HERE}:fewer", "--peers", "at"],
            f"0-at ({HERE}:fewer) ",
        ),
        (
            ["--peers", f"at,at@{HERE}:maps"],
            f"1-at ({HERE}:maps) gives float32",
        ),
        (["--arch", f"{HERE}:fewer", "--seeds", "0,1"], "gives 2 logits an image, expected 10"),
        (["--arch", f"{HERE}:broken"], "cannot be built for 10 classes"),
        ("teaching", "0-teacher (tests.runs.test_network_fits:maps) gives float32 of shape"),
    ],
)
def test_train_leaves_no_folder(
    arguments: Any, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == "teaching":
        arguments = teaching(folder)
    assert main(["train", *SMALL, *arguments, "--epochs", "1", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (folder / "run").exists()


def test_eval_and_bench_refuse(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(maps(10, 1).state_dict(), "it.pt")
    arch = ["--arch", f"{HERE}:maps"]
    assert main(["eval", "it.pt", *arch, "--data", "digits", "--out", "it.json"]) == 2
    assert "it.pt (tests.runs.test_network_fits:maps) gives float32 of" in capsys.readouterr().err
    assert main(["bench", *arch, "--out", "bench.json"]) == 2
    assert f"{HERE}:maps gives float32 of shape (2, " in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["it.pt"]
