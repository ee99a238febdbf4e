"""Tries an emitted graph where units were pruned at random: what moves numbers about must still move the right ones."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...checking import first_line
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, leaves, operation
from ..owners.elementwise import COMBINING
from ..owners.maps import NOBODY, Owners
from ..owners.moves import MOVES
from .places import narrowed


def prove(emitter: Any) -> None:
    """Raise ConversionError where the network would mix up units after some were pruned.

    Every node's map of units, pruned, must be what the node makes of its arguments' pruned maps.
    """
    values: dict[fx.Node, Any] = {}
    origin = {new: old for old, new in emitter.nodes.items() if isinstance(new, fx.Node)}

    def expected(old: fx.Node) -> Any:
        value = emitter.shuffled.get(old) or emitter.owners(old)
        if value is None:
            value = emitter.analysis.values.get(old)
        if isinstance(value, Owners):
            return _pruned(emitter, value, old)
        if isinstance(value, (list, tuple)):
            return [_of_nobody(each) if isinstance(each, Tensor) else _pruned(emitter, each, old) for each in value]
        if isinstance(value, Tensor):
            return _of_nobody(value)
        return value

    def of(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return values[argument]
        if isinstance(argument, (list, tuple)):
            return [of(each) for each in argument]
        return argument

    for node in emitter.graph.nodes:
        if node.op == "output":
            continue
        if "free" in node.meta:  # what is fixed
            values[node] = None
            continue
        if "dropped" in node.meta:
            values[node] = expected(node.meta["dropped"])
            continue
        if "slice" in node.meta or "whole" in node.meta:  # parts of a tensor that has a slice for each unit
            path, *place = node.meta.get("slice", (node.meta.get("whole"),))
            elements = emitter.analysis._elements[path]
            if place:
                dim, start, stop = place
                elements = Owners(elements.shape, elements.units.narrow(dim, start, stop - start), elements.samples)
                elements = Owners(tuple(elements.units.shape), elements.units, elements.samples)
            values[node] = _pruned(emitter, elements, node)
            continue
        if "picked" in node.meta:
            values[node] = node.target(*of(node.args), **{name: of(each) for name, each in node.kwargs.items()})
            first, dim, pick = node.meta["picked"]
            _compare(first, values[node], _pruned(emitter, narrowed(emitter.owners(first), dim, pick), first))
            continue
        old = node.meta.get("source") or origin.get(node)
        target = node.target
        if target is torch.ops.aten.sym_size.int:
            values[node] = of(args_of(node)[0]).shape[args_of(node)[1]]
        elif target in (operator.mul, operator.floordiv, operator.add, operator.sub):
            values[node] = target(*of(node.args))
        elif target is operator.getitem:
            values[node] = of(args_of(node)[0])[args_of(node)[1]]
        elif node.op == "call_module" and str(target).startswith("split_"):
            sizes = _split_sizes(emitter, f"body.{target}", of(args_of(node)[0]))
            values[node] = sizes
        elif old is None:
            raise at_node(node).refused("where it comes from is not known.")
        elif node.op == "call_function" and operation(node) in MOVES and operation(node) not in _LOOKING_UP:
            try:
                made = target(*of(node.args), **{name: of(each) for name, each in node.kwargs.items()})
            except RuntimeError as error:
                raise at_node(old).refused(f"after pruning it could not run: {first_line(error)}.") from error
            _compare(old, made, expected(old))
            values[node] = made
        elif node.op == "call_function" and operation(node) in (*COMBINING, "clamp", "clamp_min", "clamp_max"):
            given = [of(each) for each in leaves([node.args, node.kwargs]) if isinstance(each, fx.Node)]
            wanted = expected(old)
            if isinstance(wanted, Tensor) and _broadcast(given) != tuple(wanted.shape):
                raise at_node(old).refused(
                    f"after pruning it would combine {[list(e.shape) for e in given]}, for {list(wanted.shape)}. A "
                    "tensor of the network with a number for each unit must be an nn.Parameter, which is cut with them."
                )
            values[node] = wanted
        else:
            values[node] = expected(old)


def _broadcast(given: list[Any]) -> tuple[int, ...] | None:
    """The shape of what is combined; None where it cannot be."""
    try:
        return tuple(torch.broadcast_shapes(*(each.shape for each in given if isinstance(each, Tensor))))
    except RuntimeError:
        return None


def _of_nobody(value: Tensor) -> Tensor:
    return torch.full(value.shape, NOBODY)


_LOOKING_UP = ("index", "index_select", "gather", "im2col")  # with indices that may be computed; of floats alone


def _pruned(emitter: Any, value: Owners, node: fx.Node) -> Tensor:
    return emitter.world.pruned(value, node)


def _compare(node: fx.Node, made: Any, wanted: Any) -> None:
    for a, b in zip(made, wanted) if isinstance(wanted, list) else [(made, wanted)]:
        if a.shape != b.shape or not bool((a == b).all()):
            raise at_node(node).refused(
                f"after pruning it would hold units {list(a.shape)} at other places than {list(b.shape)}."
            )


def _split_sizes(emitter: Any, path: str, x: Tensor) -> list[Tensor]:
    sources, pieces = emitter.pieces[path]
    dim = emitter.module.get_submodule(path.removeprefix("body.")).unit_dim
    sizes = [int(emitter.world.keep[emitter.segments.index(source.group)].sum()) * source.block for source in sources]
    parts = x.split(sizes, dim)
    return [torch.cat([parts[number] for number in piece], dim) for piece in pieces]
