"""A peer's training forwards on several views of a step as one, on the views in one batch.

Every BatchNorm normalises each view by its own statistics and moves the running ones view by view,
so that the outcome is that of one forward after the other, up to rounding. Convolutions run once,
and BatchNorm takes its residual and its ReLU along (kernels/batch_norm.py).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fastcat.kernels.batch_norm import BACKWARD, BATCH_NORM
from fastcat.runtime import exact_float32, without_search
from fastcat.traced import (
    called_module,
    from_readers,
    give_each_reader_its_own,
    pool_by_means,
    relu_after,
    sum_after,
)


class CannotMerge(Exception):
    """Why a network cannot take several views at once."""


class MergedViews:
    """A network in train mode on several views of a batch; parameters and buffers are the model's.

    Its BatchNorms may be told by `track_running_stats` to leave the running statistics alone.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        """Trace the model.

        example: two images [B, C, H, W] or more, like those to come, in the model's dtype

        Raises CannotMerge for a network that cannot be traced, or that computes something else so:
        by dropout, or where one image's logits depend on others by more than BatchNorm.
        """
        self._views = _Views()
        training = [(module, module.training) for module in model.modules()]
        before = {name: tensor.clone() for name, tensor in model.named_buffers()}
        try:
            model.train()
            self._network = _trace(model, example, self._views)
            _restore(model, before)
            views = [example, example.flip(0) * 0.9]
            with exact_float32(), without_search():
                apart = _outcome(model, lambda: [model(view.clone()) for view in views])
                _restore(model, before)
                merged = _outcome(model, lambda: self(views))
        except CannotMerge:
            raise
        except Exception as error:  # whatever a foreign forward does under tracing
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CannotMerge(f"it cannot be traced: {reason}") from error
        finally:
            _restore(model, before)
            for module, was in training:
                module.training = was
        # gradients that BatchNorm makes vanish are rounding alone
        size = max(expected.norm() for expected in apart)
        for ours, expected in zip(merged, apart, strict=True):
            # a ReLU within rounding of zero may switch a gradient on or off
            if not (ours - expected).norm() <= 1e-2 * expected.norm() + 1e-5 * size:
                raise CannotMerge("on several views at once it computes something else")

    def __call__(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Logits of each view.

        views: images [B, C, H, W] each, which are copied: a network may write to its input
        """
        self._views.count = len(views)
        images = torch.cat([*views]) if len(views) > 1 else views[0].clone()
        return list(self._network(images).chunk(len(views)))


class _Views:
    """count: of the views in the batch that is forwarded."""

    count = 1


class _Block(nn.Module):
    """A BatchNorm, with the sum and the ReLU that follow it.

    readers: how many read the outcome; each of several gets it as its own
    """

    def __init__(self, norm: nn.BatchNorm2d, views: _Views, relu: bool) -> None:
        super().__init__()
        self.norm, self.views, self.relu, self.readers = norm, views, relu, 1

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is not None:
            # as torch adds them, under autocast too
            dtype = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(dtype), residual.to(dtype)
        return _NormBlock.apply(
            x, residual, self.norm.weight, self.norm.bias, self.norm, self.views.count, self.relu,
            self.readers,
        )  # fmt: skip


class _NormBlock(torch.autograd.Function):
    """What a _Block computes, and its gradient."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        norm: nn.BatchNorm2d,
        views: int,
        relu: bool,
        readers: int,
    ):
        y, mean, inverse = BATCH_NORM(
            x, weight, bias, norm.running_mean, norm.running_var, norm.num_batches_tracked,
            residual, norm.momentum, norm.eps, views, relu, norm.track_running_stats,
        )  # fmt: skip
        ctx.save_for_backward(x, None if residual is None else y, weight, bias, mean, inverse)
        ctx.relu, ctx.has_residual = relu, residual is not None
        ctx.set_materialize_grads(False)
        return y if readers == 1 else (y, *(y.detach() for _ in range(readers - 1)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # type: ignore[no-untyped-def]
        x, y, weight, bias, mean, inverse = ctx.saved_tensors
        dx, kept, dweight, dbias = BACKWARD(
            *from_readers(grads), x, y, weight, bias, mean, inverse, ctx.relu, ctx.has_residual
        )
        residual_grad = kept if ctx.has_residual else None
        return dx, residual_grad, dweight, dbias, None, None, None, None


def _trace(model: nn.Module, example: Tensor, views: _Views) -> fx.GraphModule:
    """The model with a _Block for each BatchNorm and what follows it. Raises CannotMerge."""
    network = fx.GraphModule(model, fx.Tracer().trace(model))
    with torch.no_grad():
        ShapeProp(network).propagate(example.clone())
    pool_by_means(network)
    blocks: list[tuple[fx.Node, _Block]] = []
    for node in list(network.graph.nodes):
        norm = called_module(network, node)
        if not isinstance(norm, nn.modules.batchnorm._NormBase):
            continue
        if not _is_plain(norm):
            raise CannotMerge(f"its {type(norm).__name__} {node.target!r} normalises otherwise")
        chain, residual = [node], None
        total = sum_after(node)
        if total is not None:
            chain.append(total[0])
            residual = total[1]
        relu = relu_after(network, chain[-1])
        if relu is not None:
            chain.append(relu)
        block = _Block(norm, views, relu is not None)  # type: ignore[arg-type]
        name = f"norm_block{len(blocks)}"
        network.add_module(name, block)
        with network.graph.inserting_before(chain[-1]):
            args = (node.args[0],) if residual is None else (node.args[0], residual)
            new = network.graph.call_module(name, args)
        new.meta = chain[-1].meta
        chain[-1].replace_all_uses_with(new)
        for old in reversed(chain):
            network.graph.erase_node(old)
        blocks.append((new, block))
    if not blocks:
        raise CannotMerge("it has no BatchNorm2d")
    for node, block in blocks:
        block.readers = give_each_reader_its_own(node)
    network.recompile()
    return network


def _is_plain(norm: nn.Module) -> bool:
    """Whether the kernel does what the layer does: not of one's own, nor by groups of a batch."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.running_mean is not None
        and norm.momentum is not None
        and "forward" not in vars(norm)
    )


def _outcome(model: nn.Module, forward: Any) -> list[Tensor]:
    """Logits, gradients of a sum that tells classes and views apart, and running statistics."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        logits = torch.stack(forward())
        weights = torch.linspace(1, 2, logits.numel(), device=logits.device, dtype=logits.dtype)
        total = (weights.view_as(logits) * logits).sum()
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
    moved = [buffer.detach().to(logits.dtype).clone() for buffer in model.buffers()]
    return [logits.detach(), *(grad for grad in grads if grad is not None), *moved]


@torch.no_grad()
def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, tensor in model.named_buffers():
        tensor.copy_(buffers[name])
