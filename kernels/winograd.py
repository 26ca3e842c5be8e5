"""3x3 convolutions on a CPU with a quarter of the products: Winograd's F(4x4, 3x3).

    y = A^T [ sum_c (G w_kc G^T) * (B^T d_c B) ] A        for each tile of 4x4 outputs

    dw_kc = G^T [ sum_tiles (A dy_k A^T) * (B^T d_c B) ] G

d: the 6x6 inputs of a tile, w: 3x3 weights, * elementwise: 36 products for 144. The gradient in the
images is such a convolution with w turned round.

Source: Lavin & Gray 2016 (arXiv 1509.09308), equation 8, and its gradient. Interpolated at 0,
+-1/sqrt(2), +-sqrt(2) and infinity: with their 0, +-1, +-2 rounding weighs three times as much (how
the points matter: Barabasz et al. 2020, arXiv 1803.10986). In bfloat16 images are rounded, sums and
weights are not.
"""

import ctypes
from contextvars import ContextVar, Token
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._native import CannotBuild, load

__all__ = ["CannotBuild", "Winograd", "conv3x3_reference", "current", "library"]

# below that many tiles reading the transformed weights would cost more than the products saved
FEWEST_TILES = 8
_DTYPES = (torch.float32, torch.bfloat16)
# 1 in both directions, as convolutions take it
_ONES: tuple[Any, ...] = (1, (1, 1), [1, 1])

_current: ContextVar["Winograd | None"] = ContextVar("winograd", default=None)
# memory by size, between uses: fresh memory costs a page fault every 4 KiB
_spare: dict[int, list[Tensor]] = {}


def conv3x3_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """The specification: x [B, C, H, W], weight [K, C, 3, 3] -> [B, K, H, W]."""
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = y + residual
    return y.relu() if relu else y


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel. Raises CannotBuild."""
    built = load("winograd")
    built.winograd_memory.restype = ctypes.c_long
    return built


def current() -> "Winograd | None":
    """The innermost context that we are in."""
    return _current.get()


class Winograd(TorchFunctionMode):
    """Within it convolutions use Winograd's algorithm wherever that is faster, also under autograd.

    Weights must keep their values meanwhile, as each is transformed once.
    trained: whether gradients reach the weights
    Raises CannotBuild.
    """

    def __init__(self, trained: bool = True) -> None:
        super().__init__()
        self._trained = trained
        self._library = library()
        self._panel = self._library.winograd_panel()
        # by address, layout and direction; the weight is kept, so that its address stays its own
        self._transformed: dict[Any, tuple[Tensor, Tensor]] = {}
        self._tokens: list[Token] = []

    def __enter__(self) -> "Winograd":
        self._tokens.append(_current.set(self))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _current.reset(self._tokens.pop())
        for _, u in self._transformed.values():
            _give_back(u)
        self._transformed.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7 and self.takes(*args):
            x, weight, bias = args[:3]
            return self.convolve(x.to(_compute_dtype(x)), weight, bias)
        return func(*args, **(kwargs or {}))

    def takes(
        self, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
        groups: int,
    ) -> bool:  # fmt: skip
        """Whether it is faster here: arguments as of `torch.nn.functional.conv2d`."""
        if tuple(weight.shape[2:]) != (3, 3) or x.dim() != 4 or x.device.type != "cpu":
            return False
        if not all(each in _ONES for each in (stride, padding, dilation, groups)):
            return False
        if _compute_dtype(x) not in _DTYPES:
            return False
        height, width = x.shape[2:]
        tiles = -(-height // 4) * -(-width // 4)
        return (
            weight.dtype in _DTYPES
            and weight.shape[0] % self._panel == weight.shape[1] % self._panel == 0
            and len(x) * tiles >= FEWEST_TILES
            # 36 products a tile for 9 a pixel, and the transforms
            and 1.5 * 36 * tiles <= 9 * height * width
        )

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        """`conv3x3_reference` of what `takes` accepts, in x's type; differentiable."""
        if not self._trained:
            # autograd does not say which of the gradients that could be had are asked for
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return _Convolution.apply(x, weight, bias, residual, relu, self)

    def transformed(self, weight: Tensor, gradient: bool) -> Tensor:
        """The factors of a weight, of its convolution or of that which takes gradients back."""
        key = (weight.data_ptr(), weight.shape, weight.stride(), gradient)
        if key not in self._transformed:
            u = _take(4 * weight.numel())
            dense = _dense(weight.detach(), torch.float32)
            outputs, inputs = weight.shape[:2]
            shape = (inputs, outputs) if gradient else (outputs, inputs)
            self._library.winograd_transform(
                _address(dense), _address(u), *map(ctypes.c_long, shape), int(gradient)
            )
            self._transformed[key] = (weight, u)
        return self._transformed[key][1]

    def launch(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        relu: bool = False,
        *,
        gate: Tensor | None = None,
        gradient: bool = False,
    ) -> Tensor:
        """The convolution, or with `gradient` the one that takes x, a gradient, back to the images.

        gate: like x, which counts as 0 where gate is not positive.
        """
        u = self.transformed(weight, gradient)
        shape = (len(x), weight.shape[int(gradient)], *x.shape[2:])
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        images = [None if t is None else _dense(t, x.dtype) for t in (x, gate, residual)]
        bias = None if bias is None else bias.float().contiguous()
        x_at, gate_at, residual_at, u_at, bias_at, y_at = map(_address, (*images, u, bias, y))
        sizes = map(ctypes.c_long, (len(x), *x.shape[2:], x.shape[1], y.shape[1]))
        self._library.winograd_convolve(
            x_at, gate_at, u_at, bias_at, residual_at, int(relu), y_at,
            *sizes, int(x.dtype == torch.bfloat16),
        )  # fmt: skip
        return y

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """float32 [K, C, 3, 3], of images [B, C, H, W] and gradients [B, K, H, W] of one type."""
        x, grad = (_dense(t, x.dtype) for t in (x, grad))
        channels = (x.shape[1], grad.shape[1])
        factors = _take(36 * channels[0] * channels[1])
        memory = _take(self._library.winograd_memory(*map(ctypes.c_long, channels)))
        shape = (channels[1], channels[0], 3, 3)
        result = torch.empty(shape, memory_format=torch.channels_last)
        sizes = map(ctypes.c_long, (len(x), *x.shape[2:], *channels))
        self._library.winograd_weight_gradient(
            *map(_address, (x, grad, factors, memory, result)),
            *sizes, int(x.dtype == torch.bfloat16),
        )  # fmt: skip
        _give_back(factors)
        _give_back(memory)
        return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Any, residual: Any, relu: bool, run: Any
    ) -> Tensor:
        y = run.launch(x, weight, bias, residual, relu)
        ctx.save_for_backward(x if weight.requires_grad else None, weight, y if relu else None)
        ctx.run = run
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, gate = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if gate is not None and any(ctx.needs_input_grad[1:4]):
            grad, gate = torch.ops.aten.threshold_backward(grad, gate, 0), None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.run.launch(grad, weight, gate=gate, gradient=True)
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.run.weight_gradient(x, grad)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, grad if ctx.needs_input_grad[3] else None, None, None


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What torch would convolve x in."""
    if x.dtype != torch.float64 and torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _take(numbers: int) -> Tensor:
    """float32 [numbers], of any content."""
    spare = _spare.get(numbers)
    return spare.pop() if spare else torch.empty(numbers)


def _give_back(memory: Tensor) -> None:
    _spare.setdefault(memory.numel(), []).append(memory)


def _dense(images: Tensor, dtype: torch.dtype) -> Tensor:
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
