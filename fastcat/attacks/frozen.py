"""The attack network: a peer while it is attacked, when its weights stand still.

Once a step `refold` writes every eval-mode BatchNorm into the convolution before it and casts the
weights to the compute type. Then convolution, bias, residual and ReLU are one operation, and
gradients flow to the images alone. A BatchNorm that no convolution precedes (pre-activation
networks) is one affine pass together with its ReLU. Equal to the model in eval mode up to rounding.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.dropout import _DropoutNd

from fastcat.attacks.modes import attack_mode
from fastcat.kernels import winograd
from fastcat.kernels.affine_relu import affine_relu
from fastcat.runtime import exact_float32

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, "relu", "relu_")


class CannotFreeze(Exception):
    """Why a network has no frozen twin."""


class Frozen:
    """A copy of a model for attacks: BatchNorm folded into convolutions, weights constant.

    It maps images [B, C, H, W] in `dtype` to logits, differentiably in the images.
    fused: whether cuDNN adds bias, residual and ReLU inside the convolution
    in_place: whether its first operation writes to the images that it is given
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, example: Tensor, fuse: bool = True
    ) -> None:
        """Trace and fold the model.

        example: a few images [B, C, H, W] like those that are attacked, in the model's dtype
        fuse: let cuDNN fuse on a GPU, where it can and gives the same

        Raises CannotFreeze for a network that cannot be traced, or whose copy disagrees with it.
        """
        self.model = model
        self.dtype = dtype
        with attack_mode(model, "eval"):
            try:
                self._network, self._maps = _trace(model, example)
                self.refold()
                agrees = _agree(model, self._network, example)
                self.in_place = _writes_to(self._network, example)
            except Exception as error:  # whatever a foreign forward does under tracing
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise CannotFreeze(f"it cannot be traced: {reason}") from error
            if not agrees:
                raise CannotFreeze("its traced form computes something else")
            for name, folded in self._maps.items():
                folded.to(dtype)
                self._network.register_buffer(f"{name}_weight", folded.weight, persistent=False)
                self._network.register_buffer(f"{name}_bias", folded.bias, persistent=False)
            self.fused = fuse and example.is_cuda and self._can_fuse(example.to(dtype))
        self.uncompile()

    def _fuse(self, fuse: bool) -> None:
        for node in self._network.graph.nodes:
            if node.target is conv_block:
                node.args = (*node.args[:-1], fuse and node.meta["fusible"])
        self._network.recompile()

    def _can_fuse(self, x: Tensor) -> bool:
        """Whether cuDNN has every fused convolution and gives what the others give."""
        try:
            plain = _outcome(self._network, x)
            self._fuse(True)
            # freed at once: a kernel that reads memory it should not will meet it
            poison = [x.new_full((2**18,), torch.nan) for _ in range(64)]
            del poison
            fused = _outcome(self._network, x)
        except RuntimeError:
            return False
        return all(
            bool((ours - expected).norm() <= 0.1 * expected.norm())
            for ours, expected in zip(fused, plain, strict=True)
        )

    def compile(self) -> None:
        """Let Inductor make the kernels, instead of cuDNN's fused ones."""
        self._fuse(False)
        self.forward: Any = torch.compile(self._network, dynamic=False)

    def uncompile(self) -> None:
        self._fuse(self.fused)
        self.forward = self._network

    @torch.no_grad()
    def refold(self) -> None:
        """Take over the model's present weights and statistics, without waiting for the device."""
        for folded in self._maps.values():
            folded.refold()

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@dataclass
class _Map:
    """A convolution or linear layer, a BatchNorm, or the first and then the second, as one map."""

    layer: nn.Conv2d | nn.Linear | None
    norm: nn.BatchNorm2d | None
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: Any, norm: Any) -> "_Map":
        parameter = norm.running_mean if layer is None else layer.weight
        weight = torch.empty_like(parameter, requires_grad=False)
        return cls(layer, norm, weight, parameter.new_zeros(len(parameter), requires_grad=False))

    def to(self, dtype: torch.dtype) -> None:
        self.weight, self.bias = self.weight.to(dtype), self.bias.to(dtype)

    def refold(self) -> None:
        layer, norm = self.layer, self.norm
        if norm is None:
            assert layer is not None
            self.weight.copy_(layer.weight)
            if layer.bias is not None:
                self.bias.copy_(layer.bias)
            return
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        mean = norm.running_mean
        if layer is None:
            self.weight.copy_(scale)
        else:
            self.weight.copy_(layer.weight * scale.view(-1, 1, 1, 1))
            if layer.bias is not None:
                mean = mean - layer.bias
        self.bias.copy_(norm.bias - mean * scale if norm.affine else -mean * scale)


def conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    geometry: tuple[Any, ...],
    relu: bool,
    fuse: bool,
) -> Tensor:
    """relu(conv(x) + bias + residual) with relu and residual as asked; weights are constants.

    geometry: stride, padding, dilation, groups.
    """
    if fuse and relu:
        return _FusedConv.apply(x, weight, bias, residual, geometry)
    fast = None if torch.compiler.is_compiling() else winograd.current()
    if fast is not None and fast.takes(x, weight, bias, *geometry):
        return fast.convolve(x, weight, bias, residual, relu)
    out = F.conv2d(x, weight, bias, *geometry)
    if residual is not None:
        out += residual
    return out.relu_() if relu else out


class _FusedConv(torch.autograd.Function):
    """conv_block with ReLU in one cuDNN call, and a backward to x and the residual only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Any, geometry: Any):  # type: ignore[no-untyped-def]
        if residual is None:
            out = torch.cudnn_convolution_relu(x, weight, bias, *geometry)
        else:
            out = torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry, ctx.has_residual = geometry, residual is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[no-untyped-def]
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        grad_x = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
            [True, False, False],
        )[0]  # fmt: skip
        return grad_x, None, None, grad if ctx.has_residual else None, None


def _trace(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, dict[str, _Map]]:
    """The model as a graph of folded maps, and these by name."""
    network = fx.GraphModule(model, fx.Tracer().trace(model))
    with torch.no_grad():
        ShapeProp(network).propagate(example.clone())
    rewriter = _Rewriter(network)
    rewriter.rewrite()
    network.recompile()
    network.delete_all_unused_submodules()
    return network, rewriter.maps


class _Rewriter:
    """Replaces chains of nodes, like convolution - BatchNorm - sum - ReLU, by one folded map."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.maps: dict[str, _Map] = {}
        self.replaced: set[fx.Node] = set()

    def rewrite(self) -> None:
        for node in list(self.network.graph.nodes):
            if isinstance(self.module(node), _DropoutNd):
                node.replace_all_uses_with(node.args[0])
                self.network.graph.erase_node(node)
        for node in list(self.network.graph.nodes):
            module = self.module(node)
            if node in self.replaced:
                continue
            if type(module) is nn.Conv2d and module.padding_mode == "zeros":
                self.convolution(node, module)
            elif type(module) is nn.Linear:
                self.put([node], module, None, F.linear, node.args[0])
            elif _is_eval_norm(module):
                relu = self.relu_after(node)
                chain = [node, relu] if relu else [node]
                self.put(chain, None, module, affine_relu if relu else _affine, node.args[0])

    def convolution(self, node: fx.Node, layer: nn.Conv2d) -> None:
        chain, norm, residual = [node], None, None
        user = self.only_user(chain[-1])
        if user is not None and _is_eval_norm(self.module(user)):
            norm = self.module(user)
            chain.append(user)
        user = self.only_user(chain[-1])
        if user is not None and _calls(user, _ADDS) and not user.kwargs and len(user.args) == 2:
            other = user.args[1] if user.args[0] is chain[-1] else user.args[0]
            own = other is chain[-1]
            if isinstance(other, fx.Node) and not own and _shape(other) == _shape(chain[-1]):
                residual = other
                chain.append(user)
        relu = self.relu_after(chain[-1])
        if relu is not None:
            chain.append(relu)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        # cuDNN's fused kernels want whole vectors of channels
        whole = layer.in_channels % 8 == 0 and layer.out_channels % 8 == 0 and layer.groups == 1
        fusible = relu is not None and whole and not isinstance(layer.padding, str)
        arguments = (residual, geometry, relu is not None, False)
        new = self.put(chain, layer, norm, conv_block, node.args[0], *arguments)
        new.meta["fusible"] = fusible

    def put(
        self, chain: list[fx.Node], layer: Any, norm: Any, function: Any, *args: Any
    ) -> fx.Node:
        """`function(x, weight, bias, ...)` in the place of the chain."""
        name = f"map{len(self.maps)}"
        self.maps[name] = folded = _Map.of(layer, norm)
        constants = []
        with self.network.graph.inserting_before(chain[-1]):
            for kind, tensor in (("weight", folded.weight), ("bias", folded.bias)):
                self.network.register_buffer(f"{name}_{kind}", tensor, persistent=False)
                constants.append(self.network.graph.get_attr(f"{name}_{kind}"))
            new = self.network.graph.call_function(function, (args[0], *constants, *args[1:]))
        new.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(new)
        for node in reversed(chain):
            self.network.graph.erase_node(node)
        self.replaced |= set(chain)
        return new

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that is called; None also for one with hooks, or with arguments by name."""
        if node.op != "call_module" or node.kwargs:
            return None
        module = self.network.get_submodule(str(node.target))
        return None if module._forward_hooks or module._forward_pre_hooks else module

    def only_user(self, node: fx.Node) -> fx.Node | None:
        return next(iter(node.users)) if len(node.users) == 1 else None

    def relu_after(self, node: fx.Node) -> fx.Node | None:
        user = self.only_user(node)
        is_relu = user is not None and (
            _calls(user, _RELUS) or isinstance(self.module(user), nn.ReLU)
        )
        return user if is_relu else None


def _calls(node: fx.Node, functions: tuple[Any, ...]) -> bool:
    """Whether it calls one of these functions or methods; a module's name may be any of theirs."""
    return node.op != "call_module" and node.target in functions


def _is_eval_norm(module: nn.Module | None) -> bool:
    """Whether it is a BatchNorm that normalises by running statistics in eval mode."""
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _shape(node: fx.Node) -> torch.Size | None:
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))


def _outcome(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient in x of a sum of them."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        # a copy, since the first operation may work in place
        z = network(x.clone())
        # weights that differ, lest a sum over classes hide a difference
        weights = torch.linspace(1, 2, z.shape[-1], dtype=z.dtype, device=z.device)
        return z.detach(), torch.autograd.grad((z * weights).sum(), x)[0]


@torch.no_grad()
def _writes_to(network: nn.Module, x: Tensor) -> bool:
    """Whether the network writes to the images that it is given, be it the same values."""
    given = x.clone()
    before = given._version
    network(given)
    return given._version != before


def _agree(model: nn.Module, twin: nn.Module, example: Tensor) -> bool:
    """Whether both give the same logits and gradients, up to rounding."""
    with exact_float32():
        outcomes = [_outcome(network, example) for network in (model, twin)]
    # a ReLU within rounding of zero may switch a gradient on or off
    return all(
        bool((ours - expected).norm() <= tolerance * expected.norm())
        for expected, ours, tolerance in zip(*outcomes, (1e-4, 1e-2), strict=True)
    )
