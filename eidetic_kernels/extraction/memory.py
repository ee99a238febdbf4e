"""How values lie in memory on their way through an extracted graph: a product's bits depend on it.

In the network a frozen segment's product reads memory of its own. So a value that lies in another's memory, or in
another order than its dimensions, is copied before a product reads it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import fx, nn

from ..layers import (
    EideticConv2d,
    EideticConvolution,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticRMSNorm,
    HeadedAttention,
    Parts,
    SegmentedLayer,
    Shared,
)
from ..layers.prefix import EideticPrefix
from .graph import emit_as_rows
from .products import spatial_dims

# torch's functions and methods that give a tensor in another's memory, in another order or in part, by name; of torch's
# own operators (torch.ops.aten) the schema says so. The last ones give what they computed in another order.
MOVES = {"getitem", "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "select", "unbind"} | {
    "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "expand", "expand_as", "unfold", "diagonal",
    "einsum", "scaled_dot_product_attention",
}  # fmt: skip
# Operators that give a tensor in another's memory, but as it lies there.
KEEPS = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "detach", "alias", "to"}


# How a module reads its input in memory of its own: dimension by dimension, or as rows [positions, units] one after the
# other, of which a single image's may be each unit with all positions. None: it takes its input as it lies.
Reading: TypeAlias = Literal["contiguous", "rows"] | None


def reading(module: nn.Module | None) -> Reading:
    """How the network's ``module`` reads its input.

    Convolutions of images take it as it lies: theirs keep the order of channels_last, and torch's copies by itself.
    """
    if isinstance(module, (Parts, Shared)):
        module = module[0]
    if isinstance(module, EideticRMSNorm):
        return "rows"
    if isinstance(module, (EideticConvolution, EideticConv2d, EideticGroupedConv2d)):
        return None if spatial_dims(module) == 2 else "contiguous"
    return "contiguous" if isinstance(module, (EideticLinear, HeadedAttention)) else None


def emit_copy(graph: fx.Graph, x: fx.Node, how: Reading) -> fx.Node:
    """A copy of ``x`` for what reads it so."""
    if how == "rows":
        return emit_as_rows(graph, x)
    return graph.call_method("clone", (x,), {"memory_format": torch.contiguous_format})


def moves(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether ``node`` gives a value in another's memory, or in another order than its dimensions."""
    if isinstance(module, Parts):
        module = module[0]
    if isinstance(module, SegmentedLayer):
        return isinstance(module, (EideticLayerNorm, EideticPrefix)) and module.unit_dim != -1
    if not isinstance(node.target, torch._ops.OpOverload):
        return module is None and operation(node.target) in MOVES
    aliased = any(each.alias_info is not None for each in node.target._schema.returns)
    return operation(node.target) in MOVES or (aliased and operation(node.target) not in KEEPS)


def ends_moves(module: nn.Module | None) -> bool:
    """Whether what ``module`` gives lies dimension by dimension, whatever it is given."""
    if isinstance(module, EideticLayerNorm) and not isinstance(module, EideticRMSNorm):
        return module.unit_dim == -1
    return reading(module) == "contiguous"


def operation(target: Any) -> str:
    """The name of a function, method or operator of torch."""
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return target if isinstance(target, str) else getattr(target, "__name__", "")
