"""Builds the network's graph from a captured one: layers that know segments, sizes that follow the units that are left."""

from __future__ import annotations

import operator
from collections.abc import Container, Sequence
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..wiring.diagnostics import at_node
from ..layers import (
    EideticBatchNorm,
    EideticConv1d,
    EideticConv2d,
    EideticConv3d,
    EideticConvTranspose,
    EideticConvTranspose1d,
    EideticConvTranspose2d,
    EideticConvTranspose3d,
    EideticEmbedding,
    EideticGroupedConv1d,
    EideticGroupedConv2d,
    EideticGroupedConv3d,
    EideticGroupNorm,
    EideticLayerNorm,
    EideticLinear,
    EideticParameter,
    EideticRMSNorm,
    EideticScaledDotProduct,
    LayerNormParts,
    Parts,
    Shared,
    Split,
    StaircaseLayer,
)
from ..layers.prefix import EideticPrefix
from ..layout import Fixed, Segments, Source
from ..tasks.joining import aware_of_segments
from ..wiring.groups import Group
from .analysis import Analysis, Held, Layer, leaves, operation
from .capture import AUTOCAST, SAMPLES, concrete, shape_of
from .computed import Computed
from .marks import drops
from .groups import Grouped, group_units
from .products import ROWS
from .rules import layer_path
from .owners import NOBODY, Owners, along, small

PRODUCERS = ("linear", "conv", "embedding")  # layers that make units of their own


class World:
    """The same network after some units were pruned at random: whatever is emitted is tried there."""

    def __init__(self, grouped: Grouped, seed: int = 0):
        self.grouped = grouped
        generator = torch.Generator().manual_seed(seed)
        self.keep: list[Tensor] = []
        for width, grain in zip(grouped.widths, grouped.grains):
            count = width // grain
            keep = torch.rand(count, generator=generator) < 0.6
            keep[torch.randint(count, (1,), generator=generator)] = True
            if width > 1:  # where there is one unit, its dimension cannot be told from others of size 1
                keep[torch.randint(count, (1,), generator=generator)] = False  # a task may have none of a group's units
            if count > 1 and not bool(keep.any()):
                keep[0] = True
            self.keep.append(keep.repeat_interleave(grain))
        total = len(grouped.group)
        self.number = grouped.group * 2**32 + grouped.place
        self.alive = torch.ones(total, dtype=torch.bool)
        for number, keep in enumerate(self.keep):
            mine = (grouped.group == number).nonzero().flatten()
            self.alive[mine] = keep[grouped.place[mine]]

    def kept(self, x: Owners, node: fx.Node) -> list[Tensor | None]:
        """For each dimension the indices that are left; None where pruning does not change its size."""
        units = x.units
        alive = torch.where(units >= 0, self.alive[units.clamp_min(0)], True)
        if units.numel() == 1 and x.coarse:  # scores of a head: there, but of nothing
            return [None] * units.dim()
        masks: list[Tensor | None] = []
        product = torch.ones([1] * units.dim(), dtype=torch.bool)
        for dim, size in enumerate(units.shape):
            mask = None
            if size > 1:
                others = [d for d in range(units.dim()) if d != dim]
                any_left = alive.amax(others) if others else alive
                if not bool(any_left.all()):
                    mask = any_left
                    shape = [1] * units.dim()
                    shape[dim] = -1
                    product = product & mask.view(shape)
            masks.append(None if mask is None else mask.nonzero().flatten())
        if not bool((alive == product.expand_as(alive)).all()):
            raise at_node(node).refused(f"units cannot go one by one: they lie across several dimensions.")
        return masks

    def pruned(self, x: Owners, node: fx.Node) -> Tensor:
        """The map of (group, place) that is left, as one number."""
        units = torch.where(x.units >= 0, self.number[x.units.clamp_min(0)], NOBODY).expand(x.running)
        for dim, left in enumerate(self.kept(x, node)):
            if left is not None:
                units = units.index_select(dim, left)
        return units


class Emitter:
    def __init__(self, analysis: Analysis, grouped: Grouped, module: nn.Module, trained: dict[fx.Node, fx.Node]):
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
        self._kept: dict[fx.Node, list[Tensor | None]] = {}
        self._settings: Any = None  # of the region of torch.autocast
        self._entered: fx.Node | None = None

    # -- facts

    def owners(self, node: fx.Node) -> Owners | None:
        value = self.analysis.values.get(node)
        if isinstance(value, Held):
            value = self.analysis._elements.get(value.path)
        return value if isinstance(value, Owners) else None

    def layout(self, node: fx.Node) -> Owners | None:
        """As ``owners``, in the order in which the units lie when the network runs: shuffles are left out."""
        return self.shuffled.get(node) or self.owners(node)

    def elastic(self, node: fx.Node) -> list[Tensor | None]:
        if node not in self._kept:
            x = self.layout(node)
            self._kept[node] = [] if x is None else self.world.kept(x, node)
        return self._kept[node]

    def _follow_shuffle(self, node: fx.Node) -> bool:
        """Leave out a node of a shuffle (a view that takes units apart, and puts them together in another order).

        Returns whether ``node`` is one. Where the units are together again, the layers that read them know the order.
        """
        given = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if given in self.apart and operation(node) in ("select", "unbind"):
            self._pick(node, given)
            return True
        if given is not None and given not in self.apart and operation(node) in _SHUFFLES:
            return self._shuffle(node, given)
        if given is None or operation(node) not in _OF_SHUFFLES or self.owners(node) is None:
            return False
        source = self.apart.get(given)
        try:
            self.world.kept(self.owners(node), node)
            together = True
        except ConversionError:
            together = False
        if source is None and together:
            return False
        source = given if source is None else source
        self.apart[node] = source
        if not together:
            return True
        del self.apart[node]
        before, after = self.layout(source), self.owners(node)
        if before.shape != after.shape or len(before.unit_dims) != 1 or before.unit_dims != after.unit_dims:
            raise at_node(node).refused(f"units are put together in another way than they were taken apart.")
        (dim,) = after.unit_dims
        numbers = torch.arange(prod(before.shape)).view(before.shape)
        order = self._replayed(source, node, numbers)
        if not self._moves_units(numbers, order, dim):
            raise at_node(node).refused(f"a shuffle that moves positions, too.")
        self.shuffled[node] = before
        self._kept.pop(node, None)
        self.nodes[node] = self.nodes[source]
        return True

    def _shuffle(self, node: fx.Node, given: fx.Node) -> bool:
        """Leave out an operation that puts all units of its input into another order."""
        before, after = self.layout(given), self.owners(node)
        if before is None or after is None or len(before.unit_dims) != 1 or before.unit_dims != after.unit_dims:
            return False
        units = [self.numbers(each.units).flatten() for each in (before, after)]
        if before.shape != after.shape or bool((units[0] == units[1]).all()):
            return False
        if not bool((units[0].sort().values == units[1].sort().values).all()):
            return False
        numbers = torch.arange(prod(before.shape)).view(before.shape)
        if not self._moves_units(numbers, self._replayed(given, node, numbers), before.unit_dims[0]):
            raise at_node(node).refused(f"a shuffle that moves positions, too.")
        self.shuffled[node] = before
        self._kept.pop(node, None)
        self.nodes[node] = self.nodes[given] if given in self.nodes else self.argument(given)
        return True

    def _pick(self, node: fx.Node, given: fx.Node) -> None:
        """``select`` or ``unbind`` of units of several groups that a view took apart: query, key and value.

        The groups are cut apart before the view, and each is viewed by itself.
        """
        source = self.apart[given]
        chain = [given]
        while chain[0].args[0] is not source:
            chain.insert(0, chain[0].args[0])
        dim = (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(given))
        dims = [dim]  # where the dimension that is picked of lies in each result of the chain
        for each in reversed(chain[1:]):
            dims.insert(0, _dim_before(each, dims[0]))
        if operation(chain[0]) not in ("view", "reshape", "_unsafe_view", "unflatten") or None in dims:
            raise at_node(node).refused(f"units of several groups were taken apart, and are used so.")
        unit_dims = self.owners(source).unit_dims
        if len(unit_dims) != 1:
            raise at_node(node).refused(f"units of several groups were taken apart, and are used so.")
        picks = [node.args[2] % shape_of(given)[dim]] if operation(node) == "select" else range(shape_of(given)[dim])
        firsts = [_narrowed(self.owners(chain[0]), dims[0], pick) for pick in picks]
        numbers = [torch.unique(each.units) for each in firsts]
        columns = self.layout(source).units.flatten()
        inside = [torch.isin(columns, each) for each in numbers]
        cuts = torch.stack(inside).long()
        sizes = torch.unique_consecutive(cuts, dim=1, return_counts=True)[1].tolist()
        divided = self._divided(node, source, unit_dims[0], sizes)
        places = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
        made = []
        for pick, mask in zip(picks, inside):
            found = [n for n, at in enumerate(places.tolist()) if bool(mask[at])]
            if len(found) != 1:
                raise at_node(node).refused(f"units of one group lie apart from each other.")
            new = self.graph.call_function(operator.getitem, (divided, found[0]))
            new = self._viewed(new, shape_of(source), chain, dims, pick)
            made.append(self.graph.call_function(torch.ops.aten.select.int, (new, dim, 0)))
        for each in made:
            each.meta["source"] = node
        self.nodes[node] = made[0] if operation(node) == "select" else made
        self._kept.pop(node, None)

    def _viewed(self, new: fx.Node, shape: Sequence[int], chain: Sequence[fx.Node], dims: Sequence[int], pick: int) -> fx.Node:
        """``chain`` of what was picked already: its dimension has size 1."""
        first = chain[0]
        x = _narrowed(self.owners(first), dims[0], pick)
        elastic = self.world.kept(x, first)
        sizes: list[Any] = []
        for d, size in enumerate(x.shape):
            sizes.append(size if elastic[d] is None else -1)
        for d in range(len(sizes)):  # sizes that are no units': as they were given
            given = first.args[1][d] if operation(first) != "unflatten" else None
            if isinstance(given, fx.Node):
                sizes[d] = self.argument(given)
        if operation(first) == "unflatten":
            raise at_node(first).refused(f"units of several groups are taken apart by unflatten.")
        if sizes.count(-1) > 1:
            raise at_node(first).refused(f"units come to lie in several dimensions at once.")
        new = self.graph.call_function(torch.ops.aten.reshape.default, (new, sizes))
        new.meta["picked"] = (first, dims[0], pick)
        for each, at in zip(chain[1:], dims[1:]):
            new = self.graph.call_function(each.target, (new, *self.argument(each.args[1:])), {})
            new.meta["picked"] = (each, at, pick)
        return new

    def _moves_units(self, numbers: Tensor, order: Tensor, dim: int) -> bool:
        """Whether ``order`` is ``numbers`` in another order along ``dim`` alone."""
        shape = numbers.shape
        place = order.movedim(dim, 0).flatten(1)[:, 0] // prod(shape[dim + 1 :]) % shape[dim]
        return bool((numbers.index_select(dim, place) == order).all())

    def _replayed(self, source: fx.Node, node: fx.Node, numbers: Tensor) -> Tensor:
        given = node.args[0]
        x = numbers if given is source else self._replayed(source, given, numbers)
        arguments = [x, *(concrete_of(each) for each in node.args[1:])]
        target = torch.ops.aten.reshape.default if operation(node) in ("view", "_unsafe_view") else node.target
        return target(*arguments, **node.kwargs)

    def _note_layout(self, node: fx.Node) -> None:
        """Follow the order in which units lie, where an argument's is not the network's own."""
        if node in self.shuffled or node in self.by_node and self.by_node[node].kind in PRODUCERS:
            return
        if not any(each in self.shuffled for each in node.all_input_nodes):
            return
        view = _Laid(self.analysis, {**self.analysis.values, **self.shuffled})
        from .analysis import RULES, Step

        if operation(node) == "getitem":
            laid = view.values[node.args[0]][node.args[1]]
        elif node in self.by_node:
            laid = self.layout(node.args[0])
        else:
            laid = RULES[operation(node)](Step(view, node))
        self.shuffled[node] = laid
        own = self.analysis.values[node]
        if isinstance(laid, Owners):
            if laid.units.shape == own.units.shape and bool((self.numbers(laid.units) == self.numbers(own.units)).all()):
                del self.shuffled[node]

    def numbers(self, units: Tensor) -> Tensor:
        """Each unit as one number of its group and its place there."""
        return torch.where(units >= 0, self.world.number[units.clamp_min(0)], NOBODY)

    def sources_of(self, columns: Tensor, what: str, heads: bool = False) -> tuple[Source, ...]:
        """Units along a dimension as groups side by side, each unit covering a block of columns."""
        if bool((columns < 0).all()):
            return (Source(Fixed(len(columns))),)
        if bool((columns < 0).any()):
            raise ConversionError(f"{what} reads units and what belongs to no task side by side.")
        group, place = self.grouped.group[columns], self.grouped.place[columns]
        found, at = [], 0
        while at < len(columns):
            number = int(group[at])
            if number < 0:
                raise ConversionError(f"{what} reads what no layer made.")
            width, grain = self.grouped.widths[number], self.grouped.grains[number]
            if heads and grain > 1 and (at + 1 == len(columns) or int(place[at + 1]) != int(place[at]) + 1):
                block = 1  # columns of each grain, which is as a whole behind all of them
                while at + block < len(columns) and int(group[at + block]) == number and int(place[at + block]) == int(place[at]):
                    block += 1
                end = at + width // grain * block
                expected = torch.arange(width // grain).repeat_interleave(block)
                if end > len(columns) or not bool((place[at:end] // grain == expected).all()):
                    raise ConversionError(f"{what} reads heads in another order than they were made.")
                common = gcd(block, grain)
                found.append(Source(self.segments[number], block // common, grain // common))
                at = end
                continue
            block = 1
            while at + block < len(columns) and int(group[at + block]) == number and int(place[at + block]) == int(place[at]):
                block += 1
            end = at + width * block
            expected = torch.arange(width).repeat_interleave(block)
            if end > len(columns) or not bool((group[at:end] == number).all()) or not bool((place[at:end] == expected).all()):
                raise ConversionError(f"{what} reads units in another order than they were made.")
            found.append(Source(self.segments[number], block))
            at = end
        return tuple(found)

    def columns_of(self, given: fx.Node, columns: Tensor, dim: int) -> Tensor:
        """``columns``, as the units lie when the network runs."""
        if given not in self.shuffled:
            return columns
        laid = self.shuffled[given]
        units = laid.units
        dim %= len(laid.shape)
        for d in range(units.dim()):
            if d != dim:
                units = units.narrow(d, 0, 1)
        return units.flatten()

    def order_of(self, given: fx.Node, columns: Tensor, dim: int) -> tuple[int, ...] | None:
        """Where each of ``columns`` lies when the network runs; None where each lies in its place."""
        laid = self.columns_of(given, columns, dim)
        if laid is columns:
            return None
        own, there = self.numbers(columns), self.numbers(laid)
        own, there = own.argsort(stable=True), there.argsort(stable=True)
        place = torch.empty_like(own)
        place[own] = there
        return None if bool((place == torch.arange(len(place))).all()) else tuple(place.tolist())

    # -- emission

    def run(self, features: fx.Node) -> None:
        captured = self.analysis.captured
        needed = _needed(features, self.by_node)
        for node in captured.graph.nodes:
            if node.op == "output" or node not in needed:
                continue
            if node.op != "placeholder":
                self._enter(node.meta.get(AUTOCAST))
            if node.op == "placeholder":
                self._placeholder(node)
            elif node not in self.fixed and self._follow_shuffle(node):
                continue
            else:
                if any(each in self.apart for each in node.all_input_nodes):
                    raise at_node(node).refused(f"units of several groups were taken apart, and are used so.")
                self._note_layout(node)
                self.nodes[node] = self._emit(node)
                if (node, "dropped") in self.trained:
                    self._drop_after(node, self.trained[node, "dropped"])
        self._enter(None)
        self.graph.output(self.nodes[features])

    def _enter(self, settings: Any) -> None:
        """Go on in the region of ``torch.autocast`` with these settings."""
        if settings == self._settings:
            return
        if self._entered is not None:
            self._free(self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (self._entered,)))
        self._settings, self._entered = settings, None
        if settings is not None:
            self._entered = self._free(self.graph.call_function(torch.amp.autocast_mode._enter_autocast, settings))

    def _placeholder(self, node: fx.Node) -> None:
        path = self.analysis.captured.held.get(node.name)
        if path is None:
            self.nodes[node] = self.graph.placeholder(node.name)
        # tensors of the network are read where they are used

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
            if path in constants and not _has(self.module, path):
                name = f"_constant_{len([n for n in dict(self.module.named_buffers()) if n.startswith('_constant')])}"
                self.module.register_buffer(name, constants[path].detach().clone(), persistent=False)
                path = name
            return self.graph.get_attr(path)
        return self._parameter(path, value)

    def _parameter(self, path: str, held: Held) -> fx.Node:
        """A parameter that the graph reads itself: a slice for each unit, or what all tasks share, which is frozen."""
        elements = self.analysis._elements.get(path)
        group = None if elements is None else self.grouped.group[elements.units]
        if group is None or path in self.grouped.shared or bool((group < 0).all()):
            held.value.requires_grad_(False)
            self.frozen.append(path)
            return self.graph.get_attr(path)
        place = self.grouped.place[elements.units]
        for dim in range(place.dim()):
            groups, places = (_one_dim(each, dim) for each in (group, place))
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
                raise ConversionError(f"the tensor {path!r} of shape {list(held.value.shape)} has no slice for each unit.")
            values = held.value if len(runs) == 1 else nn.Parameter(
                held.value.detach().narrow(dim, start, stop - start).clone(), held.value.requires_grad
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

    def _emit(self, node: fx.Node) -> Any:
        name = operation(node)
        if node in self.by_node:
            return self._layer(node, self.by_node[node])
        if name == "getitem":
            return self.graph.call_function(operator.getitem, (self.argument(node.args[0]), node.args[1]))
        value = self.analysis.values[node]
        if not isinstance(value, (Owners, list, tuple)) and not isinstance(value, Tensor):
            if name in ("_assert_tensor_metadata", "_assert_scalar") or value is None:
                return None
        if isinstance(value, Tensor):  # made of fixed tensors alone
            count = sum(n.startswith("_fixed") for n, _ in self.module.named_buffers(recurse=False))
            if value.dim() or True:
                self.module.register_buffer(f"_fixed_{count}", value.detach().clone(), persistent=False)
                return self.graph.get_attr(f"_fixed_{count}")
        if name in ("dropout", "feature_dropout"):
            return self._dropout(node)
        if name == "eidetic_kernels::mark":
            return self._mark(node)
        if name == "scaled_dot_product_attention":
            made = self._attention(node)
            if made is not None:
                return made
        args, kwargs = list(node.args), dict(node.kwargs)
        special = getattr(self, f"_{name.rstrip('_')}", None) if any(k is not None for k in self._all_elastic(node)) else None
        if special is not None:
            return special(node)
        return self._copy(node, self.argument(args), {k: self.argument(v) for k, v in kwargs.items()})

    def _all_elastic(self, node: fx.Node) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for each in (node, *node.all_input_nodes):
            if self.owners(each) is not None:
                found += self.elastic(each)
            elif isinstance(self.analysis.values.get(each), (list, tuple)):
                for piece in self.analysis.values[each]:
                    if isinstance(piece, Owners):
                        found += self.world.kept(piece, each)
        return found

    def _copy(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        target = node.target
        name = operation(node)
        if isinstance(target, torch._ops.OpOverload) and name.endswith("_") and not name.startswith("_"):
            target = _functional(target)
        if name in ("view", "_unsafe_view"):
            target = torch.ops.aten.reshape.default
        made = self.graph.call_function(target, tuple(args), kwargs)
        made.meta["source"] = node
        return made

    def _size(self, node: fx.Node, dim: int) -> fx.Node:
        return self.graph.call_function(torch.ops.aten.sym_size.int, (self.argument(node), dim))

    # -- operations whose sizes count units

    def _view(self, node: fx.Node) -> fx.Node:
        given = node.args[0]
        return self._copy(node, (self.argument(given), self._sizes(node, given, list(node.args[1]))), {})

    _reshape = __unsafe_view = _view

    def _sizes(self, node: fx.Node, given: fx.Node, sizes: list[Any]) -> list[Any]:
        old, new = shape_of(given), shape_of(node)
        assert old is not None and new is not None
        elastic, made = self.elastic(node), list(sizes)
        for ins, outs in _factor(old, new):
            loose = [d for d in outs if (elastic[d] is not None) or made[d] == -1]
            if any(elastic[d] is not None for d in outs):
                strict = [d for d in outs if elastic[d] is not None]
                if len(strict) > 1:
                    raise at_node(node).refused(f"units come to lie in several dimensions at once.")
                loose = strict
                for d in outs:
                    if made[d] == -1 and d not in strict:
                        made[d] = new[d]
            if len(loose) != 1:
                continue
            (d,) = loose
            total: Any = 1
            for i in ins:
                size = self._size(given, i)
                total = size if isinstance(total, int) else self.graph.call_function(operator.mul, (total, size))
            rest: Any = 1
            for o in outs:
                if o != d:
                    size = self.argument(made[o])
                    rest = size if isinstance(rest, int) and rest == 1 else (
                        rest * size if isinstance(rest, int) and isinstance(size, int) else self.graph.call_function(operator.mul, (rest, size))
                    )
            if not (isinstance(rest, int) and rest == 1):
                total = self.graph.call_function(operator.floordiv, (total, rest))
            made[d] = total
        return [self.argument(each) for each in made]

    def _conv2d(self, node: fx.Node) -> fx.Node:
        """A fixed kernel (a blur) for each channel, however many there are."""
        weight = self.analysis.value(node.args[1])
        if not isinstance(weight, Tensor) or not bool((weight == weight[:1]).all()):
            raise at_node(node).refused(f"fixed kernels that differ from channel to channel.")
        name = f"_fixed_{node.name}"
        self.module.register_buffer(name, weight[:1].detach().clone(), persistent=False)
        size = self._size(node.args[0], 1)
        kernel = self.graph.get_attr(name)
        kernels = self.graph.call_function(torch.ops.aten.expand.default, (kernel, [size, -1, -1, -1]))
        kernel.meta["free"] = kernels.meta["free"] = True
        args = [self.argument(each) for each in node.args]
        args += [None, [1, 1], [0, 0], [1, 1], 1][len(args) - 2 :]
        args[1], args[6] = kernels, size
        return self._copy(node, args, {})

    def _expand(self, node: fx.Node) -> fx.Node:
        given = node.args[0]
        old, sizes = shape_of(given), list(node.args[1])
        added = len(sizes) - len(old)
        kept = self.elastic(given)
        for d in range(len(old)):
            if kept and kept[d] is not None:
                sizes[d + added] = -1
        return self._copy(node, (self.argument(given), self.argument(sizes)), {})

    def _slice(self, node: fx.Node) -> fx.Node:
        given, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        start = node.args[2] if len(node.args) > 2 else None
        end = node.args[3] if len(node.args) > 3 else None
        step = node.args[4] if len(node.args) > 4 else 1
        old = shape_of(given)
        dim %= len(old)
        if self.elastic(given)[dim] is None:
            return self._copy(node, [self.argument(a) for a in node.args], {})
        if step != 1 or isinstance(start, fx.Node) or isinstance(end, fx.Node):
            raise at_node(node).refused(f"it picks some units.")
        start, end, _ = slice(start, end).indices(old[dim])
        if (start, end) == (0, old[dim]):
            return self.argument(given)
        sizes = [size for size in (start, end - start, old[dim] - end) if size]
        pieces = self._divided(node, given, dim, sizes)
        return self.graph.call_function(operator.getitem, (pieces, int(start > 0)))

    def _divided(self, node: fx.Node, given: fx.Node, dim: int, sizes: Sequence[int]) -> fx.Node:
        """``given`` cut along the units' dimension ``dim``."""
        x = self.owners(given)
        columns = _one_dim(x.units, dim)
        alike = [self.world.number[part] for part in columns.split(list(sizes))]
        if len({len(p) for p in alike}) == 1 and all(bool((p == alike[0]).all()) for p in alike):
            size = self.graph.call_function(operator.floordiv, (self._size(given, dim), len(sizes)))
            return self.graph.call_function(
                torch.ops.aten.split_with_sizes.default, (self.argument(given), [size] * len(sizes), dim)
            )
        if [d for d in x.unit_dims if d != dim]:
            raise at_node(node).refused(f"it cuts heads that are not alike.")

        laid = _one_dim(self.layout(given).units, dim)
        sources = self.sources_of(laid, node.name)
        runs = laid.split([source.group.width * source.block for source in sources])
        pieces, layouts, end = [], [], 0
        starts = [sum(len(run) for run in runs[:number]) for number in range(len(runs))]
        for part in alike:
            begin, end = end, end + len(part)
            if given in self.shuffled:
                inside = [bool(torch.isin(self.numbers(run), part).all()) for run in runs]
            else:
                inside = [begin <= at and at + len(run) <= end for at, run in zip(starts, runs)]
            mine = tuple(number for number, each in enumerate(inside) if each)
            if sum(len(runs[number]) for number in mine) != len(part):
                raise at_node(node).refused(f"it cuts through a group.")
            pieces.append(mine)
            layouts.append(torch.cat([runs[number] for number in mine]))
        rank = len(x.shape)
        if dim not in (1, rank - 1):
            raise at_node(node).refused(f"it cuts units in dimension {dim}.")
        if given in self.shuffled:
            values = self.analysis.values[node]
            values = values if isinstance(values, (list, tuple)) else None
            self.shuffled[node] = [
                Owners((*x.shape[:dim], len(units), *x.shape[dim + 1 :]), along(dim, rank, units), x.samples, x.coarse)
                for units in layouts
            ]
            if values is None:  # a slice is one of the pieces
                raise at_node(node).refused(f"it picks some of shuffled units.")
        path = f"split_{node.name}"
        self.module.add_module(path, Split(sizes, 1 if dim == 1 else -1))
        self.pieces[f"body.{path}"] = (sources, tuple(pieces))
        return self.graph.call_module(path, (self.argument(given),))

    def _split_with_sizes(self, node: fx.Node) -> fx.Node:
        given, dim = node.args[0], (node.args[2] if len(node.args) > 2 else 0) % len(shape_of(node.args[0]))
        if self.elastic(given)[dim] is None:
            return self._copy(node, self.argument(list(node.args)), {})
        return self._divided(node, given, dim, [p.shape[dim] for p in self.analysis.values[node]])

    _split = _chunk = _tensor_split = _unsafe_split = _split_with_sizes

    def _unbind(self, node: fx.Node) -> fx.Node:
        given, dim = node.args[0], (node.args[1] if len(node.args) > 1 else 0) % len(shape_of(node.args[0]))
        if self.elastic(given)[dim] is not None:
            raise at_node(node).refused(f"it takes units apart one by one.")
        return self._copy(node, self.argument(list(node.args)), {})

    def _select(self, node: fx.Node) -> fx.Node:
        given, dim = node.args[0], node.args[1] % len(shape_of(node.args[0]))
        if self.elastic(given)[dim] is not None:
            raise at_node(node).refused(f"it picks a unit.")
        return self._copy(node, self.argument(list(node.args)), {})

    def _unflatten(self, node: fx.Node) -> fx.Node:
        given = node.args[0]
        if len([each for each in self.elastic(node) if each is not None]) > 1:
            raise at_node(node).refused(f"units come to lie in several dimensions at once.")
        new = shape_of(node)
        dim = node.args[1] % len(shape_of(given))
        inside = list(node.args[2])
        kept = self.elastic(node)
        elastic = [d for d in range(len(inside)) if kept[dim + d] is not None]
        if elastic:
            (d,) = elastic
            rest = prod(new[dim + o] for o in range(len(inside)) if o != d)
            size: Any = self._size(given, dim)
            if rest != 1:
                size = self.graph.call_function(operator.floordiv, (size, rest))
            inside = [new[dim + o] for o in range(len(inside))]
            inside[d] = size
        return self._copy(node, (self.argument(given), dim, inside), {})

    # -- layers

    def _dropout(self, node: fx.Node) -> Any:
        """A call of dropout; what it does in training is read off the graph of training."""
        from ..layers import EideticDropout

        given, other = node.args[0], self.trained[node]
        p, on = other.args[1], other.args[2]
        if not isinstance(p, (int, float)) or (node.args[2] and node.args[1]):
            raise at_node(node).refused(f"dropout with a rate that is computed, or in evaluation too.")
        if not (on and p):
            return self.argument(given)
        path = f"functional_{node.name}"
        return self._dropping(node, path, EideticDropout(p, channels=operation(node) == "feature_dropout"))

    def _drop_after(self, node: fx.Node, dropout: fx.Node) -> None:
        """What training alone drops of what ``node`` made."""
        from ..layers import EideticDropout

        p, on = dropout.args[1], dropout.args[2]
        if not isinstance(p, (int, float)):
            raise at_node(node).refused(f"dropout with a rate that is computed.")
        if on and p:
            made = self.nodes[node]
            self.nodes[node] = self._dropping(node, f"dropped_{node.name}", EideticDropout(p), node)
            self.nodes[node].meta["source"] = node
            assert made is not self.nodes[node]

    def _mark(self, node: fx.Node) -> Any:
        """A module that drops."""
        import copy

        path = node.args[1]
        old = self.dropping.setdefault(path, self.module.get_submodule(path))  # which another call may have replaced
        if not drops(old):
            return self.graph.call_module(path, (self.argument(node.args[0]),))
        while f"body.{path}" in self.dropouts:
            path += "_again"
        return self._dropping(node, path, aware_of_segments(copy.deepcopy(old)))

    def _dropping(self, node: fx.Node, path: str, layer: Any, given: fx.Node | None = None) -> fx.Node:
        given = node.args[0] if given is None else given
        if not layer.p:
            return self.argument(given)
        x, rank = self.owners(given), len(shape_of(given))
        numbers = small(self.numbers(x.units))
        loose = [d for d, left in enumerate(self.elastic(given)) if left is not None]
        loose = loose or [d for d, size in enumerate(numbers.shape) if size > 1]
        if not x.owned or len(loose) != 1:
            raise at_node(node).refused(f"dropout of what is no task's.")
        (dim,) = loose
        columns = x.units
        for d in x.unit_dims:
            if d != dim:
                columns = columns.narrow(d, 0, 1)
        columns = columns.flatten()
        folded = x.samples.shape[dim] > 1  # samples and heads side by side, as torch's attention has them
        if folded:
            columns = columns[: len(columns) // SAMPLES]
        self.dropouts[f"body.{path}"] = self.sources_of(columns, node.name, heads=True)
        layer.unit_dim = 1 if folded or dim == 1 else dim - rank
        _set(self.module, path, layer)
        if not folded:
            return self.graph.call_module(path, (self.argument(given),))
        if dim or not bool((x.samples.flatten() == torch.arange(SAMPLES).repeat_interleave(len(columns))).all()):
            raise at_node(node).refused(f"dropout of samples and units that lie in one dimension.")
        whole = self.argument(given)
        batch = self._size(self.analysis.captured.inputs[0], 0)
        rest = [self._free(self._size(given, d)) for d in range(1, rank)]
        apart = self._free(self.graph.call_function(torch.ops.aten.reshape.default, (whole, [batch, -1, *rest])))
        dropped = self._free(self.graph.call_module(path, (apart,)))
        made = self.graph.call_function(torch.ops.aten.flatten.using_ints, (dropped, 0, 1))
        made.meta["dropped"] = given
        return made

    @staticmethod
    def _free(node: fx.Node) -> fx.Node:
        """``node``, which no proof looks at."""
        node.meta["free"] = True
        return node

    def _attention(self, node: fx.Node) -> Any:
        q = self.owners(node.args[0])
        rank = len(q.shape)
        if len(node.args) > 3 and node.args[3] is not None or q.units.shape[rank - 3] == 1:
            return None
        if q.samples.shape[rank - 3] > 1:  # samples and heads in one dimension
            return None
        v = self.owners(node.args[2])
        columns = v.units.narrow(rank - 2, 0, 1).flatten()
        sources = self.sources_of(columns, node.name)
        if len(sources) != 1 or sources[0].block != 1:
            return None
        path = f"attention_{node.name}"
        other = self.trained[node]
        p = other.args[4] if len(other.args) > 4 else other.kwargs.get("dropout_p", 0.0)
        self.module.add_module(path, EideticScaledDotProduct(p))
        self.dropouts[f"body.{path}"] = sources
        args = [self.argument(each) for each in node.args[:3]]
        causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
        return self.graph.call_module(path, (*args, causal), {"scale": node.kwargs.get("scale")})

    def _prefix(self, node: fx.Node, layer: Layer) -> fx.Node:
        """A mean or the like over all units."""
        sources = self.sources_of(self.columns_of(node.args[0], layer.units, layer.options["dim"]), node.name)
        if len(sources) != 1:
            raise at_node(node).refused(f"a mean over units of several groups.")
        number = self.segments.index(sources[0].group)
        path = f"prefix_{node.name}"
        new = EideticPrefix(self.grouped.widths[number], _Reducing(node.target, node.args[1:], node.kwargs), layer.options["dim"])
        self.module.add_module(path, new)
        self.groups[number].norms[f"body.{path}"] = new
        return self.graph.call_module(path, (self.argument(node.args[0]),))

    def _layer(self, node: fx.Node, layer: Layer) -> fx.Node:
        if layer.kind == "prefix":
            return self._prefix(node, layer)
        make = getattr(self, f"_make_{layer.kind}", None)
        if make is None:
            raise at_node(node).refused(f"{layer.kind} has no layer")
        path, given = layer.path, node.args[1 if layer.kind == "embedding" else 0]
        if path in self.replaced:
            if layer.units is not None and layer.kind not in PRODUCERS:
                if self._followed(node, layer) != self.replaced[path]:
                    raise at_node(node).refused(f"{path!r} is called with other units than before.")
            return self.graph.call_module(path, (self.argument(given),))
        computed = layer.options.get("computed")
        if computed is None and not self._owns(path, node):
            path = self._plain_layer(node, layer)
        old = self.module.get_submodule(path)
        new = make(node, layer, old)
        for name, parameter in old.named_parameters(recurse=False):
            if name == "weight" and isinstance(new, (EideticConvTranspose, EideticEmbedding)):
                parameter = nn.Parameter(parameter.detach().transpose(0, 1).contiguous(), parameter.requires_grad)
            setattr(new, name, parameter)
        for name, buffer in old.named_buffers(recurse=False):
            new.register_buffer(name, buffer)
        if computed is not None:
            self._compute(path, new, computed)
        new.train(old.training)
        rank = len(shape_of(node))
        image = layer.kind in ("conv", "batch_norm", "grouped", "group_norm")
        self.replaced[path] = self._followed(node, layer) if layer.kind not in PRODUCERS else None
        if layer.kind in PRODUCERS:
            runs = self.grouped.runs[layer.options["weight"]]
            parts = {path: new}
            if len(runs) > 1:
                shared = self.split[f"body.{path}"] = Shared(new, [run.width for run in runs])
                parts = {f"{path}.{i}": part for i, part in enumerate(shared)}
            if layer.kind != "embedding":
                self._unbiased(node, runs, list(parts.values()))
            columns = layer.options["columns"]
            laid = self.columns_of(given, columns, -1 if layer.kind == "linear" else 1)
            sources = self.sources_of(laid, path, heads=layer.reads.coarse)
            order = self.order_of(given, columns, -1 if layer.kind == "linear" else 1)
            for run, (name, part) in zip(runs, parts.items()):
                self.groups[run.group].producers[f"body.{name}"] = part
                self.sources[f"body.{name}"] = sources
                if order is not None:
                    self.orders[f"body.{name}"] = order
            if layer.kind == "linear" and (rank > 2 or len(layer.reads.samples.flatten()) != SAMPLES):
                self.last |= {f"body.{name}" for name in (path, *parts)}
        else:
            dim = -1 if layer.kind == "layer_norm" else 1
            sources = self.sources_of(self.columns_of(node.args[0], layer.units, dim), path)
            order = self.order_of(node.args[0], layer.units, dim)
            if len(sources) == 1 and order is None:
                number = self.segments.index(sources[0].group)
                self.groups[number].norms[f"body.{path}"] = new
            else:
                widths = [source.group.width * source.block for source in sources]
                if layer.kind == "grouped" and old.in_channels != old.out_channels:
                    if order is not None:
                        raise ConversionError(f"{path!r} reads shuffled units, and makes others of them.")
                    widths = [width * old.out_channels // old.in_channels for width in widths]
                units = (torch.arange(sum(widths)) if order is None else torch.tensor(order).argsort()).split(widths)
                kind = LayerNormParts if isinstance(new, EideticLayerNorm) else Parts
                parts = self.split[f"body.{path}"] = kind(new, units)
                for i, (source, part) in enumerate(zip(sources, parts)):
                    self.groups[self.segments.index(source.group)].norms[f"body.{path}.{i}"] = part
            if not image and rank > 2 or (not image and rank == 2):
                self.last.add(f"body.{path}")
        if new is not None:
            self.module.set_submodule(path, new)
        return self.graph.call_module(path, (self.argument(given),))

    def _compute(self, path: str, new: Any, computed: Computed) -> None:
        """Let ``new`` compute its weight as the module at ``path`` did."""
        new.weight = self.analysis.held(computed.weight).value
        extras = {}
        for each in computed.extras:
            owner, _, name = each.rpartition(".")
            if owner != path and layer_path(each) != path:
                raise ConversionError(f"{path!r}: its weight is computed of {each!r}, which is another module's.")
            if name in new._parameters:
                del new._parameters[name]
            extras[name] = self.analysis.held(each).value
        new.compute_weight(computed.rule, extras)

    def _followed(self, node: fx.Node, layer: Layer) -> tuple[Source, ...]:
        dim = -1 if layer.kind == "layer_norm" else 1
        return self.sources_of(self.columns_of(node.args[0], layer.units, dim), layer.path)

    def _plain_layer(self, node: fx.Node, layer: Layer) -> str:
        """Put a plain layer of the node's tensors into the module, where it has none; returns its path."""
        if layer.kind not in ("linear", "batch_norm", "layer_norm"):
            raise at_node(node).refused(f"a {layer.kind} with tensors of {layer.path!r} that is no plain layer")
        held = [self._value(each) for each in (list(node.args) + [None] * 5)[1:5]]
        if layer.kind == "linear":
            weight, bias = held[:2]
            path = layer.options["weight"].removesuffix(ROWS).removesuffix("_weight").removesuffix(".weight")
            if _has(self.module, path) and not self._only_holds(path, node):
                path += "_layer"
            new = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            new.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
            if bias is not None:
                new.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        elif layer.kind == "batch_norm":
            weight, bias, mean, var = held
            path = f"{layer.path}_norm" if _has(self.module, layer.path) else layer.path
            kind = nn.BatchNorm2d if len(shape_of(node)) == 4 else nn.BatchNorm1d
            new = kind(len(mean), node.args[7], node.args[6], weight is not None, device="meta")
            if weight is not None:
                new.weight, new.bias = weight, bias
            new.running_mean, new.running_var, new.num_batches_tracked = mean, var, torch.tensor(0)
        else:
            rms = operation(node) == "rms_norm"
            weight = self._value(node.args[2]) if len(node.args) > 2 else None
            bias = self._value(node.args[3]) if len(node.args) > 3 and not rms else None
            path = layer.path if weight is None or not _has(self.module, layer.path) else f"{layer.path}_norm"
            eps = node.args[4] if len(node.args) > 4 and not rms else 1e-5
            new = nn.LayerNorm(node.args[1], eps, weight is not None, bias is not None, device="meta")
            if weight is not None:
                new.weight = weight
            if bias is not None:
                new.bias = bias
        new.train(self.module.training)
        for each in (e for e in node.all_input_nodes if e.op == "placeholder"):
            held_path = self.analysis.captured.held.get(each.name)
            if held_path:
                owner, _, name = held_path.rpartition(".")
                parent = self.module.get_submodule(owner)
                if name in parent._parameters:
                    delattr(parent, name)
        _set(self.module, path, new)
        return path

    def _only_holds(self, path: str, node: fx.Node) -> bool:
        """Whether the module at ``path`` has no parameters but those that ``node`` takes."""
        if not isinstance(getattr_path(self.module, path), nn.Module):
            return False
        held = {self.analysis.captured.held.get(each.name) for each in node.all_input_nodes}
        held |= {each.removesuffix(ROWS) for each in held if each}
        return all(f"{path}.{name}" in held for name, _ in self.module.get_submodule(path).named_parameters())

    def _value(self, argument: Any) -> Any:
        """The tensor that an argument is, made of the network's own."""
        if not isinstance(argument, fx.Node):
            return argument
        known = self.analysis.values[argument]
        if isinstance(known, Held):
            return known.value
        if isinstance(known, Tensor):
            return known
        with torch.no_grad():
            args = fx.node.map_arg(argument.args, self._value)
            return argument.target(*args, **fx.node.map_arg(argument.kwargs, self._value))

    def _unbiased(self, node: fx.Node, runs: Sequence[Any], parts: Sequence[EideticLinear]) -> None:
        """Take the bias of parts where it is fixed: zeros between a query's and a value's."""
        bias = self.analysis.value(node.args[2]) if len(node.args) > 2 else None
        if not isinstance(bias, Owners):
            return
        units = bias.units.flatten()
        for run, part in zip(runs, parts):
            own = units[run.start : run.start + run.width]
            if bool((own < 0).all()):
                if bool(part.bias.detach().any()):
                    raise at_node(node).refused(f"a part of its bias is fixed, and not zero.")
                part.bias = part.frozen_bias = None
            elif bool((own < 0).any()):
                raise at_node(node).refused(f"a part of its bias is fixed for some units of a group.")

    def _owns(self, path: str, node: fx.Node) -> bool:
        try:
            module = self.module.get_submodule(path)
        except AttributeError:
            return False
        kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
        if isinstance(module, nn.Linear):
            bias = self.analysis.values.get(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None
            return bias is module.bias is None or (isinstance(bias, Held) and bias.value is module.bias)
        return isinstance(module, kinds)

    def _make_linear(self, node: fx.Node, layer: Layer, old: nn.Linear) -> EideticLinear:
        return EideticLinear(old.in_features, old.out_features, old.bias is not None, **_factory(old))

    def _make_conv(self, node: fx.Node, layer: Layer, old: Any) -> StaircaseLayer:
        name, rank = operation(node), len(shape_of(node))
        if name.startswith("conv_transpose"):
            kind = (EideticConvTranspose1d, EideticConvTranspose2d, EideticConvTranspose3d)[rank - 3]
        else:
            kind = (EideticConv1d, EideticConv2d, EideticConv3d)[rank - 3]
        return kind(shape_of(node.args[0])[1], shape_of(node)[1], **_options(node, old))

    def _make_embedding(self, node: fx.Node, layer: Layer, old: nn.Embedding) -> EideticEmbedding:
        return EideticEmbedding(*old.weight.shape, old.padding_idx, **_factory(old))

    def _make_grouped(self, node: fx.Node, layer: Layer, old: nn.Conv2d) -> Any:
        from ..layers import EideticDepthwiseConv2d

        rank, channels = len(shape_of(node)), shape_of(node.args[0])[1]
        if rank == 4 and old.groups == old.in_channels == old.out_channels:
            return EideticDepthwiseConv2d(old.in_channels, **_options(node, old))
        kind = (EideticGroupedConv1d, EideticGroupedConv2d, EideticGroupedConv3d)[rank - 3]
        groups = channels // old.weight.shape[1]
        return kind(channels, groups, **_options(node, old), out_channels=shape_of(node)[1])

    def _make_batch_norm(self, node: fx.Node, layer: Layer, old: Any) -> EideticBatchNorm:
        from ..layers import EideticBatchNorm1d, EideticBatchNorm2d

        kind = EideticBatchNorm2d if len(shape_of(node)) == 4 else EideticBatchNorm1d
        return kind(old.num_features, old.eps, old.momentum, old.affine, **_factory(old))

    def _make_group_norm(self, node: fx.Node, layer: Layer, old: nn.GroupNorm) -> EideticGroupNorm:
        return EideticGroupNorm(old.num_groups, old.num_channels, old.eps, old.affine, **_factory(old))

    def _make_layer_norm(self, node: fx.Node, layer: Layer, old: Any) -> EideticLayerNorm:
        if operation(node) == "rms_norm":
            shape, eps = tuple(node.args[1]), node.args[3] if len(node.args) > 3 else node.kwargs.get("eps")
            return EideticRMSNorm(shape, eps, old.weight is not None, **_factory(old))
        return EideticLayerNorm(old.normalized_shape, old.eps, old.elementwise_affine, old.bias is not None, **_factory(old))


class _Reducing:
    """An operation with all its arguments but the first."""

    def __init__(self, target: Any, args: Sequence[Any], kwargs: Any):
        self.target, self.args, self.kwargs = target, tuple(args), dict(kwargs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.target(x, *self.args, **self.kwargs)


def _narrowed(x: Owners, dim: int, pick: int) -> Owners:
    """``x`` at one place of a dimension, which stays with size 1."""
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    units, samples = (each.narrow(dim, pick if each.shape[dim] > 1 else 0, 1) for each in (x.units, x.samples))
    return Owners(shape, units, samples, x.coarse)


def _dim_before(node: fx.Node, dim: int) -> int | None:
    """Where dimension ``dim`` of a permutation's result lay before it; None for other operations."""
    rank, name = len(shape_of(node)), operation(node)
    if name == "permute":
        return node.args[1][dim] % rank
    if name in ("transpose", "swapaxes"):
        a, b = node.args[1] % rank, node.args[2] % rank
        return b if dim == a else a if dim == b else dim
    return dim if name in ("contiguous", "clone") else None


_SHUFFLES = ("channel_shuffle", "index_select", "index", "flip", "roll")


_OF_SHUFFLES = ("view", "reshape", "_unsafe_view", "transpose", "permute", "contiguous", "flatten", "unflatten", "clone")


class _Laid:
    """An analysis whose values are as units lie when the network runs. What ties them is known already."""

    def __init__(self, analysis: Analysis, values: dict[fx.Node, Any]):
        self.values, self.captured, self.module, self.fixed = values, analysis.captured, analysis.module, analysis.fixed
        self.constraints = _Ignored(analysis.constraints)
        self.layers: list[Any] = []
        self.notes: list[str] = []
        self.mixed: list[Any] = []
        self.across: list[Any] = []
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


def concrete_of(value: Any) -> Any:
    """An argument in the example: sizes as they were."""
    if isinstance(value, fx.Node):
        return concrete(value.meta["val"])
    if isinstance(value, (list, tuple)):
        return [concrete_of(each) for each in value]
    return value


def _one_dim(units: Tensor, dim: int) -> Tensor:
    for d in range(units.dim()):
        if d != dim:
            units = units.narrow(d, 0, 1)
    return units.flatten()


def _factory(old: nn.Module) -> dict[str, Any]:
    tensor = next(iter(old.state_dict().values()), torch.empty(0))
    return {"device": tensor.device, "dtype": tensor.dtype if tensor.is_floating_point() else None}


def _options(node: fx.Node, old: nn.Module) -> dict[str, Any]:
    """How a convolution is called: a module's own settings may be others (padding that it does before)."""
    if operation(node).startswith("conv_transpose"):
        names = ("stride", "padding", "output_padding", "groups", "dilation")
    else:
        names = ("stride", "padding", "dilation", "groups")
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    given = dict(zip(names, node.args[3:])) | dict(node.kwargs)
    made = {name: given.get(name, default) for name, default in defaults.items() if name in names}
    made = {name: tuple(each) if isinstance(each, list) else each for name, each in made.items()}
    bias = len(node.args) > 2 and node.args[2] is not None
    return made | {"kernel_size": tuple(old.weight.shape[2:]), "bias": bias} | _factory(old)


def _functional(target: Any) -> Any:
    packet = getattr(torch.ops.aten, target._schema.name.removeprefix("aten::")[:-1])
    return getattr(packet, target._overloadname)


def _needed(node: fx.Node, layers: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that ``node`` is made of; of layers only what they read, their tensors are their own."""
    found, waiting = set(), [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            read = each.args[1:2] if operation(each) == "embedding" else each.args[:1]
            waiting += read if each in layers else each.all_input_nodes
    return found


def _set(module: nn.Module, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    module.get_submodule(owner).add_module(name, layer)


def getattr_path(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _has(module: nn.Module, path: str) -> bool:
    try:
        for name in path.split("."):
            module = getattr(module, name)
        return True
    except AttributeError:
        return False


def _factor(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Dimensions before and after a view, in the smallest runs that hold the same numbers."""
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        ins, outs, a, b = [], [], 1, 1
        while True:
            if a == b and ins and outs:
                break
            if (a <= b and i < len(old)) or j >= len(new):
                if i >= len(old):
                    break
                a *= old[i]
                ins.append(i)
                i += 1
            else:
                b *= new[j]
                outs.append(j)
                j += 1
        runs.append((ins, outs))
    return runs
