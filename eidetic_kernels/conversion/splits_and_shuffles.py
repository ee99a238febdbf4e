"""Splits and shuffles of channels become modules that follow units.

``chunk``, ``split`` and slices cut at fixed places, and a shuffle written with ``view`` counts channels. Both would be
wrong once a unit is pruned. The shapes that an example had tell what they do.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..layers import Shuffle, Split
from .nodes import called_module

SPLITS = (torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split")
VIEWS = ("view", "reshape", torch.reshape)
SHUFFLES = tuple(f for f in (torch.channel_shuffle, getattr(F, "channel_shuffle", None)) if f is not None)


def separate_heads(module: nn.Module, graph: fx.Graph) -> None:
    """Split queries, keys and values before they are viewed as heads, in place; the numbers are the same.

    One layer makes all three, and a permuted view [N, T, 3, heads, size] separates them. Afterwards a :class:`Split`
    separates them, and each is viewed as heads by itself, [N, heads, T, size].
    """
    for node in list(graph.nodes):
        given = next(iter(node.all_input_nodes), None)
        if given is None:
            continue
        shape, seen = given.meta.get("shape"), node.meta.get("shape")
        if node.target not in VIEWS or not shape or not seen or len(seen) != 5 or seen[:2] != shape[:2]:
            continue
        exchange = _only_user(node)
        if exchange is None or exchange.target not in ("permute", torch.permute) or _dims(exchange) != (2, 0, 3, 1, 4):
            continue

        users = list(exchange.users)
        unbound = len(users) == 1 and users[0].target in ("unbind", torch.unbind) and users[0].args[1:] in ((), (0,))
        picks = list(users[0].users) if unbound else users
        if any(pick.target is not operator.getitem or not isinstance(pick.args[1], int) for pick in picks):
            continue

        sizes: Any = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
        pieces = _call(module, graph, node, given, Split([shape[2] // seen[2]] * seen[2], -1))
        pieces.meta.pop("shape", None)
        for pick in picks:
            with graph.inserting_before(pick):
                piece = graph.call_function(operator.getitem, (pieces, pick.args[1]))
                heads = graph.call_method("reshape", (piece, *sizes[:2], *sizes[3:]))
                moved = graph.call_method("transpose", (heads, 1, 2))
            piece.meta, heads.meta, moved.meta = (
                {**pick.meta, "shape": each}
                for each in ((*shape[:2], shape[2] // seen[2]), (*seen[:2], *seen[3:]), exchange.meta["shape"][1:])
            )
            pick.replace_all_uses_with(moved)


def replace_splits_and_shuffles(module: nn.Module, graph: fx.Graph) -> None:
    """Replace what splits or shuffles units in the ``graph`` of ``module``, in place.

    :class:`Split` and :class:`Shuffle` take its place. Units lie in dimension 1, or for tokens in the last one.
    :class:`.example.Example` has run the graph, so its nodes carry shapes and numbers.
    """
    for node in list(graph.nodes):
        given = next(iter(node.all_input_nodes), None)
        shape = None if given is None else given.meta.get("shape")
        if given is None or shape is None:
            continue
        if node.op in ("call_function", "call_method") and node.target in SPLITS:
            pieces = node.meta.get("shapes", ())
            sizes = _cut(shape, pieces) if len(shape) in (2, 4) else None
            tokens = _cut((shape[0], shape[-1], *shape[1:-1]), tuple((p[0], p[-1], *p[1:-1]) for p in pieces))
            split = Split(sizes) if sizes else Split(tokens, -1) if tokens else None
            if split is not None:
                node.replace_all_uses_with(_call(module, graph, node, given, split))
        if len(shape) not in (2, 4):
            continue

        if node.target is operator.getitem and (bounds := _slice(node, shape)) is not None:
            _slice_by_split(module, graph, node, given, bounds)
        elif (groups := _shuffled(module, node)) is not None:
            node.replace_all_uses_with(_call(module, graph, node, given, Shuffle(groups)))
        elif (end := _shuffled_by_views(node, shape)) is not None:
            end.replace_all_uses_with(_call(module, graph, end, given, Shuffle(node.meta["shape"][1])))


def _call(module: nn.Module, graph: fx.Graph, before: fx.Node, given: fx.Node, layer: nn.Module) -> fx.Node:
    """Add a node before ``before`` that calls the new ``layer`` on ``given``, with the notes that ``before`` has."""
    path = f"{type(layer).__name__.lower()}_{before.name}"
    module.add_module(path, layer)
    with graph.inserting_before(before):
        node = graph.call_module(path, (given,))
    node.meta = {**before.meta}
    node.stack_trace = before.stack_trace
    return node


def _cut(shape: tuple[int, ...], pieces: tuple[tuple[int, ...], ...]) -> list[int] | None:
    """How many units each piece has, where dimension 1 was split; None where it was not."""
    sizes = [piece[1] for piece in pieces if (piece[0], *piece[2:]) == (shape[0], *shape[2:])]
    return sizes if len(sizes) == len(pieces) and sum(sizes) == shape[1] else None


def _slice(node: fx.Node, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(first unit, unit after the last) of ``x[:, a:b]``; None where the index is anything else, or takes all units."""
    index = node.args[1]
    index = index if isinstance(index, tuple) else (index,)
    everything = slice(None)
    if len(index) < 2 or not isinstance(index[1], slice) or any(i != everything for i in (index[0], *index[2:])):
        return None
    start, stop, step = (_number(each) for each in (index[1].start, index[1].stop, index[1].step))
    if step not in (None, 1) or "unknown" in (start, stop):
        return None
    start, stop, _ = slice(start, stop).indices(shape[1])
    return (start, stop) if start < stop and (start, stop) != (0, shape[1]) else None


def _number(value: Any) -> Any:
    """The number that a node had for the example; "unknown" if it had none."""
    return value.meta.get("number", "unknown") if isinstance(value, fx.Node) else value


def _slice_by_split(module: nn.Module, graph: fx.Graph, node: fx.Node, given: fx.Node, bounds: tuple[int, int]) -> None:
    """Replace a slice of units by a split, of which one piece is used."""
    start, stop = bounds
    sizes = [start, stop - start, given.meta["shape"][1] - stop]
    pieces = _call(module, graph, node, given, Split([size for size in sizes if size]))
    pieces.meta.pop("shape", None)
    with graph.inserting_before(node):
        piece = graph.call_function(operator.getitem, (pieces, int(start > 0)))
    piece.meta = {**node.meta}
    node.replace_all_uses_with(piece)


def _shuffled(module: nn.Module, node: fx.Node) -> int | None:
    """The number of groups of a shuffle that is one call; None if ``node`` is none."""
    if node.op == "call_module" and type(called := called_module(module, node)) is nn.ChannelShuffle:
        return called.groups
    if node.op == "call_function" and node.target in SHUFFLES:
        groups = (*node.args[1:], node.kwargs.get("groups"))[0]
        return groups if isinstance(groups, int) else None
    return None


def _shuffled_by_views(node: fx.Node, shape: tuple[int, ...]) -> fx.Node | None:
    """The last node of a shuffle written with views that begins at ``node``; None if none begins there.

    [N, C, H, W] is viewed as [N, groups, C / groups, H, W], dimensions 1 and 2 are exchanged, and it is viewed as
    [N, C, H, W] again.
    """
    seen = node.meta.get("shape", ())
    if node.target not in VIEWS or len(shape) != 4 or len(seen) != 5 or (seen[0], *seen[3:]) != (shape[0], *shape[2:]):
        return None
    exchange = _only_user(node)
    if exchange is None or exchange.target not in ("transpose", "permute", "swapaxes", torch.transpose, torch.permute):
        return None
    dims = _dims(exchange)
    if dims not in ((1, 2), (2, 1), (0, 2, 1, 3, 4)) or (len(dims) == 2) == ("permute" in str(exchange.target)):
        return None
    end = _only_user(exchange)
    if end is not None and end.target == "contiguous":
        end = _only_user(end)
    if end is None or end.target not in (*VIEWS, "flatten", torch.flatten) or end.meta.get("shape") != shape:
        return None
    return end


def _dims(exchange: fx.Node) -> tuple[Any, ...]:
    """The dimensions that a permutation or transposition is called with, one by one or as a sequence."""
    dims: Any = exchange.args[1:]
    return tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
