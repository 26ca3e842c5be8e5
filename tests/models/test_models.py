"""Networks: parameter counts, the names of checkpoints in circulation, sizes, normalisation."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.attacks.frozen import Frozen
from fastcat.errors import InputError
from fastcat.models import ARCHS, Normalize, canonical_arch, make_model, normalized
from fastcat.models.preact_resnet import PreActResNet, RawShortcutBlock
from fastcat.models.wide_resnet import WideResNet
from fastcat.models.wide_resnet_swish import SwishWideResNet
from tests.harness.networks import images, lived, randomised

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "preactresnet18": (2, 2, 2, 2),
}
BOTTLENECKS = ("resnet50", "resnet101")
WIDTHS = (64, 128, 256, 512)


def conv_bn(prefix: str, conv: str, bn: str) -> list[str]:
    return [f"{prefix}{conv}.weight", f"{prefix}{bn}.weight", f"{prefix}{bn}.bias"]


def resnet_names(depths: tuple[int, ...], convs: int) -> list[str]:
    """Parameters of a ResNet in the order of a checkpoint; `convs` to a block."""
    names = conv_bn("", "conv1", "bn1")
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}."
            for i in range(1, convs + 1):
                names += conv_bn(prefix, f"conv{i}", f"bn{i}")
            if block == 0 and (stage > 1 or convs == 3):
                names += conv_bn(prefix, "shortcut.0", "shortcut.1")
    return [*names, "linear.weight", "linear.bias"]


def preact_names(depths: tuple[int, ...]) -> list[str]:
    """Normalisation before convolution, shortcuts without, one more normalisation at the end."""
    names = ["conv1.weight"]
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            prefix = f"layer{stage}.{block}."
            for i in (1, 2):
                names += [f"{prefix}bn{i}.weight", f"{prefix}bn{i}.bias", f"{prefix}conv{i}.weight"]
            if block == 0 and stage > 1:
                names.append(f"{prefix}shortcut.0.weight")
    return [*names, "bn.weight", "bn.bias", "linear.weight", "linear.bias"]


def resnet_parameters(depths: tuple[int, ...], expansion: int, channels: int, classes: int) -> int:
    """Convolutions i o k^2, normalisations 2 o, and the head."""
    total, wide = 9 * channels * 64 + 2 * 64, 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        for block in range(depth):
            if expansion == 1:
                total += 9 * wide * width + 9 * width * width + 4 * width
            else:
                total += wide * width + 9 * width * width + 4 * width
                total += width * 4 * width + 8 * width
            if block == 0 and (stage or expansion > 1):
                total += wide * width * expansion + 2 * width * expansion
            wide = width * expansion
    return total + wide * classes + classes


def preact_parameters(depths: tuple[int, ...], channels: int, classes: int) -> int:
    total, wide = 9 * channels * 64, 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        for block in range(depth):
            total += 2 * wide + 9 * wide * width + 2 * width + 9 * width * width
            total += wide * width if block == 0 and stage else 0
            wide = width
    return total + 2 * wide + wide * classes + classes


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def skeleton(arch: str, classes: int = 10, channels: int = 3) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return make_model(arch, classes, channels)


# counts and names


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("preactresnet18", 11_172_170),
        ("preactresnet18-fast-at", 11_172_170),
        ("preactresnet18-nobn", 11_171_146),
        ("preactresnet18-fast-at-nobn", 11_171_146),
        ("resnet18-lbgat", 11_173_962),
        ("resnet34-lbgat", 21_282_122),
        ("resnet50-lbgat", 23_520_842),
        ("resnet101-lbgat", 42_512_970),
        ("resnet101", 42_512_970),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
        ("wrn-34-20", 184_531_674),
        ("wrn-70-16", 266_796_506),
        ("wrn-28-10-swish", 36_479_194),
        ("wrn-34-20-swish", 184_531_674),
        ("wrn-70-16-swish", 266_796_506),
        ("vgg11", 9_231_114),
        ("vgg13", 9_416_010),
        ("vgg16", 14_728_266),
        ("vgg19", 20_040_522),
        ("mobilenet", 3_217_226),
        ("mobilenetv2", 2_296_922),
    ],
)
def test_parameter_counts_in_the_literature(arch: str, expected: int) -> None:
    assert count(skeleton(arch)) == expected


@pytest.mark.parametrize(("channels", "classes"), [(3, 10), (1, 100)], ids=["cifar10", "grey-100"])
@pytest.mark.parametrize("arch", DEPTHS)
def test_parameter_counts_by_formula(arch: str, channels: int, classes: int) -> None:
    if arch == "preactresnet18":
        expected = preact_parameters(DEPTHS[arch], channels, classes)
    else:
        expansion = 4 if arch in BOTTLENECKS else 1
        expected = resnet_parameters(DEPTHS[arch], expansion, channels, classes)
    assert count(skeleton(arch, classes, channels)) == expected


@pytest.mark.parametrize("arch", DEPTHS)
def test_parameters_have_the_names_and_order_of_checkpoints(arch: str) -> None:
    if arch == "preactresnet18":
        expected = preact_names(DEPTHS[arch])
    else:
        expected = resnet_names(DEPTHS[arch], convs=3 if arch in BOTTLENECKS else 2)
    net = skeleton(arch)
    assert [name for name, _ in net.named_parameters()] == expected
    buffers = {name.rpartition(".")[2] for name, _ in net.named_buffers()}
    assert buffers == {"running_mean", "running_var", "num_batches_tracked"}


def test_wide_resnets_have_the_names_of_checkpoints() -> None:
    """Those of Zhang et al.; a checkpoint's `sub_block1`, which nothing reads, is left out."""
    expected = ["conv1.weight"]
    for group in (1, 2, 3):
        for i in range(5):
            prefix = f"block{group}.layer.{i}."
            for part in ("bn1", "conv1", "bn2", "conv2"):
                kinds = ("weight", "bias") if part.startswith("bn") else ("weight",)
                expected += [f"{prefix}{part}.{kind}" for kind in kinds]
            if i == 0:
                expected.append(f"{prefix}convShortcut.weight")
    expected += ["bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    assert [name for name, _ in skeleton("wrn-34-10").named_parameters()] == expected


def test_swish_wide_resnets_have_the_names_of_checkpoints() -> None:
    """Those of DeepMind, Rade and Wang et al."""
    expected = ["init_conv.weight"]
    for group in range(3):
        for i in range(4):
            prefix = f"layer.{group}.block.{i}."
            for k in (0, 1):
                kinds = (f"batchnorm_{k}.weight", f"batchnorm_{k}.bias", f"conv_{k}.weight")
                expected += [f"{prefix}{kind}" for kind in kinds]
            if i == 0:
                expected.append(f"{prefix}shortcut.weight")
    expected += ["batchnorm.weight", "batchnorm.bias", "logits.weight", "logits.bias"]
    net = skeleton("wrn-28-10-swish")
    assert [name for name, _ in net.named_parameters()] == expected
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}


def test_vgg_and_mobilenets_have_the_names_of_checkpoints() -> None:
    """Those of kuangliu's pytorch-cifar."""
    expected = []
    # convolution, normalisation, activation; a pooling after the 2nd, 4th, 7th, 10th and 13th
    for at in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40):
        expected += [f"features.{at + i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    names = [name for name, _ in skeleton("vgg16").named_parameters()]
    assert names == [*expected, "classifier.weight", "classifier.bias"]

    expected = conv_bn("", "conv1", "bn1")
    for i in range(13):
        expected += conv_bn(f"layers.{i}.", "conv1", "bn1")
        expected += conv_bn(f"layers.{i}.", "conv2", "bn2")
    names = [name for name, _ in skeleton("mobilenet").named_parameters()]
    assert names == [*expected, "linear.weight", "linear.bias"]

    expected = conv_bn("", "conv1", "bn1")
    for i in range(17):
        for k in (1, 2, 3):
            expected += conv_bn(f"layers.{i}.", f"conv{k}", f"bn{k}")
        # where a stage widens without a stride: 32 to 16, 16 to 24, 64 to 96 and 160 to 320
        if i in (0, 1, 10, 16):
            expected += conv_bn(f"layers.{i}.", "shortcut.0", "shortcut.1")
    expected += conv_bn("", "conv2", "bn2")
    names = [name for name, _ in skeleton("mobilenetv2").named_parameters()]
    assert names == [*expected, "linear.weight", "linear.bias"]


# several functions under the same names


@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_variants_of_preactresnet18(raw: bool, last_norm: bool) -> None:
    """Written out from the weights; catches a shortcut from the wrong place, a last ReLU alone."""
    name = "preactresnet18" + "-fast-at" * raw + "-nobn" * (not last_norm)
    net = lived(name)
    w = net.state_dict()

    def bn(x: Tensor, at: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{at}.{key}"] for key in keys))

    x = images(0, 2, side=16)[0]
    out = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            active = F.relu(bn(out, f"{at}bn1"))
            residual = out
            if stride == 2:
                begin = out if raw else active
                residual = F.conv2d(begin, w[f"{at}shortcut.0.weight"], stride=2)
            active = F.conv2d(active, w[f"{at}conv1.weight"], stride=stride, padding=1)
            active = F.relu(bn(active, f"{at}bn2"))
            out = F.conv2d(active, w[f"{at}conv2.weight"], padding=1) + residual
    if last_norm:
        out = F.relu(bn(out, "bn"))
    expected = F.linear(out.mean((2, 3)), w["linear.weight"], w["linear.bias"])
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_lbgat_has_its_strides_one_stage_later(name: str) -> None:
    usual, lbgat = skeleton(name), skeleton(f"{name}-lbgat")
    shapes = [{n: t.shape for n, t in net.state_dict().items()} for net in (usual, lbgat)]
    assert shapes[0] == shapes[1]
    sides = {id(usual): [32, 16, 8, 4], id(lbgat): [32, 32, 16, 8]}
    for net in (usual, lbgat):
        x = torch.empty(2, 3, 32, 32, device="meta")
        x = net.get_submodule("bn1")(net.get_submodule("conv1")(x))
        for stage, side in zip((1, 2, 3, 4), sides[id(net)], strict=True):
            x = net.get_submodule(f"layer{stage}")(x)
            assert x.shape[2:] == (side, side)


# sizes, channels and twins


SMALL: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: ARCHS[name] for name in ("vgg11", "mobilenet", "mobilenetv2")},
    "raw": lambda classes, channels: PreActResNet(
        (1, 1, 1, 1), classes, channels, RawShortcutBlock, last_norm=False
    ),
    "wide": partial(WideResNet, 10, 1),
    "swish": partial(SwishWideResNet, 10, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_they_freeze(name: str) -> None:
    """Frozen refuses a twin that disagrees; also with a normalisation in front."""
    net = randomised(SMALL[name](10, 3))
    Frozen(net, torch.float32, images(0, 2, side=16)[0])
    Frozen(normalized(net, [0.5] * 3, [0.2] * 3), torch.float32, images(0, 2, side=9)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_sizes_channels_and_gradients_of_the_others(name: str) -> None:
    torch.manual_seed(0)
    net = SMALL[name](7, 1)
    for shape in ((8, 8), (13, 28), (32, 32), (64, 64)):
        x = images(0, 2, 64, 1)[0][:, :, : shape[0], : shape[1]].requires_grad_()
        z = net(x)
        assert z.shape == (2, 7)
        z.square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        # no pixel is lost, also at odd sizes
        assert x.grad[:, :, -1, :].abs().sum() > 0
        assert x.grad[:, :, :, -1].abs().sum() > 0
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias before a normalisation does nothing, and has a gradient of rounding or none
    assert [n for n in without if not (name == "vgg11" and n.endswith("bias"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", ["resnet18", "preactresnet18"])
def test_sizes_and_channels(arch: str, channels: int) -> None:
    torch.manual_seed(0)
    net = make_model(arch, 7, channels).eval()
    with torch.no_grad():
        for side in (8, 16, 28, 32, 64):
            x = images(0, 1, side, channels)[0]
            # the last corner still counts: stride and padding lose no pixel, also of odd widths
            moved = x.clone()
            moved[:, :, -1, -1] = 1 - moved[:, :, -1, -1]
            z = net(torch.cat([x, moved]))
            assert z.shape == (2, 7)
            assert z.isfinite().all()
            assert z[0].std() > 0.01
            assert not torch.allclose(z[0], z[1], rtol=1e-6, atol=1e-7)
        assert net.train()(images(0, 2, 8, channels)[0]).isfinite().all()


def test_resnet50_at_the_smallest_size() -> None:
    torch.manual_seed(0)
    assert make_model("resnet50", 4, 1)(images(0, 2, 8, 1)[0]).shape == (2, 4)


def test_weights_come_from_the_global_generator() -> None:
    nets = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        nets.append(make_model("preactresnet18", 10, 3).state_dict()["layer3.1.conv2.weight"])
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])


# normalisation


def test_normalisation_inside_equals_normalisation_outside() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    model = make_model("resnet18", 10, 3, (mean, std)).eval()
    plain = lived("resnet18")
    model.get_submodule("net").load_state_dict(plain.state_dict())
    x = images(0, 3, side=8)[0]
    outside = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(model(x), plain(outside), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(x), plain(x), rtol=0.01)
    assert {name for name, _ in model.named_parameters()} == {
        f"net.{name}" for name, _ in plain.named_parameters()
    }
    assert {"normalize.mean", "normalize.std"} <= model.state_dict().keys()


def test_normalize_by_hand() -> None:
    x = torch.tensor([0.5, 0.75]).view(1, 2, 1, 1)
    assert Normalize([0.25, 0.5], [0.5, 0.125])(x).flatten().tolist() == [0.5, 2.0]


# names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", "resnet18"),
        ("ResNet18", "resnet18"),
        ("ResNet-34", "resnet34"),
        ("RESNET_50", "resnet50"),
        ("PreActResNet18", "preactresnet18"),
        ("PreAct-ResNet-18", "preactresnet18"),
        ("preact_resnet18", "preactresnet18"),
        ("PRN18", "preactresnet18"),
        ("prn18-fast-at", "preactresnet18-fast-at"),
        ("PreActResNet18_NoBN", "preactresnet18-nobn"),
        ("prn-18", "preactresnet18"),
        ("wrn-34-10", "wrn-34-10"),
        ("WRN-34-10", "wrn-34-10"),
        ("WideResNet-34-10", "wrn-34-10"),
        ("wide_resnet_34_10", "wrn-34-10"),
        ("WRN-28-10-swish", "wrn-28-10-swish"),
        ("wrn_70_16_silu", "wrn-70-16-swish"),
        ("VGG16", "vgg16"),
        ("vgg19-bn", "vgg19"),
        ("MobileNet_V2", "mobilenetv2"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert canonical_arch(name) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("resnet81", "architecture 'resnet81': did you mean 'resnet18'?", id="typo"),
        pytest.param("PreActResNet19", "did you mean 'preactresnet18'?", id="near-preact"),
        pytest.param(
            "vit", "known are mobilenet, mobilenetv2, preactresnet18, pre", id="nothing-near"
        ),
    ],
)  # fmt: skip
def test_unknown_architectures_are_refused_with_the_nearest(name: str, text: str) -> None:
    for call in (lambda: canonical_arch(name), lambda: make_model(name, 10, 3)):
        with pytest.raises(InputError) as caught:
            call()
        assert text in str(caught.value)
