"""Networks against torchvision, formulas and the parameter names of checkpoints in circulation."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.models import Normalize, canonical_arch, make_model
from fastcat.models.wide_resnet import WideResNet
from tests.networks import images

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "preactresnet18": (2, 2, 2, 2),
}
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


def lived(arch: str) -> nn.Module:
    """In eval mode, for 3 channels and 10 classes, its BatchNorm with statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make_model(arch, 10, 3)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, 0.0, 0.1)
                nn.init.normal_(module.running_mean, 0.0, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


# counts and names


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("preactresnet18", 11_172_170),
        ("wrn-34-10", 46_160_474),
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
        expansion = 4 if arch == "resnet50" else 1
        expected = resnet_parameters(DEPTHS[arch], expansion, channels, classes)
    assert count(skeleton(arch, classes, channels)) == expected


@pytest.mark.parametrize("arch", DEPTHS)
def test_parameters_have_the_names_and_order_of_checkpoints(arch: str) -> None:
    if arch == "preactresnet18":
        expected = preact_names(DEPTHS[arch])
    else:
        expected = resnet_names(DEPTHS[arch], convs=3 if arch == "resnet50" else 2)
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


# the function


def as_torchvision(name: str) -> str:
    """Our parameter name in torchvision's words."""
    return name.replace("shortcut", "downsample").replace("linear", "fc")


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_resnets_are_those_of_torchvision_with_a_small_stem(arch: str) -> None:
    ours = lived(arch)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, arch)(num_classes=10)
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    state = {as_torchvision(k): v.clone() for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    x = images(0, 4, side=16)[0]
    with torch.no_grad():
        for mode in (False, True):
            ours.train(mode)
            theirs.train(mode)
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    state = {as_torchvision(k): v for k, v in ours.state_dict().items()}
    torch.testing.assert_close(state, dict(theirs.state_dict()), rtol=1e-4, atol=1e-5)


def preact_forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """PreActResNet-18 in eval mode, spelled out: x + conv(relu(bn(conv(relu(bn(x))))))."""

    def bn_relu(name: str, x: Tensor) -> Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        scale = w[f"{name}.weight"] / (var + 1e-5).sqrt()
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) * scale.view(shape) + w[f"{name}.bias"].view(shape)
        return x.clamp(min=0)

    x = F.conv2d(x, w["conv1.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = bn_relu(f"{name}.bn1", x)
            if f"{name}.shortcut.0.weight" in w:
                # the shortcut starts behind the first activation
                x = F.conv2d(activated, w[f"{name}.shortcut.0.weight"], stride=stride)
            out = F.conv2d(activated, w[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = x + F.conv2d(bn_relu(f"{name}.bn2", out), w[f"{name}.conv2.weight"], padding=1)
    return bn_relu("bn", x).mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


def test_preact_resnet_by_formula() -> None:
    net = lived("preactresnet18").double()
    for side in (8, 20):
        x = images(0, 3, side=side)[0].double()
        with torch.no_grad():
            expected = preact_forward(net.state_dict(), x)
            torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)


def wide_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Pre-activation blocks of two 3x3 convolutions, after Zagoruyko & Komodakis, Table 1."""

    def activated(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for i in range(sum(f"block{group}.layer.{i}.conv1.weight" in state for i in range(9))):
            prefix, stride = f"block{group}.layer.{i}.", 2 if group > 1 and i == 0 else 1
            out = activated(f"{prefix}bn1", x)
            if f"{prefix}convShortcut.weight" in state:
                x = F.conv2d(out, state[f"{prefix}convShortcut.weight"], stride=stride)
            out = F.conv2d(out, state[f"{prefix}conv1.weight"], stride=stride, padding=1)
            out = activated(f"{prefix}bn2", out)
            x = x + F.conv2d(out, state[f"{prefix}conv2.weight"], padding=1)
    x = activated("bn1", x).mean((2, 3))
    return x @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(("depth", "widening"), [(10, 2), (16, 1)], ids=["10-2", "16-1"])
def test_wide_resnet_by_formula(depth: int, widening: int) -> None:
    """Catches a shortcut before the activation, a stride in the wrong place, a missing block.

    Without widening the first group keeps its width, and so its images: no convolution there.
    """
    torch.manual_seed(0)
    net = WideResNet(depth, widening, 10, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net = net.double().eval()
    for side in (8, 20):
        x = images(0, 3, side=side)[0].double()
        with torch.no_grad():
            expected = wide_forward(net.state_dict(), x)
            torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)


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
        ("prn-18", "preactresnet18"),
        ("wrn-34-10", "wrn-34-10"),
        ("WRN-34-10", "wrn-34-10"),
        ("WideResNet-34-10", "wrn-34-10"),
        ("wide_resnet_34_10", "wrn-34-10"),
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
            "vit", "known are mobilenet, mobilenetv2, preactresnet18, resnet101", id="nothing-near"
        ),
    ],
)  # fmt: skip
def test_unknown_architectures_are_refused_with_the_nearest(name: str, text: str) -> None:
    for call in (lambda: canonical_arch(name), lambda: make_model(name, 10, 3)):
        with pytest.raises(InputError) as caught:
            call()
        assert text in str(caught.value)
