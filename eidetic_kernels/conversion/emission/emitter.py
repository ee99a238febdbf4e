"""What is known while a network's graph is emitted, and the nodes that all of it needs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ...errors import ConversionError
from ...layers import EideticParameter
from ...layout import Segments, Source
from ...wiring.groups import Group
from ..graphs.nodes import operation, target_of
from ..owners.analysis import Analysis
from ..owners.groups import Grouped
from ..owners.maps import Owners
from ..owners.step import Held
from .places import has, one_dim
from .world import World


class Emitter:
    def __init__(self, analysis: Analysis, grouped: Grouped, module: nn.Module, trained: dict[Any, fx.Node]):
        self.analysis, self.grouped, self.module, self.trained = analysis, grouped, module, trained
        self.world = World(grouped)
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.segments = [Segments(w, grain=g) for w, g in zip(grouped.widths, grouped.grains)]
        self.groups = [Group(s, w) for s, w in zip(self.segments, grouped.widths)]
        self.sources: dict[str, tuple[Source, ...]] = {}
        self.dropouts: dict[str, tuple[Source, ...]] = {}
        self.split: dict[str, Any] = {}
        self.pieces: dict[str, Any] = {}
        self.last: set[str] = set()
        self.frozen: list[str] = []
        self.replaced: dict[str, Any] = {}
        self.dropping: dict[str, nn.Module] = {}
        self.shuffled: dict[fx.Node, Any] = {}
        self.apart: dict[fx.Node, fx.Node] = {}
        self.orders: dict[str, tuple[int, ...]] = {}
        self.fixed = analysis.fixed
        self.by_node = {layer.node: layer for layer in analysis.layers}
        self.kept: dict[fx.Node, list[Tensor | None]] = {}
        self.autocast: Any = None  # of the region of torch.autocast
        self.entered: fx.Node | None = None

    def owners(self, node: fx.Node) -> Any:
        """The :class:`Owners` of a node's numbers; None for what is no tensor."""
        value = self.analysis.values.get(node)
        if isinstance(value, Held):
            value = self.analysis._elements.get(value.path)
        return value if isinstance(value, Owners) else None

    def layout(self, node: fx.Node) -> Any:
        """As ``owners``, in the order in which the units lie when the network runs: shuffles are left out."""
        return self.shuffled.get(node) or self.owners(node)

    def elastic(self, node: fx.Node) -> list[Tensor | None]:
        if node not in self.kept:
            x = self.layout(node)
            self.kept[node] = [] if x is None else self.world.kept(x, node)
        return self.kept[node]

    def number_of(self, source: Source) -> int:
        """The number of the group that a layer reads."""
        return self.segments.index(cast(Segments, source.group))

    def numbers(self, units: Tensor) -> Tensor:
        """Each unit as one number of its group and its place there."""
        return self.world.numbers(units)

    def argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value.graph is self.graph:
                return value
            if value.op == "placeholder" and value not in self.nodes:
                self.nodes[value] = self._tensor(value)
            return self.nodes[value]
        if isinstance(value, (list, tuple)):
            return type(value)(self.argument(each) for each in value)
        if isinstance(value, slice):
            return slice(*(self.argument(each) for each in (value.start, value.stop, value.step)))
        return value

    def _tensor(self, node: fx.Node) -> fx.Node:
        """A parameter or buffer that the graph reads itself."""
        path = self.analysis.captured.held[node.name]
        value = self.analysis.values[node]
        if not isinstance(value, Held):
            constants = self.analysis.captured.constants
            if path in constants and not has(self.module, path):
                name = f"_constant_{len([n for n in dict(self.module.named_buffers()) if n.startswith('_constant')])}"
                self.module.register_buffer(name, constants[path].detach().clone())
                path = name
            return self.graph.get_attr(path)
        return self._parameter(path, value)

    def _parameter(self, path: str, held: Held) -> fx.Node:
        """A parameter that the graph reads itself: a slice for each unit, or what all tasks share, which is frozen."""
        elements = self.analysis._elements.get(path)
        group = torch.empty(0) if elements is None else self.grouped.group[elements.units]
        if elements is None or path in self.grouped.shared or bool((group < 0).all()):
            held.value.requires_grad_(False)
            self.frozen.append(path)
            return self.graph.get_attr(path)
        place = self.grouped.place[elements.units]
        for dim in range(place.dim()):
            groups, places = (one_dim(each, dim) for each in (group, place))
            shape = [1] * place.dim()
            shape[dim] = -1
            if len(places) > 1 and bool((places.view(shape) == place).all() & (groups.view(shape) == group).all()):
                return self._slices(path, held, dim, groups, places)
        raise ConversionError(f"the tensor {path!r} of shape {list(held.value.shape)} has no slice for each unit.")

    def _slices(self, path: str, held: Held, dim: int, groups: Tensor, places: Tensor) -> fx.Node:
        breaks = (groups[1:] != groups[:-1]) | (places[1:] < places[:-1])
        starts = [0, *(breaks.nonzero().flatten() + 1).tolist(), len(groups)]
        runs = list(zip(starts, starts[1:]))
        layers = []
        for start, stop in runs:
            number = int(groups[start])
            if number < 0:
                raise ConversionError(f"a part of the tensor {path!r} belongs to no group of units.")
            width, along = self.grouped.widths[number], places[start:stop]
            shared, per = max(width // len(along), 1), max(len(along) // width, 1)
            units = torch.arange(0, width, shared).repeat_interleave(per)
            if len(units) != len(along) or not bool((along // shared == units // shared).all()):
                raise ConversionError(
                    f"the tensor {path!r} of shape {list(held.value.shape)} has no slice for each unit."
                )
            values = (
                held.value
                if len(runs) == 1
                else nn.Parameter(
                    held.value.detach().narrow(dim, start, stop - start).clone(), held.value.requires_grad
                )
            )
            layers.append((number, EideticParameter(values, dim, shared)))
        owner, _, name = path.rpartition(".")
        parent = self.module.get_submodule(owner)
        delattr(parent, name)
        whole = layers[0][1] if len(layers) == 1 else nn.ModuleList(layer for _, layer in layers)
        parent.add_module(name, whole)
        calls = []
        for number, (group, layer) in enumerate(layers):
            own = path if len(layers) == 1 else f"{path}.{number}"
            self.groups[group].norms[f"body.{own}"] = layer
            calls.append(self.graph.call_module(own))
        if len(calls) == 1:
            return calls[0]
        for call, (start, stop) in zip(calls, runs):
            call.meta["slice"] = (path, dim, start, stop)
        made = self.graph.call_function(torch.ops.aten.cat.default, (calls, dim))
        made.meta["whole"] = path
        return made

    def copy(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        target = target_of(node)
        name = operation(node)
        if isinstance(target, torch._ops.OpOverload) and name.endswith("_") and not name.startswith("_"):
            target = _functional(target)
        if name in ("view", "_unsafe_view"):
            target = torch.ops.aten.reshape.default
        made = self.graph.call_function(target, tuple(args), kwargs)
        made.meta["source"] = node
        return made

    def size(self, node: fx.Node, dim: int) -> fx.Node:
        return self.graph.call_function(torch.ops.aten.sym_size.int, (self.argument(node), dim))

    @staticmethod
    def free(node: fx.Node) -> fx.Node:
        """``node``, which no proof looks at."""
        node.meta["free"] = True
        return node


def _functional(target: Any) -> Any:
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::")[:-1])
    return getattr(packet, target._overloadname)
