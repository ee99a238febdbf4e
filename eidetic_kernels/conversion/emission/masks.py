"""Masks that are written out for every head or channel: one of them, which is broadcast, however many are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, is_tensor, leaves, operation, shape_of, target_of
from ..owners.creation import CREATING
from ..owners.elementwise import COMBINING, PASSING
from ..owners.moves import MOVES
from .emitter import Emitter
from .places import concrete_of

BROADCASTING = (*COMBINING, "scaled_dot_product_attention")


def broadcast_arguments(emitter: Emitter, node: fx.Node) -> list[Any]:
    """The arguments of ``node``; of those that are no unit's, one place of each dimension that units lie in.

    Raises ConversionError for a mask of attention that has numbers of its own for each head.
    """
    attention = operation(node) == "scaled_dot_product_attention"
    elastic = emitter.elastic(args_of(node)[0] if attention else node)
    if attention:  # [*, heads, queries, keys]
        elastic = [*elastic[:-2], None, None]
    made = []
    for number, argument in enumerate(args_of(node)):
        new = emitter.argument(argument)
        if isinstance(new, fx.Node) and _nobodys(emitter, argument) and not (attention and number < 3):
            shape = shape_of(argument)
            for dim in range(-min(len(shape), len(elastic)), 0):
                if shape[dim] == 1 or elastic[dim] is None:
                    continue
                if alike(emitter, argument, dim % len(shape)):
                    narrow = emitter.graph.call_function(torch.ops.aten.slice.Tensor, (new, dim, 0, 1))
                    new = emitter.free(narrow)
                elif attention:
                    raise at_node(node).refused(
                        "its mask has numbers for each head, which would not be cut with the heads. Make them an "
                        "nn.Parameter, which is."
                    )
        made.append(new)
    return made


def _nobodys(emitter: Emitter, node: fx.Node) -> bool:
    """Whether the numbers of ``node`` are no unit's."""
    owners = emitter.owners(node)
    return isinstance(emitter.analysis.values.get(node), Tensor) if owners is None else not owners.owned


def alike(emitter: Emitter, node: fx.Node, dim: int) -> bool:
    """Whether the numbers of ``node`` are the same all along its dimension ``dim``, whatever the input."""
    same = _same(emitter, node)
    return bool((same == same.narrow(dim, 0, 1)).all())


def _same(emitter: Emitter, node: fx.Node) -> Tensor:
    """A whole number for each number of ``node``: those with the same one are the same, whatever the input."""
    shape = shape_of(node)
    apart = torch.arange(int(torch.Size(shape).numel())).view(shape)
    known = emitter.analysis.values.get(node)
    if isinstance(known, Tensor):
        return torch.unique(known.detach(), return_inverse=True)[1].view(shape)
    if node.op != "call_function":
        return apart
    name = operation(node)
    given = [each for each in leaves([node.args, node.kwargs]) if isinstance(each, fx.Node) and is_tensor(each)]
    if name in CREATING:
        return torch.zeros(shape, dtype=torch.long)
    if name in PASSING or name in COMBINING:
        same = torch.zeros(shape, dtype=torch.long)
        for each in given:
            other = _same(emitter, each)
            pairs = same * (int(other.max()) + 1 if other.numel() else 1) + other
            same = torch.unique(pairs, return_inverse=True)[1].view(shape)
        return same
    if name not in MOVES or len(given) != 1 or given[0] is not args_of(node)[0]:
        return apart
    target = torch.ops.aten.reshape.default if name in ("view", "_unsafe_view") else target_of(node)
    sizes = [concrete_of(each) for each in args_of(node)[1:]]
    moved = target(_same(emitter, given[0]), *sizes, **concrete_of(dict(node.kwargs)))
    return moved if isinstance(moved, Tensor) else apart
