"""What follows what in a network that torch.fx has traced."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (F.relu, torch.relu, "relu", "relu_")


def called_module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that is called; None also for one with hooks, or with arguments by name."""
    if node.op != "call_module" or node.kwargs:
        return None
    module = network.get_submodule(str(node.target))
    return None if module._forward_hooks or module._forward_pre_hooks else module


def only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def relu_after(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a node."""
    reader = only_reader(node)
    is_relu = reader is not None and (
        calls(reader, RELUS) or isinstance(called_module(network, reader), nn.ReLU)
    )
    return reader if is_relu else None


def sum_after(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The sum with another node of the same shape that alone reads a node, and that other one."""
    reader = only_reader(node)
    if reader is None or not calls(reader, ADDS) or reader.kwargs or len(reader.args) != 2:
        return None
    other = reader.args[1] if reader.args[0] is node else reader.args[0]
    if not isinstance(other, fx.Node) or other is node or shape(other) != shape(node):
        return None
    return reader, other


def calls(node: fx.Node, functions: tuple[Any, ...]) -> bool:
    """Whether it calls one of these functions or methods; a module's name may be any of theirs."""
    return node.op != "call_module" and node.target in functions


def shape(node: fx.Node) -> torch.Size | None:
    """As `ShapeProp` has found it."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def pool_by_means(network: fx.GraphModule) -> None:
    """Let means stand for average poolings to one pixel, whose gradient takes fewer passes."""
    for node in list(network.graph.nodes):
        module = called_module(network, node)
        size: Any = None
        if isinstance(module, nn.AdaptiveAvgPool2d):
            size = module.output_size
        elif calls(node, (F.adaptive_avg_pool2d,)) and not node.kwargs:
            size = node.args[1]
        if size in (1, (1, 1), [1, 1]) and len(shape(node) or ()) == 4:
            with network.graph.inserting_before(node):
                mean = network.graph.call_method("mean", (node.args[0], (2, 3), True))
            mean.meta = node.meta
            node.replace_all_uses_with(mean)
            network.graph.erase_node(node)


def from_readers(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """The gradients that readers give back, as one or as two that a kernel adds."""
    first, *others = [grad for grad in grads if grad is not None]
    while len(others) > 1:
        others[-2:] = [others[-2] + others[-1]]
    return first, others[0] if others else None


def give_each_reader_its_own(node: fx.Node) -> int:
    """The number of readers; of several, each reads an element of the node's tuple."""
    readers = list(node.users)
    if len(readers) > 1:
        with node.graph.inserting_after(node):
            outcomes = [
                node.graph.call_function(operator.getitem, (node, n)) for n in range(len(readers))
            ]
        for reader, outcome in zip(readers, outcomes, strict=True):
            reader.replace_input_with(node, outcome)
    return len(readers)
