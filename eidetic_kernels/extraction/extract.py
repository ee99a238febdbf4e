"""``net.extract``: one finished task's prefix as a plain torch module, which needs this package no more.

A layer of one segment becomes the torch.nn layer it is. One of several becomes a torch.fx.GraphModule that holds a
torch.nn layer a segment and one concatenation, so no product with zeros is computed. A frozen BatchNorm becomes the
multiply-add it is, beside the layer that owns it and the residual that it is given, if any, and dropout, which leaves
frozen units alone, goes. A prefix LayerNorm is a torch.nn.LayerNorm a segment, over what that may see; attention
(extracted_attention.py) has the heads of all segments at once, and tensors of the network's own are parameters again.
Segments that the task's head reads neither directly nor through others (earlier tasks' units, where a task is disjoint)
are left out.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from ..backends.activations import FUNCTIONS
from ..errors import ConversionError, TaskError
from ..layers import (
    EideticBatchNorm,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPositionNetwork,
    EideticPReLU,
    EideticRelativeAttention,
    EideticScaledDotProduct,
    EideticWindowAttention,
    EideticWindowAttentionV2,
    HeadedAttention,
    LayerNormParts,
    Parts,
    SegmentedLayer,
    Shared,
    Shuffle,
    Split,
    StaircaseLayer,
)
from ..layers.attention import PROJECTIONS
from ..layout import Segments, Source, Span, reads, staircase
from ..modes import evaluating
from ..ops.staircase import positions
from ..wiring import rules
from . import attention

if TYPE_CHECKING:
    from ..network import EideticNetwork


def extract(network: EideticNetwork, task: int) -> nn.Module:
    """See :meth:`.EideticNetwork.extract`."""
    finished = network.finished_tasks
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < finished:
        known = f"finished tasks are 0..{finished - 1}" if finished else "no task is finished"
        raise TaskError(f"task {task!r} cannot be extracted: {known}. A task is finished by finish_task (train_task).")
    prefix = Prefix(network, task)
    head = prefix.plain([network.heads[task]])
    name = f"Task{task}Of{type(network).__name__}"
    try:
        with evaluating(network):
            graph, root = network.traced()
    except ConversionError:  # wired by hand, since forward cannot be traced
        plain = _around(_with_own_forward(network, prefix), head, name)
    else:
        plain = _plain_graph(graph, root, prefix, head, name)
    for path, module in plain.named_modules():
        if type(module).__module__.split(".")[0] == rules.OURS:
            raise ConversionError(f"{path!r}: {_NO_TWIN.format(type(module).__name__)}")
    return plain


_NO_TWIN = "{} has no plain twin yet, so this task cannot be extracted."


class Prefix:
    """What task ``task`` of ``network`` needs: of each unit group the segments it reads, directly or through others.

    ``kept`` holds a group's segments with those that are not needed emptied, by the group's own segments.
    """

    def __init__(self, network: EideticNetwork, task: int):
        self.task = task
        self._producers = {group.segments: list(group.producers.values()) for group in network.groups}
        # LayerNorms by their parts, one a group: statistics run over what all of them may see.
        joint = [list(module) for module in network.modules() if isinstance(module, LayerNormParts)]
        norms = {module for module in network.modules() if isinstance(module, EideticLayerNorm)}
        self._norms = joint + [[norm] for norm in norms.difference(*joint)]
        needed: dict[Segments, set[int]] = {segments: set() for segments in self._producers}
        self._need(needed, self._read_by(network.heads[task], task))
        for segments, tasks in needed.items():
            present = _nonempty(segments, range(task + 1))
            if present and not tasks:  # units nobody reads, but poolings on their way refuse images without channels
                self._need(needed, [(segments, present[0])])
        self.kept = {
            segments: Segments(
                segments.width, 0, tuple(size if t in tasks else 0 for t, size in enumerate(segments.frozen))
            )
            for segments, tasks in needed.items()
        }

    def plain(self, layers: Sequence[SegmentedLayer], **residual: float | None) -> nn.Module:
        """The plain twin of a layer; or of the parts, one a group, that stand for a layer over several groups.

        ``residual``: its forward takes one too; the value is its default, None where it is always given.
        """
        for kind, make in PLAIN.items():
            if isinstance(layers[0], kind):
                return make(self, layers, **residual).eval()
        raise ConversionError(_NO_TWIN.format(type(layers[0]).__name__))

    def rows(self, segments: Segments) -> list[tuple[int, slice]]:
        """The segments that are kept of a group, and which of its units they are; none is empty."""
        sizes = self.kept.get(segments, segments).frozen[: self.task + 1]
        return [(t, slice(segments.start(t), segments.stop(t))) for t, size in enumerate(sizes) if size]

    def sources(self, layer: StaircaseLayer) -> tuple[Source, ...]:
        """What the layer reads, of what is kept."""
        return tuple(Source(self.kept.get(source.group, source.group), source.block) for source in layer.sources)

    def _read_by(self, layer: StaircaseLayer, reader: int) -> list[tuple[Segments, int]]:
        tasks = range(reader + 1) if layer.forward_transfer[reader] else (reader,)
        groups = [source.group for source in layer.sources if isinstance(source.group, Segments)]
        return [(group, t) for group in groups for t in _nonempty(group, tasks)]

    def _need(self, needed: dict[Segments, set[int]], found: list[tuple[Segments, int]]) -> None:
        """Add segments to ``needed``, and whatever they are made of."""
        found = list(found)
        while found:
            segments, task = found.pop()
            if task not in needed[segments]:
                needed[segments].add(task)
                for layer in self._producers[segments]:
                    found += self._read_by(layer, task)
                for parts in self._norms:
                    if any(part.segments is segments for part in parts):
                        nested = all(part.forward_transfer[task] for part in parts)
                        seen = range(task + 1) if nested else (task,)
                        found += [(part.segments, t) for part in parts for t in _nonempty(part.segments, seen)]


def _nonempty(segments: Segments, tasks: Sequence[int]) -> list[int]:
    return [t for t in tasks if segments.frozen[t]]


# ---- layers


@dataclass(frozen=True)
class _Piece:
    """One segment of a plain layer: its module, and the columns of the input that it reads."""

    name: str
    module: nn.Module
    spans: tuple[Span, ...]


def _staircase_layer(prefix: Prefix, layers: Sequence[StaircaseLayer], **residual: float | None) -> nn.Module:
    (layer,) = layers
    products = _products(prefix, layer)
    return products if layer.norm is None else _batch_norm(prefix, [layer.norm], products, **residual)


def _products(prefix: Prefix, layer: StaircaseLayer) -> nn.Module:
    """What the layer makes before its norm."""
    output = prefix.kept.get(layer.segments, layer.segments)
    structure = staircase(output, prefix.sources(layer), layer.forward_transfer, prefix.task)
    pieces = []
    for t, stair in enumerate(structure.stairs):
        if stair.rows:
            weight, bias = layer.frozen_rows_of(t)
            weight = weight if stair.columns else weight.new_zeros(stair.rows, 1, *weight.shape[2:])
            pieces.append(_Piece(f"task{t}", _filled(_like(layer, weight), weight, bias), stair.spans))
    if pieces or _unit_dim(layer) == -1:
        return _joined(pieces, structure.columns, _unit_dim(layer))
    return _no_channels(layer)


def _unit_dim(layer: StaircaseLayer) -> int:
    """Where units lie in the layer's input and output, from the end."""
    return -1 if isinstance(layer, EideticLinear) else -3


def _no_channels(layer: SegmentedLayer) -> nn.Module:
    """An image of the right size without channels: the library has no convolution of none, so one is cut off."""
    zero = layer.weight.new_zeros(1, 1, *layer.kernel_size)
    bias = None if layer.bias is None else zero.flatten()[:1]
    graph = fx.Graph()
    nothing = _read(graph, graph.placeholder("x"), (), 0, -3)
    graph.output(_columns(graph, graph.call_module("window", (nothing,)), Span(0, 0), -3))
    return fx.GraphModule({"window": _filled(_like(layer, zero), zero, bias)}, graph, "Segments")


def _like(layer: SegmentedLayer, weight: Tensor) -> nn.Module:
    """A torch.nn layer with room for ``weight`` [rows, columns, *kernel]."""
    factory = {"device": weight.device, "dtype": weight.dtype}
    rows, columns, bias = weight.shape[0], weight.shape[1], layer.bias is not None
    if isinstance(layer, EideticLinear):
        return skip_init(nn.Linear, columns, rows, bias, **factory)
    stride, _, dilation = layer.geometry
    groups = rows // columns if isinstance(layer, EideticGroupedConv2d) else 1
    return skip_init(
        nn.Conv2d, columns * groups, rows, layer.kernel_size, stride, layer.padding, dilation, groups, bias,
        layer.padding_mode, **factory,
    )  # fmt: skip


def _filled(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    return module


def _batch_norm(
    prefix: Prefix, layers: Sequence[EideticBatchNorm], products: nn.Module | None = None, **residual: float | None
) -> nn.Module:
    """The frozen normalisation of all kept units, ``shift + x * scale``: the same when the module is trained.

    ``products`` makes what is normalised, where the norm is a part of a layer.
    """
    image, alone = isinstance(layers[0], EideticBatchNorm2d), products is None
    columns = (-1, 1, 1) if image else (-1,)
    root, graph = nn.Module(), fx.Graph()
    for name in ("scale", "shift"):
        rows = [
            getattr(layer, f"frozen_{name}")[units] for layer in layers for _, units in prefix.rows(layer.segments)
        ]
        values = torch.cat(rows) if rows else getattr(layers[0], f"frozen_{name}")[:0]
        root.register_parameter(name, nn.Parameter(values.view(columns)))
    x = graph.placeholder("x")
    added = [graph.placeholder(name, default_value=default) for name, default in _defaults(residual)]
    if products is not None:
        root.add_module("products", products)
        x = graph.call_module("products", (x,))
    sequence = alone and not image  # [N, C] or [N, C, T]: dimension 1 comes last and goes back
    x = graph.call_function(torch.transpose, (x, 1, -1)) if sequence else x
    y = graph.call_function(torch.addcmul, (graph.get_attr("shift"), x, graph.get_attr("scale")))
    if sequence:  # in memory as in the network, for what reads it
        y = graph.call_method("contiguous", (graph.call_function(torch.transpose, (y, 1, -1)),))
    for each in added:
        y = graph.call_function(torch.add, (y, each))
    activation = layers[0].activation
    graph.output(y if activation == "none" else graph.call_function(FUNCTIONS[activation], (y,)))
    return fx.GraphModule(root, graph, "Affine")


def _defaults(residual: dict[str, float | None]) -> list[tuple[str, Any]]:
    """A placeholder's name and default."""
    return [(name, inspect.Parameter.empty if value is None else value) for name, value in residual.items()]


def _grouped(prefix: Prefix, layers: Sequence[EideticGroupedConv2d]) -> nn.Module:
    pieces, column = [], 0
    for part, layer in enumerate(layers):
        for t, units in prefix.rows(layer.segments):
            bias = None if layer.frozen_bias is None else layer.frozen_bias[units]
            module = _filled(_like(layer, layer.frozen_weight[units]), layer.frozen_weight[units], bias)
            name = f"task{t}" if len(layers) == 1 else f"part{part}_task{t}"
            stop = column + units.stop - units.start
            pieces.append(_Piece(name, module, (Span(column, stop),)))
            column = stop
    return _joined(pieces, column, -3) if pieces else _no_channels(layers[0])


def _layer_norm(prefix: Prefix, layers: Sequence[EideticLayerNorm]) -> nn.Module:
    """Segment by segment, torch's LayerNorm over what it may see; of these columns its own are scaled and shifted."""
    first = layers[0]
    sources = tuple(Source(prefix.kept[layer.segments]) for layer in layers)
    starts = [sum(source.columns(prefix.task) for source in sources[:part]) for part in range(len(sources) + 1)]
    root, graph = nn.Module(), fx.Graph()
    x = graph.placeholder("x")
    if first.unit_dim == 1:
        x = graph.call_function(torch.movedim, (x, 1, -1))
    made: list[list[fx.Node]] = [[] for _ in layers]
    for t in range(prefix.task + 1):
        sizes = [source.group.frozen[t] for source in sources]
        if not sum(sizes):
            continue
        ends = [(start + source.group.start(t), start + source.group.stop(t)) for start, source in zip(starts, sources)]
        own = tuple(Span(*pair) for pair, size in zip(ends, sizes) if size)
        seen = reads(sources, t, all(layer.forward_transfer[t] for layer in layers), prefix.task)
        columns = sum(stop - start for start, stop in seen)
        norm, weight, bias = _norm_of(layers, t, columns, sum(sizes))
        if seen == (Span(0, sum(sizes)),) and sum(sizes) == starts[-1] and len(layers) == 1 and first.unit_dim == -1:
            return norm
        root.add_module(f"task{t}", norm)
        y = graph.call_module(f"task{t}", (_read(graph, x, seen, starts[-1], -1),))
        if columns > sum(sizes):
            y = _side_by_side(graph, [_columns(graph, y, span, -1) for span in positions(seen, own)], -1)
        for name, tensor, operation in (("weight", weight, torch.mul), ("bias", bias, torch.add)):
            if tensor is not None:
                root.register_parameter(f"task{t}_{name}", nn.Parameter(tensor.clone()))
                y = graph.call_function(operation, (y, graph.get_attr(f"task{t}_{name}")))
        for part, size in enumerate(sizes):
            if size:
                span = Span(sum(sizes[:part]), sum(sizes[: part + 1]))
                made[part].append(y if size == sum(sizes) else _columns(graph, y, span, -1))
    y = _side_by_side(graph, [each for part in made for each in part] or [x], -1)
    graph.output(y if first.unit_dim == -1 else graph.call_function(torch.movedim, (y, -1, 1)))
    return fx.GraphModule(root, graph, "PrefixNorm")


def _norm_of(
    layers: Sequence[EideticLayerNorm], segment: int, seen: int, own: int
) -> tuple[nn.LayerNorm, Tensor | None, Tensor | None]:
    """torch's LayerNorm over ``seen`` columns, and what scale and shift are left for the segment's ``own`` ones: those
    of a LayerNorm that sees no others are in it."""
    each = zip(*(layer.affine_of(segment) for layer in layers))
    weight, bias = (None if tensors[0] is None else torch.cat(tensors) for tensors in each)
    like = torch.empty(0) if weight is None else weight
    whole = weight is not None and own == seen
    norm = nn.LayerNorm(seen, layers[0].eps, whole, bias is not None, like.device, like.dtype)
    return (_filled(norm, weight, bias), None, None) if whole else (norm, weight, bias)


def _prelu(prefix: Prefix, layers: Sequence[EideticPReLU]) -> nn.Module:
    rows = [layer.frozen_weight[units] for layer in layers for _, units in prefix.rows(layer.segments)]
    slopes = torch.cat(rows) if rows else layers[0].frozen_weight[:0]
    module = skip_init(nn.PReLU, len(slopes), device=slopes.device, dtype=slopes.dtype)
    _filled(module, slopes, None)
    if layers[0].unit_dim == 1:
        return module
    graph = fx.Graph()
    moved = graph.call_function(torch.movedim, (graph.placeholder("x"), -1, 1))
    graph.output(graph.call_function(torch.movedim, (graph.call_module("prelu", (moved,)), 1, -1)))
    return fx.GraphModule({"prelu": module}, graph, "Slopes")


# How each kind of layer becomes plain: a function of the prefix and the layer's parts (one, as a rule).
PLAIN: dict[type[SegmentedLayer], Callable[..., nn.Module]] = {
    EideticLinear: _staircase_layer,
    EideticConv2d: _staircase_layer,
    EideticBatchNorm: _batch_norm,
    EideticGroupedConv2d: _grouped,
    EideticLayerNorm: _layer_norm,
    EideticPReLU: _prelu,
}


# ---- attention, and tensors of the network's own


def _attention(module: HeadedAttention, prefix: Prefix) -> nn.Module:
    projections = dict(module.named_children())
    plain = {name: prefix.plain([projections[name]]) for name in (*PROJECTIONS, "out_proj")}
    heads = prefix.kept[module.query.segments].present(prefix.task) // module.head_dim
    given = heads, module.head_dim, plain
    if isinstance(module, EideticMultiheadAttention):
        return attention.traced(attention.MultiheadAttention(*given, batch_first=module.batch_first))
    if not isinstance(module, (EideticRelativeAttention, EideticWindowAttention)):
        raise ConversionError(_NO_TWIN.format(type(module).__name__))
    tensors = {"position_bias": _values(module.position_bias, prefix), "positions": module.positions}
    if isinstance(module, EideticRelativeAttention):
        return attention.traced(attention.RelativeAttention(*given, scale=module.scale, **tensors))
    window = {"window": module.window_size, "shift": module.shift_size}
    if isinstance(module, EideticWindowAttentionV2):
        tensors["logit_scale"] = _values(module.logit_scale, prefix)
        return attention.traced(attention.CosineWindowAttention(*given, **window, **tensors))
    return attention.traced(attention.WindowAttention(*given, **window, **tensors))


def _values(layer: EideticParameter | EideticPositionNetwork, prefix: Prefix) -> Tensor:
    """What the layer's forward gives, of the units that are kept."""
    kept = [(units.start // layer.shared, units.stop // layer.shared) for _, units in prefix.rows(layer.segments)]
    rows = [layer.frozen_weight[start:stop] for start, stop in kept]
    values = torch.cat(rows) if rows else layer.frozen_weight[:0]
    return (values.t() if isinstance(layer, EideticPositionNetwork) else values.movedim(0, layer.dim)).contiguous()


def _joined(pieces: Sequence[_Piece], columns: int, dim: int) -> nn.Module:
    """``pieces`` side by side in dimension ``dim`` (from the end); a single one that reads all is the layer itself."""
    if len(pieces) == 1 and pieces[0].spans == (Span(0, columns),):
        return pieces[0].module
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(piece.name, (_read(graph, x, piece.spans, columns, dim),)) for piece in pieces]
    graph.output(_side_by_side(graph, made or [_columns(graph, x, Span(0, 0), dim)], dim))
    return fx.GraphModule({piece.name: piece.module for piece in pieces}, graph, "Segments")


def _side_by_side(graph: fx.Graph, values: Sequence[fx.Node], dim: int) -> fx.Node:
    return values[0] if len(values) == 1 else graph.call_function(torch.cat, (list(values), dim))


def _read(graph: fx.Graph, x: fx.Node, spans: Sequence[Span], columns: int, dim: int) -> fx.Node:
    if tuple(spans) == (Span(0, columns),):
        return x
    parts = [_columns(graph, x, span, dim) for span in spans]
    if not parts:  # one column of zeros: what reads no unit is its bias
        nothing = _columns(graph, x, Span(0, 0), dim)
        return graph.call_function(F.pad, (nothing, (*(0, 0) * (-dim - 1), 0, 1)))
    if len(parts) == 1:  # a product's bits depend on where its input lies: memory of its own, as in the network
        return graph.call_method("clone", (parts[0],))
    return graph.call_function(torch.cat, (parts, dim))


def _columns(graph: fx.Graph, x: fx.Node, span: Span, dim: int) -> fx.Node:
    before = (slice(None),) if dim == 1 else (Ellipsis,)
    after = (slice(None),) * (-dim - 1)
    return graph.call_function(operator.getitem, (x, (*before, slice(*span), *after)))


def _shared(module: Shared, prefix: Prefix) -> nn.Module:
    """The parts, which read the same input, concatenated."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(f"part{number}", (x,)) for number in range(len(module))]
    graph.output(_side_by_side(graph, made, _unit_dim(module[0])))
    parts = {f"part{number}": prefix.plain([part]) for number, part in enumerate(module)}
    return fx.GraphModule(parts, graph, "Shared")


def _split(module: Split, prefix: Prefix) -> nn.Module:
    """The pieces, of as many units as are kept, each in memory of its own."""
    widths, pieces = module.sizes, [(number,) for number in range(len(module.sizes))]  # of the network's input
    if module.sources:
        widths, pieces = [prefix.kept[source.group].present(prefix.task) for source in module.sources], module.pieces
    spans = [Span(sum(widths[:number]), sum(widths[: number + 1])) for number in range(len(widths))]
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = []
    for piece in pieces:
        parts = [_columns(graph, x, spans[number], module.unit_dim) for number in piece]
        alone = len(parts) == 1
        whole = graph.call_method("clone", (parts[0],)) if alone else _side_by_side(graph, parts, module.unit_dim)
        made.append(whole)
    graph.output(tuple(made))
    return fx.GraphModule(nn.Module(), graph, "Split")


# ---- the network

# What reads its input by products, and what gives tensors that lie in another's memory, in another order.
_LINEAR = (EideticLinear, Shared, HeadedAttention)
_MOVES = (operator.getitem, torch.permute, torch.transpose, torch.swapaxes, "permute", "transpose", "swapaxes")


def _plain_graph(graph: fx.Graph, root: nn.Module, prefix: Prefix, head: nn.Module, name: str) -> nn.Module:
    """``graph`` with every layer's plain twin in its place, and ``head`` on its end."""
    plain, values, moved = fx.Graph(), {}, set()
    modules: dict[str, Any] = {}
    for node in graph.nodes:
        module = root.get_submodule(node.target) if node.op == "call_module" else None
        linear = isinstance(module, _LINEAR) or node.op == "output"
        for each in node.all_input_nodes if linear else ():
            if each in moved:  # a product's bits depend on where its input lies
                copied = {"memory_format": torch.contiguous_format}
                values[each] = plain.call_method("clone", (values[each],), copied)
                moved.remove(each)
        dense = linear or (isinstance(module, EideticLayerNorm) and module.unit_dim == -1)
        if node.target in _MOVES or (not dense and moved.intersection(node.all_input_nodes)):
            moved.add(node)
        if node.op == "output":
            path = "head"
            while any(target.split(".")[0] == path for target in modules):
                path += "_"
            modules[path] = head
            plain.output(plain.call_module(path, (values[node.args[0]],)))
            break
        shuffled = isinstance(module, Shuffle) and module.wired  # its readers' columns are in the input's order
        if shuffled or (module is not None and rules.module_rule(module) is rules.drops):
            values[node] = values[node.all_input_nodes[0]]
            continue
        if isinstance(module, EideticParameter):
            modules[node.target] = nn.Parameter(_values(module, prefix))
            values[node] = plain.get_attr(node.target)
            continue
        if isinstance(module, EideticScaledDotProduct):
            values[node] = _scaled_dot_product(plain, module, prefix, node, values)
            continue
        if isinstance(module, EideticMultiheadAttention):
            modules[node.target] = _twin(module, prefix)
            given = dict(zip(PROJECTIONS, node.args)) | node.kwargs
            values[node] = plain.call_module(node.target, tuple(values[given[name]] for name in PROJECTIONS))
            continue
        if module is not None:
            given = _takes_residual(module) and (*node.args[1:], node.kwargs.get("residual"))[0] is not None
            residual = {"residual": None} if given else {}
            modules[node.target] = _twin(module, prefix, **residual)
        elif node.op == "get_attr":
            modules[node.target] = copy.deepcopy(operator.attrgetter(node.target)(root))
        values[node] = plain.node_copy(node, lambda each: values[each])
        values[node].meta.clear()
    return fx.GraphModule(_tree(modules), plain, name).eval()


def _scaled_dot_product(
    plain: fx.Graph, module: EideticScaledDotProduct, prefix: Prefix, node: fx.Node, values: dict[fx.Node, fx.Node]
) -> fx.Node:
    """torch's function of the heads, all tasks' at once; none is what it is given."""
    given = dict(zip(("q", "k", "v", "is_causal", "scale"), node.args)) | node.kwargs
    heads = [values[given.pop(name)] for name in ("q", "k", "v")]
    if not prefix.kept[module.sources[0].group].present(prefix.task):
        return heads[0]
    heads = [plain.call_method("contiguous", (each,)) for each in heads]  # in memory of their own, as in the network
    return plain.call_function(F.scaled_dot_product_attention, tuple(heads), given)


def _tree(modules: dict[str, Any]) -> nn.Module:
    """A module that holds ``modules`` at their paths; a GraphModule takes them from it in the order of its graph."""
    root = nn.Module()
    for path, each in modules.items():
        *above, name = path.split(".")
        parent = root
        for step in above:
            if not hasattr(parent, step):
                parent.add_module(step, nn.Module())
            parent = getattr(parent, step)
        setattr(parent, name, each)
    return root


def _takes_residual(module: nn.Module) -> bool:
    """Whether the layer normalises its units, and may add a residual before their activation."""
    layer = module[0] if isinstance(module, Parts) else module
    return isinstance(layer, EideticBatchNorm) or getattr(layer, "norm", None) is not None


def _twin(module: nn.Module, prefix: Prefix, **residual: float | None) -> nn.Module:
    if isinstance(module, SegmentedLayer):
        return prefix.plain([module], **residual)
    if isinstance(module, Parts):
        return prefix.plain(list(module), **residual)
    if isinstance(module, Shared):
        return _shared(module, prefix)
    if isinstance(module, HeadedAttention):
        return _attention(module, prefix)
    if isinstance(module, Split):
        return _split(module, prefix)
    if isinstance(module, Shuffle):
        return nn.ChannelShuffle(module.groups)
    return copy.deepcopy(module).eval()


def _with_own_forward(network: EideticNetwork, prefix: Prefix) -> nn.Module:
    """A module with the network's own forward, methods and attributes, its layers being plain ones."""
    from ..network import EideticNetwork

    twin = copy.deepcopy(network)
    twin.heads = nn.ModuleList()
    for path, module in network.named_modules():
        if isinstance(module, SegmentedLayer) and module not in set(network.heads) and not module.attached:
            # Whether its forward gives a residual is not known here: without one, what leaves every bit is added.
            residual = {"residual": -0.0} if _takes_residual(module) else {}
            twin.set_submodule(path, prefix.plain([module], **residual))
        elif rules.module_rule(module) is rules.drops:
            twin.set_submodule(path, nn.Identity())
    kinds = type(network).__mro__
    skipped = ("__dict__", "__weakref__", "__init__", "__new__", "connections")
    members = {
        name: value
        for kind in reversed(kinds[: kinds.index(EideticNetwork)])
        for name, value in vars(kind).items()
        if name not in skipped
    }
    body = type(f"Plain{type(network).__name__}", (nn.Module,), members)()
    ours = vars(EideticNetwork())
    for name, value in vars(twin).items():
        if name in ("_modules", "_parameters", "_buffers"):
            vars(body)[name].update({key: each for key, each in value.items() if key not in ours[name]})
        elif name not in ours:
            vars(body)[name] = value
    return body


def _around(body: nn.Module, head: nn.Module, name: str) -> nn.Module:
    graph = fx.Graph()
    graph.output(graph.call_module("head", (graph.call_module("body", (graph.placeholder("x"),)),)))
    return fx.GraphModule({"body": body, "head": head}, graph, name).eval()
