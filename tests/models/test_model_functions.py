"""Networks compute what torchvision and the formulas of their papers say."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastcat.models.wide_resnet import WideResNet
from fastcat.models.wide_resnet_swish import SwishWideResNet
from tests.harness.networks import images, lived, randomised


def as_torchvision(name: str) -> str:
    """Our parameter name in torchvision's words."""
    return name.replace("shortcut", "downsample").replace("linear", "fc")


@pytest.mark.slow
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
    net = randomised(WideResNet(depth, widening, 10, 3)).double()
    for side in (8, 20):
        x = images(0, 3, side=side)[0].double()
        with torch.no_grad():
            expected = wide_forward(net.state_dict(), x)
            torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)


def same_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME: ceil(n / stride) outputs, of the padding the odd pixel at the end."""
    k, pads = weight.shape[-1], []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride)


def swish_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Gowal et al. 2020: WideResNet with x * sigmoid(x), every convolution SAME."""

    def activated(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
        return x * x.sigmoid()

    x = same_convolution(x, state["init_conv.weight"], 1)
    for group in range(3):
        for i in range(sum(f"layer.{group}.block.{i}.conv_0.weight" in state for i in range(9))):
            prefix, stride = f"layer.{group}.block.{i}.", 2 if group and i == 0 else 1
            out = activated(f"{prefix}batchnorm_0", x)
            if f"{prefix}shortcut.weight" in state:
                x = same_convolution(out, state[f"{prefix}shortcut.weight"], stride)
            out = same_convolution(out, state[f"{prefix}conv_0.weight"], stride)
            out = activated(f"{prefix}batchnorm_1", out)
            x = x + same_convolution(out, state[f"{prefix}conv_1.weight"], 1)
    return activated("batchnorm", x).mean((2, 3)) @ state["logits.weight"].T + state["logits.bias"]


@pytest.mark.parametrize("shape", [(8, 8), (20, 32), (13, 10), (9, 15)], ids=str)
def test_swish_wide_resnet_by_formula(shape: tuple[int, int]) -> None:
    """Catches symmetric padding of a strided convolution, and a shortcut of another size."""
    net = randomised(SwishWideResNet(16, 2, 10, 3)).double()
    x = images(0, 3, side=32)[0].double()[:, :, : shape[0], : shape[1]]
    with torch.no_grad():
        torch.testing.assert_close(net(x), swish_forward(net.state_dict(), x), rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["vgg11", "vgg16"])
def test_vgg_is_that_of_torchvision_with_another_head(arch: str) -> None:
    ours = lived(arch)
    theirs = getattr(torchvision.models, f"{arch}_bn")().eval()
    theirs.features.load_state_dict(ours.get_submodule("features").state_dict())
    x = images(0, 2, side=32)[0]
    with torch.no_grad():
        expected = ours.get_submodule("classifier")(theirs.features(x).flatten(1))
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)


def mobile_forward(w: dict[str, Tensor], x: Tensor, strides: dict[int, int]) -> Tensor:
    """Both MobileNets in eval mode: what a block has is what its parameters say."""

    def conv(name: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel, shape = w[f"{name}.weight"], (1, -1, 1, 1)
        groups = x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        mean, var = w[f"{norm}.running_mean"].view(shape), w[f"{norm}.running_var"].view(shape)
        scale = w[f"{norm}.weight"].view(shape) / (var + 1e-5).sqrt()
        return (x - mean) * scale + w[f"{norm}.bias"].view(shape)

    x = conv("conv1", "bn1", x).clamp(min=0)
    for i in range(sum(f"layers.{i}.conv1.weight" in w for i in range(99))):
        name, stride = f"layers.{i}", strides.get(i, 1)
        expands = f"{name}.conv3.weight" in w
        out = conv(f"{name}.conv1", f"{name}.bn1", x, 1 if expands else stride).clamp(min=0)
        out = conv(f"{name}.conv2", f"{name}.bn2", out, stride if expands else 1).clamp(min=0)
        if expands:
            out = conv(f"{name}.conv3", f"{name}.bn3", out)
            if f"{name}.shortcut.0.weight" in w:
                out = out + conv(f"{name}.shortcut.0", f"{name}.shortcut.1", x)
            elif stride == 1:
                out = out + x
        x = out
    if "conv2.weight" in w:
        x = conv("conv2", "bn2", x).clamp(min=0)
    return x.mean((2, 3)) @ w["linear.weight"].T + w["linear.bias"]


@pytest.mark.parametrize(
    ("arch", "strides"),
    [("mobilenet", {1: 2, 3: 2, 5: 2, 11: 2}), ("mobilenetv2", {3: 2, 6: 2, 13: 2})],
    ids=["v1", "v2"],
)
def test_mobilenets_by_formula(arch: str, strides: dict[int, int]) -> None:
    net = lived(arch)
    for side in (16, 21):
        x = images(0, 2, side=side)[0]
        with torch.no_grad():
            expected = mobile_forward(net.state_dict(), x, strides)
            torch.testing.assert_close(net(x), expected, rtol=1e-3, atol=1e-4)
