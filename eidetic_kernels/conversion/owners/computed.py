"""Weights that are computed of parameters, row by row: standardised ones, or a direction and a length."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ...errors import ConversionError
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, needed, operation, runs_of_a_view, shape_of, target_of
from .maps import NOBODY, Owners, along, nobodys
from .step import RULES, Held, Step


@dataclass(frozen=True)
class Computed:
    """A weight ``rule(weight, *extras)``, each row of which is made of the same row of each.

    ``weight`` and ``extras`` are paths of parameters.
    """

    weight: str
    extras: tuple[str, ...]
    rule: fx.GraphModule


def computed_weight(analysis: Any, node: fx.Node) -> Computed | None:
    """How the weight ``node`` is computed; None where it is not, row by row, from parameters alone."""
    rows = shape_of(node)[0]
    wanted = needed(node)
    order = [each for each in node.graph.nodes if each in wanted]
    if any(each.op == "placeholder" and not isinstance(analysis.values[each], (Held, Tensor)) for each in order):
        return None
    held = [each for each in order if each.op == "placeholder" and isinstance(analysis.values[each], Held)]
    main = [each for each in held if shape_of(each) == shape_of(node) and each is not node]
    if len(main) != 1 or any(rows not in shape_of(each)[:1] for each in held):
        return None
    (weight,) = main
    maps = _Maps(analysis, weight)
    try:
        for each in order:
            maps.values[each] = maps.value_of(each)
        made = maps.values[node]
        if made.samples.flatten().tolist() != list(range(rows)) or made.samples.shape[0] != rows:
            return None
    except ConversionError:
        return None
    extras = [each for each in held if each is not weight]
    path = analysis.captured.held
    return Computed(
        path[weight.name],
        tuple(path[each.name] for each in extras),
        _emitted(analysis, maps, order, weight, extras, node),
    )


class _Maps:
    """The analysis of a weight's computation, in which rows are the samples and columns the units."""

    def __init__(self, analysis: Any, weight: fx.Node):
        self.analysis, self.captured, self.module, self.fixed = analysis, analysis.captured, analysis.module, {}
        self.weight = weight
        self.values: dict[fx.Node, Any] = {}
        self.constraints = _NoConstraints()
        self.layers: list[Any] = []
        self.mixed: list[Any] = []
        self.asleep: tuple[str, ...] = ()

    def value(self, argument: Any, deferred: bool = False) -> Any:
        return type(self.analysis).value(self, argument, deferred)

    def elements(self, held: Any) -> Owners:
        return nobodys(held.value.shape)

    def value_of(self, node: fx.Node) -> Any:
        known = self.analysis.values.get(node)
        if node in self.analysis.fixed and isinstance(known, Tensor):
            return known
        if node.op == "placeholder":
            shape = shape_of(node)
            units = torch.full([1] * len(shape), NOBODY)
            if node is self.weight:
                units = along(1, len(shape), torch.arange(shape[1]))
            return Owners(shape, units, along(0, len(shape), torch.arange(shape[0])))
        if operation(node) == "getitem":
            return self.value(args_of(node)[0])[args_of(node)[1]]
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            raise ConversionError("a weight that depends on a number.")
        step = Step(self, node)
        rule = RULES.get(operation(node))
        if rule is None:
            step.refuse("has no rule")
        return rule(step)


class _NoConstraints:
    made: dict[str, Any] = {}

    def makers(self, units: Tensor) -> Tensor:
        return torch.full_like(units, -1)

    def same(self, a: Tensor, b: Tensor) -> None:
        pass

    together = same


def _emitted(
    analysis: Any, maps: _Maps, order: list[fx.Node], weight: fx.Node, extras: list[fx.Node], result: fx.Node
) -> fx.GraphModule:
    """The computation for any number of rows and columns."""
    root, graph = torch.nn.Module(), fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {each: graph.placeholder(each.name) for each in (weight, *extras)}
    for each in order:
        if each in nodes:
            continue
        known = analysis.values.get(each)
        if isinstance(known, Tensor):
            root.register_buffer(f"fixed_{each.name}", known.detach().clone(), persistent=False)
            nodes[each] = graph.get_attr(f"fixed_{each.name}")
            continue
        args, target = list(args_of(each)), target_of(each)
        if operation(each) in ("view", "reshape", "_unsafe_view"):
            target, args[1] = torch.ops.aten.reshape.default, _sizes(graph, maps, nodes, each)
        elif operation(each) == "expand":
            loose = _loose(maps, args_of(each)[0])
            added = len(args[1]) - len(shape_of(args_of(each)[0]))
            args[1] = [-1 if d >= added and d - added in loose else size for d, size in enumerate(args[1])]
        nodes[each] = graph.call_function(
            target,
            map_arg(tuple(args), lambda n: nodes.get(n, n)),
            map_arg(each.kwargs, lambda n: nodes[n]),
        )
    graph.output(nodes[result])
    return fx.GraphModule(root, graph, "ComputedWeight")


def _loose(maps: _Maps, node: fx.Node) -> list[int]:
    """The dimensions that rows or columns lie in."""
    value = maps.values[node]
    if not isinstance(value, Owners):
        return []
    return [d for d in range(len(value.shape)) if value.units.shape[d] > 1 or value.samples.shape[d] > 1]


def _sizes(graph: fx.Graph, maps: _Maps, nodes: dict[fx.Node, fx.Node], node: fx.Node) -> list[Any]:
    given = args_of(node)[0]
    old, new, loose = shape_of(given), shape_of(node), _loose(maps, node)
    sizes: list[Any] = list(new)
    for ins, outs in runs_of_a_view(old, new):
        mine = [d for d in outs if d in loose]
        if len(mine) > 1:
            raise at_node(node).refused("rows and columns of a weight are taken apart.")
        if mine:
            total: Any = None
            for i in ins:
                size = graph.call_function(torch.ops.aten.sym_size.int, (nodes[given], i))
                total = size if total is None else graph.call_function(operator.mul, (total, size))
            rest = prod(new[d] for d in outs if d != mine[0])
            sizes[mine[0]] = total if rest == 1 else graph.call_function(operator.floordiv, (total, rest))
    return sizes
