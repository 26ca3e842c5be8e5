"""Checkpoints as the field's training code leaves them, and sentences for those that do not fit."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.models import make_model, normalized
from fastcat.models.wide_resnet import WideBlock, WideResNet
from fastcat.weights.foreign import load_foreign, lookalikes
from tests.harness import tiny
from tests.harness.networks import images

State = dict[str, Tensor]


def net(seed: int = 0, classes: int = 10) -> WideResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WideResNet(10, 1, classes, 3)


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def with_phantom(state: State) -> State:
    return {**state, **prefixed("sub_block1.layer.0.", WideBlock(16, 16, 1).state_dict())}


def without_counters(state: State) -> State:
    return {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}


def other() -> State:
    return net(2).state_dict()


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.25)

# how the tensors lie in the file, what is said of it, and whether it brings a normalisation
WRAPPED: dict[str, tuple[Callable[[State], Any], list[str], bool]] = {
    "bare": (lambda s: s, [], False),
    "trades": (lambda s: with_phantom(s), ["dropped 12 tensors of sub_block1"], False),
    "trades parallel": (
        lambda s: prefixed("module.", with_phantom(s)),
        ["stripped 'module.'", "dropped 12"], False,
    ),
    "deepmind": (
        lambda s: {"model_state_dict": prefixed("module.0.", s), "epoch": 7},
        ["read under 'model_state_dict'", "stripped 'module.0.'"], False,
    ),
    "state_dict": (lambda s: {"state_dict": s, "best": 0.5}, ["read under 'state_dict'"], False),
    "net": (lambda s: {"net": prefixed("module.", s), "acc": 94.0}, ["'net'", "'module.'"], False),
    "model": (lambda s: {"model": s, "optimizer": {"state": {}}}, ["read under 'model'"], False),
    "nested": (
        lambda s: {"model": {"state_dict": s}}, ["read under 'model', 'state_dict'"], False,
    ),
    "in a list": (lambda s: [s, {"lr": 0.1}], ["read under '0'"], False),
    "beside values": (lambda s: {**s, "epoch": 7, "optimizer": {"state": {}}}, [], False),
    "compiled": (lambda s: prefixed("_orig_mod.", s), ["stripped '_orig_mod.'"], False),
    "compiled parallel": (
        lambda s: prefixed("module._orig_mod.", s), ["stripped 'module._orig_mod.'"], False,
    ),
    "lightning": (
        lambda s: {"state_dict": prefixed("model.", s)}, ["'state_dict'", "'model.'"], False,
    ),
    "mair": (
        lambda s: {"rmodel": {
            "n_classes": torch.tensor(10), "norm.mean": MEAN, "norm.std": STD,
            **prefixed("model.", s),
        }},
        ["'rmodel'", "took mean and std", "'model.'"], True,
    ),
    "normalised": (
        lambda s: {"module.0.mean": MEAN, "module.0.std": STD, **prefixed("module.1.", s)},
        ["took mean and std from module.0.mean", "stripped 'module.1.'"], True,
    ),
    "robustbench": (
        lambda s: {"mu": MEAN, "sigma": STD, **s}, ["took mean and std from mu, sigma"], True,
    ),
    "ours": (
        lambda s: {"normalize.mean": MEAN, "normalize.std": STD, **prefixed("net.", s)},
        ["took mean", "stripped 'net.'"], True,
    ),
    "before counters": (without_counters, [], False),
    "averaged": (
        lambda s: {"n_averaged": torch.tensor(7), **prefixed("module.", s)},
        ["set aside n_averaged", "stripped 'module.'"], False,
    ),
    "act": (
        lambda s: {"nat_model": other(), "adv_model": s, "nat_optimizer": {"state": {}}},
        ["'adv_model'", "took the first of adv_model, nat_model: --state nat_model takes another"],
        False,
    ),
    "average beside": (
        lambda s: {"swa_state_dict": other(), "state_dict": s, "best": 0.5},
        ["'state_dict'", "took the first of state_dict, swa_state_dict: --state swa_state_dict"],
        False,
    ),
    "deepmind with the unaveraged": (
        lambda s: {
            "unaveraged_model_state_dict": prefixed("module.0.", other()),
            "model_state_dict": prefixed("module.0.", s),
        },
        ["'model_state_dict'", "'module.0.'", "--state unaveraged_model_state_dict.module.0"],
        False,
    ),
    "the same twice": (lambda s: {"last": s, "best": s}, ["read under 'last'"], False),
    "robustness": (
        lambda s: {"model": {
            "module.normalizer.new_mean": MEAN[0], "module.normalizer.new_std": STD[0],
            "module.attacker.normalize.new_mean": MEAN[0],
            "module.attacker.normalize.new_std": STD[0],
            **prefixed("module.model.", with_phantom(s)),
            **prefixed("module.attacker.model.", with_phantom(s)),
        }},
        ["'model'", "took mean and std", "stripped 'module.model.'", "dropped 24 tensors"], True,
    ),
    "an average within": (
        lambda s: {"state_dict": {**prefixed("ema_net.", other()), **prefixed("net.", s)}},
        ["'state_dict'", "'net.'", "state_dict.net, state_dict.ema_net: --state"], False,
    ),
    "shared layers": (
        lambda s: {**s, "first.1.weight": s["conv1.weight"], "first.2.bias": s["bn1.bias"]},
        ["dropped first.1.weight, first.2.bias, which stand there twice"], False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappings(name: str, tmp_path: Path) -> None:
    wrap, remarks, normalises = WRAPPED[name]
    expected, model = net(1).state_dict(), net(0)
    torch.save(wrap(expected), tmp_path / "it.pt")
    loaded = load_foreign(tmp_path / "it.pt", model)
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())
    assert len(loaded.remarks) == len(remarks)
    for remark, part in zip(loaded.remarks, remarks, strict=True):
        assert part in remark
    if normalises:
        assert loaded.normalize is not None
        torch.testing.assert_close(
            torch.tensor(loaded.normalize), torch.stack([MEAN, STD]).flatten(1), rtol=0, atol=1e-7
        )
    else:
        assert loaded.normalize is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "seed"), [("nat_model", 2), ("adv_model", 1), ("student", 3), ("both.teacher", 4)]
)
def test_the_network_that_is_asked_for(which: str, seed: int, tmp_path: Path) -> None:
    """By its key, or by its prefix."""
    both = {
        **prefixed("teacher.", net(4).state_dict()), **prefixed("student.", net(3).state_dict()),
    }  # fmt: skip
    content = {"nat_model": other(), "adv_model": net(1).state_dict(), "both": both}
    torch.save(content, tmp_path / "it.pt")
    model = net(0)
    load_foreign(tmp_path / "it.pt", model, which)
    assert all(torch.equal(t, net(seed).state_dict()[n]) for n, t in model.state_dict().items())
    with pytest.raises(InputError, match="no network under 'ema', expected one of adv_model, nat"):
        load_foreign(tmp_path / "it.pt", model, "ema")


def test_a_file_that_refers_to_itself(tmp_path: Path) -> None:
    """Catches a search without end."""
    content: dict[str, Any] = {"state_dict": net(1).state_dict()}
    content["itself"] = content
    torch.save(content, tmp_path / "it.pt")
    model = net(0)
    load_foreign(tmp_path / "it.pt", model)
    assert all(torch.equal(t, net(1).state_dict()[n]) for n, t in model.state_dict().items())


def test_a_layer_that_the_network_lacks_is_not_a_copy(tmp_path: Path) -> None:
    """Catches a last BatchNorm of untrained values, which others have too, being left out."""
    torch.save(make_model("preactresnet18", 10, 3).state_dict(), tmp_path / "it.pt")
    model = make_model("preactresnet18-nobn", 10, 3)
    with pytest.raises(InputError, match="it has besides bn"):
        load_foreign(tmp_path / "it.pt", model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "alike"),
    [
        ("preactresnet18-fast-at", ["preactresnet18", "preactresnet18-fast-at"]),
        ("preactresnet18-nobn", ["preactresnet18-nobn", "preactresnet18-fast-at-nobn"]),
        ("resnet34", ["resnet34", "resnet34-lbgat"]),
        ("wrn-28-10", ["wrn-28-10"]),
        ("timm:resnet18", ["timm:resnet18"]),
    ],
)
def test_architectures_of_the_same_names(arch: str, alike: list[str]) -> None:
    assert lookalikes(arch, 10, 3) == alike


def test_safetensors_and_torchs_old_format(tmp_path: Path) -> None:
    expected = net(1).state_dict()
    safetensors.torch.save_file(prefixed("module.", expected), tmp_path / "it.safetensors")
    torch.save(expected, tmp_path / "it.pth", _use_new_zipfile_serialization=False)
    for file in ("it.safetensors", "it.pth"):
        model = net(0)
        load_foreign(tmp_path / file, model)
        assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


def test_a_network_whose_own_names_look_like_a_wrapping(tmp_path: Path) -> None:
    """Catches stripping `0.` off the only layer of a Sequential."""
    own, model = (nn.Sequential(nn.Linear(3, 2)) for _ in range(2))
    torch.save(prefixed("module.", own.state_dict()), tmp_path / "it.pt")
    load_foreign(tmp_path / "it.pt", model)
    assert torch.equal(model[0].weight, own[0].weight)


def test_a_network_with_a_mean_of_its_own_keeps_it(tmp_path: Path) -> None:
    own, model = normalized(net(1), [0.5], [0.25]), normalized(net(0), [0.1], [0.2])
    torch.save(own.state_dict(), tmp_path / "it.pt")
    loaded = load_foreign(tmp_path / "it.pt", model)
    assert (loaded.normalize, loaded.remarks) == (None, ())
    assert all(torch.equal(t, own.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param({}, "holds nothing: expected tensors by name", id="empty"),
        pytest.param([1, 2], "holds a list: expected tensors", id="list"),
        pytest.param(torch.ones(2), "holds a Tensor: expected tensors", id="tensor"),
        pytest.param({"epoch": 3, "lr": 0.1}, "holds epoch, lr: expected", id="values"),
        pytest.param(
            {"state_dict": {}, "args": argparse.Namespace(lr=1)},
            "holds argparse.Namespace besides tensors", id="code",
        ),
        pytest.param(
            make_model("resnet18", 10, 3).state_dict(),
            "it fits --arch resnet18 with 10 classes in 3 channels", id="another-network-names",
        ),
        pytest.param(
            prefixed("module.", make_model("mobilenet", 7, 1).state_dict()),
            "it fits --arch mobilenet with 7 classes in 1 channels", id="another-network",
        ),
        pytest.param(
            net(0, classes=100).state_dict(),
            "other shapes: fc.weight 100x64 for 10x64, fc.bias 100 for 10; no architecture",
            id="other-classes",
        ),
        pytest.param(
            {"conv1.weight": torch.ones(16, 3, 3, 3)}, "it lacks block1.layer.0.bn1.weight",
            id="a-part",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(content: Any, text: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "it.pt")
    model = net(0)
    with pytest.raises(InputError) as caught:
        load_foreign(tmp_path / "it.pt", model)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, net(0).state_dict()[n]) for n, t in model.state_dict().items())


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save(net(0).state_dict(), whole)
    (tmp_path / "half.pt").write_bytes(whole.read_bytes()[:9000])
    for name, content in (
        ("text.pt", b"hello"), ("empty.pth", b""), ("text.safetensors", b"hello"),
        ("zeros.pt", bytes(500)), ("dot.pt", b"."),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    files = ("text.pt", "empty.pth", "text.safetensors", "zeros.pt", "dot.pt", "half.pt")
    for name in files:
        with pytest.raises(InputError, match="damaged or no checkpoint"):
            load_foreign(tmp_path / name, net(0))
    with pytest.raises(InputError, match="cannot read checkpoint"):
        load_foreign(tmp_path / "nowhere.pt", net(0))


# fastcat eval


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny network for digits that normalises, as a paper's code would save it."""
    tiny.register()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = tiny.Tiny(10, 1)
    nn.init.normal_(net.linear.weight, 0.0, 5.0)  # it tells images apart
    model = normalized(net, [0.9], [0.05])
    for seed in range(5):
        model(images(seed, 20, 8, 1)[0])
    torch.save({"state_dict": prefixed("module.", model.state_dict())}, "theirs.pt")
    torch.save(model.get_submodule("net").state_dict(), "bare.pt")
    return tmp_path / "theirs.pt"


@pytest.mark.slow
def test_eval_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a normalisation of its file, or as typed: the same network."""
    common = ["--arch", "Tiny", "--data", "digits", "--attacks", "clean,pgd2", "--n", "60"]
    assert main(["eval", "theirs.pt", *common, "--out", "a.json"]) == 0
    printed = capsys.readouterr().out
    for part in ("read under 'state_dict'", "took mean and std", "eps 8/255 is assumed", "tiny, "):
        assert part in printed
    typed = ["--mean", "0.9", "--std", "0.05", "--eps", "8/255", "--out", "b.json"]
    assert main(["eval", "bare.pt", *common, *typed]) == 0
    assert "assumed" not in capsys.readouterr().out
    assert main(["eval", "bare.pt", *common, "--out", "c.json"]) == 0
    first, second, other = (
        next(iter(json.loads(Path(f"{name}.json").read_text())["peers"].values())) for name in "abc"
    )
    assert first["attacks"] == second["attacks"] != other["attacks"]
    assert first["info"]["mean"] == pytest.approx([0.9])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("theirs.pt", "does not say which network it holds: type --arch"),
        ("theirs.pt --arch tiny", "type --data"),
        ("theirs.pt --arch tyny --data digits", "did you mean 'tiny'"),
        ("theirs.pt --arch mobilenet --data digits", "it fits --arch tiny with 10 classes"),
        ("bare.pt --arch tiny --data digits --mean 0.5", "type both"),
        ("bare.pt --data digits --mean 0.5 --std 0.5", "type --arch too"),
        ("bare.pt --data digits --state adv_model", "--state is for a checkpoint of others"),
        ("bare.pt --arch tiny --data digits --state ema", "no network under 'ema', expected one"),
        ("bare.pt --arch tiny --data digits --mean a --std 1", "mean is 'a', expected numbers"),
        ("bare.pt --arch tiny --data digits --mean 0 --std 0", "expected 1 numbers above 0"),
        ("bare.pt --arch tiny --data digits --mean 0,0 --std 1,1", "2 numbers for 1 channels"),
        ("bare.pt --arch tiny --data digits --norm l2", "was not trained under l2: type --eps too"),
        ("nowhere.pt --arch tiny --data digits", "nowhere.pt holds no weights"),
        (". --arch tiny --data digits", ". holds no weights"),
    ],
)
def test_eval_refuses(
    arguments: str, text: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
