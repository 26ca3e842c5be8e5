"""The attack network: a peer while it is attacked, when its weights stand still.

Once a step `refold` writes every eval-mode BatchNorm into the convolution before it and casts the
weights to the compute type. On a GPU bias, residual and ReLU then take one pass after the
convolution, and gradients flow to the images alone. A BatchNorm that no convolution precedes
(pre-activation networks) is one affine pass together with its ReLU. Equal to the model in eval mode
up to rounding.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.dropout import _DropoutNd

from fastcat.attacks.modes import attack_mode
from fastcat.kernels import winograd
from fastcat.kernels.affine_relu import affine_relu
from fastcat.kernels.epilogue import epilogue as add_epilogue
from fastcat.kernels.epilogue import masked_sum
from fastcat.runtime import exact_float32, without_search
from fastcat.traced import (
    called_module,
    from_readers,
    give_each_reader_its_own,
    only_reader,
    pool_by_means,
    relu_after,
    sum_after,
)

# what adds bias, residual and ReLU to a convolution: torch, our kernel, or where they can and else
# our kernel cuDNN (with a residual) and NVIDIA's apex (float16 without one)
Epilogue = Literal["torch", "kernel", "cudnn", "apex"]


class CannotFreeze(Exception):
    """Why a network has no frozen twin."""


class Frozen:
    """A copy of a model for attacks: BatchNorm folded into convolutions, weights constant.

    It maps images [B, C, H, W] in `dtype` to logits, differentiably in the images.
    epilogue: what adds bias, residual and ReLU to a convolution, as an `Epilogue`
    in_place: whether its first operation writes to the images that it is given
    """

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        example: Tensor,
        epilogue: Epilogue | None = None,
    ) -> None:
        """Trace and fold the model.

        example: a few images [B, C, H, W] like those that are attacked, in the model's dtype
        epilogue: where it gives the same, else "torch". None: "kernel" on a GPU

        Raises CannotFreeze for a network that cannot be traced, or whose copy disagrees with it.
        """
        self.model = model
        self.dtype = dtype
        with attack_mode(model, "eval"), without_search():
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
                _register(self._network, name, folded)
        self._example = example
        self.use(epilogue or ("kernel" if example.is_cuda else "torch"))

    def use(self, epilogue: Epilogue) -> bool:
        """Whether it gives the same with that epilogue, which is used then, else torch's."""
        self.epilogue: Epilogue = "torch"
        self._fused = self._network
        if epilogue != "torch":
            fused = _fused(self._network, epilogue)
            with attack_mode(self.model, "eval"), without_search():
                if self._is_right(fused):
                    self.epilogue, self._fused = epilogue, fused
        self.uncompile()
        return self.epilogue == epilogue

    def _is_right(self, network: nn.Module) -> bool:
        """Whether a fused network errs about as little as the other one, in `dtype`."""
        x = self._example.to(self.dtype)
        with exact_float32():
            right = _outcome(self.model, self._example)
        plain = _outcome(self._network, x)
        try:
            fused = _outcome(network, x)
        except (RuntimeError, ImportError):  # cuDNN lacks a convolution, or there is no apex
            return False
        return all(
            bool((ours - exact).norm() <= 2 * (theirs - exact).norm() + 1e-4 * exact.norm())
            for ours, theirs, exact in zip(fused, plain, right, strict=True)
        )

    def compile(self) -> None:
        """Let Inductor make the kernels."""
        self.forward: Any = torch.compile(self._network, dynamic=False)

    def uncompile(self) -> None:
        self.forward = self._fused

    @torch.no_grad()
    def refold(self) -> None:
        """Take over the model's present weights and statistics, without waiting for the device."""
        _refold([*self._maps.values()])

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@dataclass
class _Map:
    """A convolution or linear layer, a BatchNorm, or the first and then the second, as one map.

    bias: None where there is none to add
    """

    layer: nn.Conv2d | nn.Linear | None
    norm: nn.BatchNorm2d | None
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: Any, norm: Any) -> "_Map":
        parameter = norm.running_mean if layer is None else layer.weight
        weight = torch.empty_like(parameter, requires_grad=False)
        if norm is None and layer.bias is None:
            return cls(layer, norm, weight, None)
        return cls(layer, norm, weight, parameter.new_zeros(len(parameter), requires_grad=False))

    def to(self, dtype: torch.dtype) -> None:
        self.weight = self.weight.to(dtype)
        self.bias = None if self.bias is None else self.bias.to(dtype)


def _refold(maps: Sequence[_Map]) -> None:
    """Write the maps anew from what their layers and norms are now, all together.

    scale = gamma / sqrt(var + eps);  weight = scale w;  bias = beta - scale (mean - b)
    """
    targets: list[Any] = []
    values: list[Any] = []
    for folded in maps:
        if folded.layer is not None and folded.norm is None:
            targets += [folded.weight]
            values += [folded.layer.weight]
            if folded.bias is not None:
                targets += [folded.bias]
                values += [folded.layer.bias]
    normed = [folded for folded in maps if folded.norm is not None]
    if normed:
        norms: list[Any] = [folded.norm for folded in normed]
        scales = torch._foreach_add([norm.running_var for norm in norms], [n.eps for n in norms])
        torch._foreach_rsqrt_(scales)
        affine = [n for n, norm in enumerate(norms) if norm.affine]
        if affine:
            torch._foreach_mul_([scales[n] for n in affine], [norms[n].weight for n in affine])
        means = [
            norm.running_mean
            if folded.layer is None or folded.layer.bias is None
            else norm.running_mean - folded.layer.bias
            for folded, norm in zip(normed, norms, strict=True)
        ]
        biases = torch._foreach_neg(torch._foreach_mul(means, scales))
        if affine:
            torch._foreach_add_([biases[n] for n in affine], [norms[n].bias for n in affine])
        for folded, scale, bias in zip(normed, scales, biases, strict=True):
            layer = folded.layer
            targets += [folded.weight, folded.bias]
            values += [scale if layer is None else layer.weight * scale.view(-1, 1, 1, 1), bias]
    torch._foreach_copy_(targets, values)


def conv_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: tuple[Any, ...],
    relu: bool,
) -> Tensor:
    """conv(x) + bias + residual, or its ReLU; weights are constants.

    geometry: stride, padding, dilation, groups
    residual: like the outcome, or None
    """
    fast = None if torch.compiler.is_compiling() else winograd.current()
    if fast is not None and fast.takes(x, weight, bias, *geometry):
        return fast.convolve(x, weight, bias, residual, relu)
    out = F.conv2d(x, weight, bias, *geometry)
    if residual is not None:
        out += residual
    return out.relu_() if relu else out


class _FusedBlock(torch.autograd.Function):
    """conv_block with ReLU, and its gradient in x and the residual only.

    Each of `readers` gets the outcome as its own, so that their gradients are added and masked in
    one pass.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        residual_bias: Tensor | None,
        geometry: Any,
        readers: int,
        by: Epilogue,
    ):
        if by == "cudnn" and residual is not None and bias is not None:
            bias = bias if residual_bias is None else bias + residual_bias
            out = torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)
        elif by == "apex" and residual is None and bias is not None and _apex_takes(x, geometry):
            from apex.contrib.conv_bias_relu import ConvBiasReLU  # type: ignore[import-not-found]

            (stride, _), (padding, _), *_ = geometry
            out = ConvBiasReLU(x, weight, bias.view(1, -1, 1, 1), padding, stride)
        else:
            out = F.conv2d(x, weight, None, *geometry)
            add_epilogue(out, bias, residual, residual_bias)
        ctx.save_for_backward(x, weight, out)
        ctx.geometry, ctx.has_residual = geometry, residual is not None
        ctx.set_materialize_grads(False)
        return out if readers == 1 else (out, *(out.detach() for _ in range(readers - 1)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # type: ignore[no-untyped-def]
        x, weight, out = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        grad = masked_sum(out, *from_readers(grads))
        grad_x = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
            [True, False, False],
        )[0]  # fmt: skip
        return grad_x, None, None, grad if ctx.has_residual else None, None, None, None, None


def fused_block(*args: Any) -> Any:
    """A tensor, or of several readers one for each."""
    return _FusedBlock.apply(*args)


def _apex_takes(x: Tensor, geometry: Any) -> bool:
    """Whether apex's convolution can have this one: of float16, one stride and one padding."""
    stride, padding, dilation, groups = geometry
    alike = stride[0] == stride[1] and padding[0] == padding[1]
    return x.dtype == torch.float16 and alike and (*dilation, groups) == (1, 1, 1)


def _fused(network: fx.GraphModule, by: Epilogue) -> fx.GraphModule:
    """The network with a `_FusedBlock` for each convolution before a ReLU.

    Without a residual cuDNN is not asked: its kernel reads its own output, which is not written yet
    (0 * NaN is NaN).
    """
    fused = fx.GraphModule(network, copy.deepcopy(network.graph))
    for node in list(fused.graph.nodes):
        if node.target is not conv_block or not node.args[5]:
            continue
        x, weight, bias, residual, geometry, _ = node.args
        if isinstance(geometry[1], str):
            continue
        residual_bias = None
        if _is_alone_before(residual, node):
            # a shortcut: its bias is added here, not in a pass of its own
            residual_bias = residual.args[2]
            residual.args = (*residual.args[:2], None, *residual.args[3:])
        readers = give_each_reader_its_own(node)
        node.target = fused_block
        node.args = (x, weight, bias, residual, residual_bias, geometry, readers, by)
    fused.recompile()
    return fused


def _is_alone_before(node: Any, reader: fx.Node) -> bool:
    """Whether a node is a convolution without ReLU or residual that the reader alone reads."""
    return (
        isinstance(node, fx.Node)
        and node.target is conv_block
        and node.args[3] is None
        and not node.args[5]
        and list(node.users) == [reader]
    )


def _trace(model: nn.Module, example: Tensor) -> tuple[fx.GraphModule, dict[str, _Map]]:
    """The model as a graph of folded maps, and these by name."""
    network = fx.GraphModule(model, fx.Tracer().trace(model))
    with torch.no_grad():
        ShapeProp(network).propagate(example.clone())
    pool_by_means(network)
    rewriter = _Rewriter(network)
    rewriter.rewrite()
    network.recompile()
    network.delete_all_unused_submodules()
    return network, rewriter.maps


def _register(network: nn.Module, name: str, folded: _Map) -> None:
    network.register_buffer(f"{name}_weight", folded.weight, persistent=False)
    network.register_buffer(f"{name}_bias", folded.bias, persistent=False)


class _Rewriter:
    """Replaces chains of nodes, like convolution - BatchNorm - sum - ReLU, by one folded map."""

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.maps: dict[str, _Map] = {}
        self.replaced: set[fx.Node] = set()

    def rewrite(self) -> None:
        for node in list(self.network.graph.nodes):
            if isinstance(called_module(self.network, node), _DropoutNd):
                node.replace_all_uses_with(node.args[0])
                self.network.graph.erase_node(node)
        for node in list(self.network.graph.nodes):
            module = called_module(self.network, node)
            if node in self.replaced:
                continue
            if type(module) is nn.Conv2d and module.padding_mode == "zeros":
                self.convolution(node, module)
            elif type(module) is nn.Linear:
                self.put([node], module, None, F.linear, node.args[0])
            elif _is_eval_norm(module):
                relu = relu_after(self.network, node)
                chain = [node, relu] if relu else [node]
                self.put(chain, None, module, affine_relu if relu else _affine, node.args[0])

    def convolution(self, node: fx.Node, layer: nn.Conv2d) -> None:
        chain, norm, residual = [node], None, None
        user = only_reader(chain[-1])
        if user is not None and _is_eval_norm(called_module(self.network, user)):
            norm = called_module(self.network, user)
            chain.append(user)
        total = sum_after(chain[-1])
        if total is not None:
            chain.append(total[0])
            residual = total[1]
        relu = relu_after(self.network, chain[-1])
        if relu is not None:
            chain.append(relu)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        arguments = (residual, geometry, relu is not None)
        self.put(chain, layer, norm, conv_block, node.args[0], *arguments)

    def put(
        self, chain: list[fx.Node], layer: Any, norm: Any, function: Any, *args: Any
    ) -> fx.Node:
        """`function(x, weight, bias, ...)` in the place of the chain."""
        name = f"map{len(self.maps)}"
        self.maps[name] = folded = _Map.of(layer, norm)
        _register(self.network, name, folded)
        with self.network.graph.inserting_before(chain[-1]):
            constants = [
                None if tensor is None else self.network.graph.get_attr(f"{name}_{kind}")
                for kind, tensor in (("weight", folded.weight), ("bias", folded.bias))
            ]
            new = self.network.graph.call_function(function, (args[0], *constants, *args[1:]))
        new.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(new)
        for node in reversed(chain):
            self.network.graph.erase_node(node)
        self.replaced |= set(chain)
        return new


def _is_eval_norm(module: nn.Module | None) -> bool:
    """Whether it is a BatchNorm that normalises by running statistics in eval mode."""
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


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
