"""Shuffles of units are left out: layers that read the units know their order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import ConversionError
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, operation, shape_of, target_of
from ..owners.analysis import Analysis
from ..owners.maps import Owners
from ..owners.step import PRODUCERS, RULES, Step
from .emitter import Emitter
from .places import concrete_of, narrowed
from .resizing import divided


def follow_shuffle(emitter: Emitter, node: fx.Node) -> bool:
    """Leave out a node of a shuffle (a view that takes units apart, and puts them together in another order).

    Returns whether ``node`` is one. Where the units are together again, the layers that read them know the order.
    """
    given = args_of(node)[0] if node.args and isinstance(args_of(node)[0], fx.Node) else None
    if given in emitter.apart and operation(node) in ("select", "unbind"):
        _pick(emitter, node, given)
        return True
    if given is not None and given not in emitter.apart and operation(node) in _SHUFFLES:
        return _shuffle(emitter, node, given)
    if given is None or operation(node) not in _OF_SHUFFLES or emitter.owners(node) is None:
        return False
    source = emitter.apart.get(given)
    try:
        emitter.world.kept(emitter.owners(node), node)
        together = True
    except ConversionError:
        together = False
    if source is None and together:
        return False
    source = given if source is None else source
    emitter.apart[node] = source
    if not together:
        return True
    del emitter.apart[node]
    before, after = emitter.layout(source), emitter.owners(node)
    if before.shape != after.shape or len(before.unit_dims) != 1 or before.unit_dims != after.unit_dims:
        raise at_node(node).refused("units are put together in another way than they were taken apart.")
    (dim,) = after.unit_dims
    numbers = torch.arange(prod(before.shape)).view(before.shape)
    order = _replayed(source, node, numbers)
    if not _moves_units(numbers, order, dim):
        raise at_node(node).refused("a shuffle that moves positions, too.")
    emitter.shuffled[node] = before
    emitter.kept.pop(node, None)
    emitter.nodes[node] = emitter.nodes[source]
    return True


def _shuffle(emitter: Emitter, node: fx.Node, given: fx.Node) -> bool:
    """Leave out an operation that puts all units of its input into another order."""
    before, after = emitter.layout(given), emitter.owners(node)
    if before is None or after is None or len(before.unit_dims) != 1 or before.unit_dims != after.unit_dims:
        return False
    units = [emitter.numbers(each.units).flatten() for each in (before, after)]
    if before.shape != after.shape or bool((units[0] == units[1]).all()):
        return False
    if not bool((units[0].sort().values == units[1].sort().values).all()):
        return False
    numbers = torch.arange(prod(before.shape)).view(before.shape)
    if not _moves_units(numbers, _replayed(given, node, numbers), before.unit_dims[0]):
        raise at_node(node).refused("a shuffle that moves positions, too.")
    emitter.shuffled[node] = before
    emitter.kept.pop(node, None)
    emitter.nodes[node] = emitter.nodes[given] if given in emitter.nodes else emitter.argument(given)
    return True


def _pick(emitter: Emitter, node: fx.Node, given: fx.Node) -> None:
    """``select`` or ``unbind`` of units of several groups that a view took apart: query, key and value.

    The groups are cut apart before the view, and each is viewed by itself.
    """
    source = emitter.apart[given]
    chain = [given]
    while args_of(chain[0])[0] is not source:
        chain.insert(0, args_of(chain[0])[0])
    dim = (args_of(node)[1] if len(node.args) > 1 else 0) % len(shape_of(given))
    dims = [dim]  # where the dimension that is picked of lies in each result of the chain
    for each in reversed(chain[1:]):
        dims.insert(0, _dim_before(each, dims[0]))
    if operation(chain[0]) not in ("view", "reshape", "_unsafe_view", "unflatten") or None in dims:
        raise at_node(node).refused("units of several groups were taken apart, and are used so.")
    unit_dims = emitter.owners(source).unit_dims
    if len(unit_dims) != 1:
        raise at_node(node).refused("units of several groups were taken apart, and are used so.")
    picks = [args_of(node)[2] % shape_of(given)[dim]] if operation(node) == "select" else range(shape_of(given)[dim])
    firsts = [narrowed(emitter.owners(chain[0]), dims[0], pick) for pick in picks]
    numbers = [torch.unique(each.units) for each in firsts]
    columns = emitter.layout(source).units.flatten()
    inside = [torch.isin(columns, each) for each in numbers]
    cuts = torch.stack(inside).long()
    sizes = torch.unique_consecutive(cuts, dim=1, return_counts=True)[1].tolist()
    parts = divided(emitter, node, source, unit_dims[0], sizes)
    places = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    made = []
    for pick, mask in zip(picks, inside):
        found = [n for n, at in enumerate(places.tolist()) if bool(mask[at])]
        if len(found) != 1:
            raise at_node(node).refused("units of one group lie apart from each other.")
        new = emitter.graph.call_function(operator.getitem, (parts, found[0]))
        new = _viewed(emitter, new, shape_of(source), chain, dims, pick)
        made.append(emitter.graph.call_function(torch.ops.aten.select.int, (new, dim, 0)))
    for each in made:
        each.meta["source"] = node
    emitter.nodes[node] = made[0] if operation(node) == "select" else made
    emitter.kept.pop(node, None)


def _viewed(
    emitter: Emitter, new: fx.Node, shape: Sequence[int], chain: Sequence[fx.Node], dims: Sequence[int], pick: int
) -> fx.Node:
    """``chain`` of what was picked already: its dimension has size 1."""
    first = chain[0]
    x = narrowed(emitter.owners(first), dims[0], pick)
    elastic = emitter.world.kept(x, first)
    sizes: list[Any] = []
    for d, size in enumerate(x.shape):
        sizes.append(size if elastic[d] is None else -1)
    for d in range(len(sizes)):  # sizes that are no units': as they were given
        given = args_of(first)[1][d] if operation(first) != "unflatten" else None
        if isinstance(given, fx.Node):
            sizes[d] = emitter.argument(given)
    if operation(first) == "unflatten":
        raise at_node(first).refused("units of several groups are taken apart by unflatten.")
    if sizes.count(-1) > 1:
        raise at_node(first).refused("units come to lie in several dimensions at once.")
    new = emitter.graph.call_function(torch.ops.aten.reshape.default, (new, sizes))
    new.meta["picked"] = (first, dims[0], pick)
    for each, at in zip(chain[1:], dims[1:]):
        new = emitter.graph.call_function(target_of(each), (new, *emitter.argument(args_of(each)[1:])), {})
        new.meta["picked"] = (each, at, pick)
    return new


def _moves_units(numbers: Tensor, order: Tensor, dim: int) -> bool:
    """Whether ``order`` is ``numbers`` in another order along ``dim`` alone."""
    shape = numbers.shape
    place = order.movedim(dim, 0).flatten(1)[:, 0] // prod(shape[dim + 1 :]) % shape[dim]
    return bool((numbers.index_select(dim, place) == order).all())


def _replayed(source: fx.Node, node: fx.Node, numbers: Tensor) -> Tensor:
    given = args_of(node)[0]
    x = numbers if given is source else _replayed(source, given, numbers)
    arguments = [x, *(concrete_of(each) for each in args_of(node)[1:])]
    target = torch.ops.aten.reshape.default if operation(node) in ("view", "_unsafe_view") else target_of(node)
    return target(*arguments, **node.kwargs)


def note_layout(emitter: Emitter, node: fx.Node) -> None:
    """Follow the order in which units lie, where an argument's is not the network's own."""
    if node in emitter.shuffled or node in emitter.by_node and emitter.by_node[node].kind in PRODUCERS:
        return
    if not any(each in emitter.shuffled for each in node.all_input_nodes):
        return
    view = _Laid(emitter.analysis, {**emitter.analysis.values, **emitter.shuffled})
    if operation(node) == "getitem":
        laid = view.values[args_of(node)[0]][args_of(node)[1]]
    elif node in emitter.by_node:
        laid = emitter.layout(args_of(node)[0])
    else:
        laid = RULES[operation(node)](Step(view, node))
    emitter.shuffled[node] = laid
    own = emitter.analysis.values[node]
    if isinstance(laid, Owners):
        if laid.units.shape == own.units.shape and bool(
            (emitter.numbers(laid.units) == emitter.numbers(own.units)).all()
        ):
            del emitter.shuffled[node]


def _dim_before(node: fx.Node, dim: int) -> int | None:
    """Where dimension ``dim`` of a permutation's result lay before it; None for other operations."""
    rank, name = len(shape_of(node)), operation(node)
    if name == "permute":
        return args_of(node)[1][dim] % rank
    if name in ("transpose", "swapaxes"):
        a, b = args_of(node)[1] % rank, args_of(node)[2] % rank
        return b if dim == a else a if dim == b else dim
    return dim if name in ("contiguous", "clone") else None


_SHUFFLES = ("channel_shuffle", "index_select", "index", "flip", "roll")


_OF_SHUFFLES = (
    "view",
    "reshape",
    "_unsafe_view",
    "transpose",
    "permute",
    "contiguous",
    "flatten",
    "unflatten",
    "clone",
)


class _Laid:
    """An analysis whose values are as units lie when the network runs. What ties them is known already."""

    def __init__(self, analysis: Analysis, values: dict[fx.Node, Any]):
        self.values, self.captured, self.module, self.fixed = values, analysis.captured, analysis.module, analysis.fixed
        self.constraints = _Ignored(analysis.constraints)
        self.layers: list[Any] = []
        self.mixed: list[Any] = []
        self.asleep = analysis.asleep
        self._elements = analysis._elements
        self.elements = analysis.elements

    def value(self, argument: Any, deferred: bool = False) -> Any:
        return Analysis.value(self, argument, deferred)  # type: ignore[arg-type]


class _Ignored:
    def __init__(self, constraints: Any):
        self.makers, self.made = constraints.makers, constraints.made

    def same(self, a: Tensor, b: Tensor) -> None:
        pass

    together = same
