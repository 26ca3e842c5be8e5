"""Networks of torchvision, of timm and of one's own, by name, also out of a weight file."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastcat.attacks.frozen import Frozen
from fastcat.cli import main
from fastcat.config.peers import parse_peers
from fastcat.errors import InputError
from fastcat.models import canonical_arch, make_model
from fastcat.weights.file import WeightsInfo, load_weights, save_weights
from tests.harness.networks import images
from tests.harness.runs import SMALL

OWN_NETWORKS = """
import torch
from torch import nn
from torch.nn import Module


class Net(nn.Sequential):
    pass


def make_net(classes: int, channels: int) -> nn.Module:
    return Net(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
               nn.Flatten(), nn.Linear(4, classes))


def make_subclass(classes: int, channels: int) -> Net:
    return make_net(classes, channels)


def in_words(classes: int, channels: int) -> "torch.nn.Module":
    return make_net(classes, channels)


def in_a_word(classes: int, channels: int) -> "Module":
    return make_net(classes, channels)


def calls(classes: int, channels: int) -> "print('called')":
    return make_net(classes, channels)


def unannotated(classes, channels):
    return make_net(classes, channels)


def of_one(classes: int) -> nn.Module:
    return make_net(classes, 3)


def number(classes: int, channels: int) -> int:
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(OWN_NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("function", ["make_net", "make_subclass", "in_words", "in_a_word"])
def test_own_network(function: str) -> None:
    arch = f"my_nets:{function}"
    assert canonical_arch(arch) == arch
    assert make_model(arch, 7, 1)(images(0, 2, 8, 1)[0]).shape == (2, 7)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("my_nets:unannotated", "annotated `-> nn.Module`"),
        ("my_nets:number", "annotated `-> nn.Module`"),
        ("my_nets:calls", "annotated `-> nn.Module`"),
        ("my_nets:Net", "annotated `-> nn.Module`"),
        ("my_nets:of_one", "expected a function of (classes, channels)"),
        ("my_nets:nothing", "cannot import architecture 'my_nets:nothing'"),
        ("no_such_module_here:f", "cannot import architecture"),
        ("os:getcwd", "annotated `-> nn.Module`"),
        ("os:system", "annotated `-> nn.Module`"),
        (":f", "cannot import architecture ':f'"),
        ("my_nets:", "cannot import architecture 'my_nets:'"),
        ("..relative:f", "cannot import architecture"),
        ("torchvision:convnext_tinny", "did you mean 'torchvision:convnext_tiny'?"),
        ("torchvision:", "torchvision has no architecture ''"),
        ("torchvision:get_model", "torchvision has no architecture 'get_model'"),
    ],
)
def test_names_that_lead_nowhere(arch: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError) as caught:
        make_model(arch, 10, 3)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not capsys.readouterr().out


def test_torchvision() -> None:
    with torch.device("meta"):
        net = make_model("torchvision:convnext_tiny", 10, 3)
    # its 28 589 128 parameters with a head of 768 for 10 instead of 1000 classes
    assert sum(p.numel() for p in net.parameters()) == 28_589_128 - 990 * 769
    with pytest.raises(InputError, match="takes 3 channels, not 1"):
        make_model("torchvision:convnext_tiny", 10, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "googlenet"])
def test_torchvisions_networks_train_and_freeze(name: str) -> None:
    torch.manual_seed(0)
    # in float64: GoogLeNet's many poolings choose other pixels after a rounding
    net = make_model(f"torchvision:{name}", 5, 3).double()
    x = images(0, 2, 32)[0].double()
    assert net(x).shape == (2, 5)
    Frozen(net.eval(), torch.float64, x)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="timm:convnext_tiny needs timm: pip install timm"):
        canonical_arch("timm:convnext_tiny")


@pytest.mark.slow
def test_timm() -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        net = make_model("timm:convnext_tiny", 10, 1)
    # the stem is a convolution of 4x4 to 96 channels
    assert sum(p.numel() for p in net.parameters()) == 28_589_128 - 990 * 769 - 2 * 16 * 96
    torch.manual_seed(0)
    small = make_model("timm:resnet10t", 5, 3)
    x = images(0, 2, 32)[0]
    assert small(x).shape == (2, 5)
    Frozen(small.eval(), torch.float32, x)
    for name in ("convnext_tinny", "hf-hub:someone/something", "local-dir:/tmp"):
        with pytest.raises(InputError, match="timm has no architecture"):
            canonical_arch(f"timm:{name}")


@pytest.mark.usefixtures("own")
def test_peers_with_networks_from_elsewhere() -> None:
    text = "trades:beta=3@my_nets:make_net,alp@torchvision:convnext_tiny,at"
    assert [spec.arch for spec in parse_peers(text, "my_nets:make_subclass")] == [
        "my_nets:make_net", "torchvision:convnext_tiny", "my_nets:make_subclass",
    ]  # fmt: skip


@pytest.mark.usefixtures("own")
def test_weight_files_of_own_networks(tmp_path: Path) -> None:
    """They record the name, by which the network is built again, and nothing else is called."""
    net = make_model("my_nets:make_net", 3, 1, ([0.5], [0.25]))
    info = WeightsInfo(
        peer="0-at", arch="my_nets:make_net", data="digits", classes=("a", "b", "c"), channels=1,
        mean=(0.5,), std=(0.25,), threats="linf:eps=0.1", epoch=1, selected="last",
    )  # fmt: skip
    save_weights(tmp_path / "it.safetensors", net.state_dict(), info)
    loaded, found = load_weights(tmp_path / "it.safetensors")
    assert found == info
    x = images(0, 2, 8, 1)[0]
    torch.testing.assert_close(loaded(x), net.eval()(x))
    del sys.modules["my_nets"]
    (tmp_path / "my_nets.py").unlink()
    with pytest.raises(InputError, match="cannot import architecture 'my_nets:make_net'"):
        load_weights(tmp_path / "it.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_a_run_with_an_own_network_resumes_and_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["my_nets:make_net" if argument == "tiny" else argument for argument in SMALL]
    assert main(["train", *small, "--peers", "at,trades", "--epochs", "1", "--out", "run"]) == 0
    assert main(["resume", "run"]) == 0
    assert main(["eval", "run", "--attacks", "clean", "--n", "20"]) == 0
    record = json.loads((tmp_path / "run" / "eval" / "test.json").read_text())
    assert {entry["info"]["arch"] for entry in record["peers"].values()} == {"my_nets:make_net"}
    assert capsys.readouterr().out
