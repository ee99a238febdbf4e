"""Operations whose sizes count units."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from ...layers import Split
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, runs_of_a_view, shape_of
from ..owners.maps import Owners, along
from .emitter import Emitter
from .places import one_dim
from .reading import sources_of


def views(emitter: Emitter, node: fx.Node) -> fx.Node:
    given = args_of(node)[0]
    return emitter.copy(
        node, (emitter.argument(given), _sizes_of_view(emitter, node, given, list(args_of(node)[1]))), {}
    )


def _sizes_of_view(emitter: Emitter, node: fx.Node, given: fx.Node, sizes: list[Any]) -> list[Any]:
    old, new = shape_of(given), shape_of(node)
    assert old is not None and new is not None
    elastic, made = emitter.elastic(node), list(sizes)
    for ins, outs in runs_of_a_view(old, new):
        loose = [d for d in outs if (elastic[d] is not None) or made[d] == -1]
        if any(elastic[d] is not None for d in outs):
            strict = [d for d in outs if elastic[d] is not None]
            if len(strict) > 1:
                raise at_node(node).refused("units come to lie in several dimensions at once.")
            loose = strict
            for d in outs:
                if made[d] == -1 and d not in strict:
                    made[d] = new[d]
        if len(loose) != 1:
            continue
        (d,) = loose
        total: Any = 1
        for i in ins:
            size = emitter.size(given, i)
            total = size if isinstance(total, int) else emitter.graph.call_function(operator.mul, (total, size))
        rest: Any = 1
        for o in outs:
            if o != d:
                size = emitter.argument(made[o])
                rest = (
                    size
                    if isinstance(rest, int) and rest == 1
                    else (
                        rest * size
                        if isinstance(rest, int) and isinstance(size, int)
                        else emitter.graph.call_function(operator.mul, (rest, size))
                    )
                )
        if not (isinstance(rest, int) and rest == 1):
            total = emitter.graph.call_function(operator.floordiv, (total, rest))
        made[d] = total
    return [emitter.argument(each) for each in made]


def fixed_kernels(emitter: Emitter, node: fx.Node) -> fx.Node:
    """A fixed kernel (a blur) for each channel, however many there are."""
    weight = emitter.analysis.value(args_of(node)[1])
    if not isinstance(weight, Tensor) or not bool((weight == weight[:1]).all()):
        raise at_node(node).refused("fixed kernels that differ from channel to channel.")
    name = f"_fixed_{node.name}"
    emitter.module.register_buffer(name, weight[:1].detach().clone())
    size = emitter.size(args_of(node)[0], 1)
    kernel = emitter.graph.get_attr(name)
    kernels = emitter.graph.call_function(torch.ops.aten.expand.default, (kernel, [size, -1, -1, -1]))
    kernel.meta["free"] = kernels.meta["free"] = True
    args = [emitter.argument(each) for each in node.args]
    args += [None, [1, 1], [0, 0], [1, 1], 1][len(args) - 2 :]
    args[1], args[6] = kernels, size
    return emitter.copy(node, args, {})


def expands(emitter: Emitter, node: fx.Node) -> fx.Node:
    given = args_of(node)[0]
    old, sizes = shape_of(given), list(args_of(node)[1])
    added = len(sizes) - len(old)
    kept = emitter.elastic(given)
    for d in range(len(old)):
        if kept and kept[d] is not None:
            sizes[d + added] = -1
    return emitter.copy(node, (emitter.argument(given), emitter.argument(sizes)), {})


def slices(emitter: Emitter, node: fx.Node) -> fx.Node:
    given, dim = args_of(node)[0], args_of(node)[1] if len(node.args) > 1 else 0
    start = args_of(node)[2] if len(node.args) > 2 else None
    end = args_of(node)[3] if len(node.args) > 3 else None
    step = args_of(node)[4] if len(node.args) > 4 else 1
    old = shape_of(given)
    dim %= len(old)
    if emitter.elastic(given)[dim] is None:
        return emitter.copy(node, [emitter.argument(a) for a in node.args], {})
    if step != 1 or isinstance(start, fx.Node) or isinstance(end, fx.Node):
        raise at_node(node).refused("it picks some units.")
    start, end, _ = slice(start, end).indices(old[dim])
    if (start, end) == (0, old[dim]):
        return emitter.argument(given)
    sizes = [size for size in (start, end - start, old[dim] - end) if size]
    pieces = divided(emitter, node, given, dim, sizes)
    return emitter.graph.call_function(operator.getitem, (pieces, int(start > 0)))


def divided(emitter: Emitter, node: fx.Node, given: fx.Node, dim: int, sizes: Sequence[int]) -> fx.Node:
    """``given`` cut along the units' dimension ``dim``."""
    x = emitter.owners(given)
    columns = one_dim(x.units, dim)
    alike = [emitter.world.number[part] for part in columns.split(list(sizes))]
    if len({len(p) for p in alike}) == 1 and all(bool((p == alike[0]).all()) for p in alike):
        size = emitter.graph.call_function(operator.floordiv, (emitter.size(given, dim), len(sizes)))
        return emitter.graph.call_function(
            torch.ops.aten.split_with_sizes.default, (emitter.argument(given), [size] * len(sizes), dim)
        )
    if [d for d in x.unit_dims if d != dim]:
        raise at_node(node).refused("it cuts heads that are not alike.")

    laid = one_dim(emitter.layout(given).units, dim)
    sources = sources_of(emitter, laid, node.name)
    runs = laid.split([emitter.grouped.widths[emitter.number_of(source)] * source.block for source in sources])
    pieces, layouts, end = [], [], 0
    starts = [sum(len(run) for run in runs[:number]) for number in range(len(runs))]
    for part in alike:
        begin, end = end, end + len(part)
        if given in emitter.shuffled:
            inside = [bool(torch.isin(emitter.numbers(run), part).all()) for run in runs]
        else:
            inside = [begin <= at and at + len(run) <= end for at, run in zip(starts, runs)]
        mine = tuple(number for number, each in enumerate(inside) if each)
        if sum(len(runs[number]) for number in mine) != len(part):
            raise at_node(node).refused("it cuts through a group.")
        pieces.append(mine)
        layouts.append(torch.cat([runs[number] for number in mine]))
    rank = len(x.shape)
    if dim not in (1, rank - 1):
        raise at_node(node).refused(f"it cuts units in dimension {dim}.")
    if given in emitter.shuffled:
        values = emitter.analysis.values[node]
        values = values if isinstance(values, (list, tuple)) else None
        emitter.shuffled[node] = [
            Owners((*x.shape[:dim], len(units), *x.shape[dim + 1 :]), along(dim, rank, units), x.samples, x.coarse)
            for units in layouts
        ]
        if values is None:  # a slice is one of the pieces
            raise at_node(node).refused("it picks some of shuffled units.")
    path = f"split_{node.name}"
    emitter.module.add_module(path, Split(sizes, 1 if dim == 1 else -1))
    emitter.pieces[f"body.{path}"] = (sources, tuple(pieces))
    return emitter.graph.call_module(path, (emitter.argument(given),))


def splits(emitter: Emitter, node: fx.Node) -> fx.Node:
    given, dim = args_of(node)[0], (args_of(node)[2] if len(node.args) > 2 else 0) % len(shape_of(args_of(node)[0]))
    if emitter.elastic(given)[dim] is None:
        return emitter.copy(node, emitter.argument(list(node.args)), {})
    return divided(emitter, node, given, dim, [p.shape[dim] for p in emitter.analysis.values[node]])


def unbinds(emitter: Emitter, node: fx.Node) -> fx.Node:
    given, dim = args_of(node)[0], (args_of(node)[1] if len(node.args) > 1 else 0) % len(shape_of(args_of(node)[0]))
    if emitter.elastic(given)[dim] is not None:
        raise at_node(node).refused("it takes units apart one by one.")
    return emitter.copy(node, emitter.argument(list(node.args)), {})


def selects(emitter: Emitter, node: fx.Node) -> fx.Node:
    given, dim = args_of(node)[0], args_of(node)[1] % len(shape_of(args_of(node)[0]))
    if emitter.elastic(given)[dim] is not None:
        raise at_node(node).refused("it picks a unit.")
    return emitter.copy(node, emitter.argument(list(node.args)), {})


def unflattens(emitter: Emitter, node: fx.Node) -> fx.Node:
    given = args_of(node)[0]
    if len([each for each in emitter.elastic(node) if each is not None]) > 1:
        raise at_node(node).refused("units come to lie in several dimensions at once.")
    new = shape_of(node)
    dim = args_of(node)[1] % len(shape_of(given))
    inside = list(args_of(node)[2])
    kept = emitter.elastic(node)
    elastic = [d for d in range(len(inside)) if kept[dim + d] is not None]
    if elastic:
        (d,) = elastic
        rest = prod(new[dim + o] for o in range(len(inside)) if o != d)
        size: Any = emitter.size(given, dim)
        if rest != 1:
            size = emitter.graph.call_function(operator.floordiv, (size, rest))
        inside = [new[dim + o] for o in range(len(inside))]
        inside[d] = size
    return emitter.copy(node, (emitter.argument(given), dim, inside), {})


RESIZING: dict[str, Callable[[Emitter, fx.Node], Any]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), views),
    **dict.fromkeys(("split_with_sizes", "split", "chunk", "tensor_split", "unsafe_split"), splits),
    "conv2d": fixed_kernels,
    "expand": expands,
    "select": selects,
    "slice": slices,
    "unbind": unbinds,
    "unflatten": unflattens,
}
