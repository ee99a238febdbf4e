"""Plain torch.nn twins of layers, of the segments that a task needs."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from ..backends.activations import FUNCTIONS
from ..errors import ConversionError
from ..layers import (
    EideticBatchNorm,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticGroupedConv2d,
    EideticLayerNorm,
    EideticLinear,
    EideticPReLU,
    SegmentedLayer,
    StaircaseLayer,
)
from ..layout import Source, Span, positions, reads, staircase
from .prefix import NO_TWIN, Prefix


def plain(prefix: Prefix, layers: Sequence[SegmentedLayer], **residual: float | None) -> nn.Module:
    """The plain twin of a layer; or of the parts, one a group, that stand for a layer over several groups.

    ``residual``: its forward takes one too; the value is its default, None where it is always given.
    """
    for kind, make in PLAIN.items():
        if isinstance(layers[0], kind):
            return make(prefix, layers, **residual).eval()
    raise ConversionError(NO_TWIN.format(type(layers[0]).__name__))


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
    if pieces or unit_dim_of(layer) == -1:
        return _joined(pieces, structure.columns, unit_dim_of(layer))
    return _no_channels(layer)


def unit_dim_of(layer: StaircaseLayer) -> int:
    """Where units lie in the layer's input and output, from the end."""
    return -1 if isinstance(layer, EideticLinear) else -3


def _no_channels(layer: SegmentedLayer) -> nn.Module:
    """An image of the right size without channels: the library has no convolution of none, so one is cut off."""
    zero = layer.weight.new_zeros(1, 1, *layer.kernel_size)
    bias = None if layer.bias is None else zero.flatten()[:1]
    graph = fx.Graph()
    nothing = _read(graph, graph.placeholder("x"), (), 0, -3)
    graph.output(columns_of(graph, graph.call_module("window", (nothing,)), Span(0, 0), -3))
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
        nn.Conv2d,
        columns * groups,
        rows,
        layer.kernel_size,
        stride,
        layer.padding,
        dilation,
        groups,
        bias,
        layer.padding_mode,
        **factory,
    )


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
        rows = [getattr(layer, f"frozen_{name}")[units] for layer in layers for _, units in prefix.rows(layer.segments)]
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
            y = side_by_side(graph, [columns_of(graph, y, span, -1) for span in positions(seen, own)], -1)
        for name, tensor, operation in (("weight", weight, torch.mul), ("bias", bias, torch.add)):
            if tensor is not None:
                root.register_parameter(f"task{t}_{name}", nn.Parameter(tensor.clone()))
                y = graph.call_function(operation, (y, graph.get_attr(f"task{t}_{name}")))
        for part, size in enumerate(sizes):
            if size:
                span = Span(sum(sizes[:part]), sum(sizes[: part + 1]))
                made[part].append(y if size == sum(sizes) else columns_of(graph, y, span, -1))
    y = side_by_side(graph, [each for part in made for each in part] or [x], -1)
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


def _joined(pieces: Sequence[_Piece], columns: int, dim: int) -> nn.Module:
    """``pieces`` side by side in dimension ``dim`` (from the end); a single one that reads all is the layer itself."""
    if len(pieces) == 1 and pieces[0].spans == (Span(0, columns),):
        return pieces[0].module
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(piece.name, (_read(graph, x, piece.spans, columns, dim),)) for piece in pieces]
    graph.output(side_by_side(graph, made or [columns_of(graph, x, Span(0, 0), dim)], dim))
    return fx.GraphModule({piece.name: piece.module for piece in pieces}, graph, "Segments")


def side_by_side(graph: fx.Graph, values: Sequence[fx.Node], dim: int) -> fx.Node:
    return values[0] if len(values) == 1 else graph.call_function(torch.cat, (list(values), dim))


def _read(graph: fx.Graph, x: fx.Node, spans: Sequence[Span], columns: int, dim: int) -> fx.Node:
    if tuple(spans) == (Span(0, columns),):
        return x
    parts = [columns_of(graph, x, span, dim) for span in spans]
    if not parts:  # one column of zeros: what reads no unit is its bias
        nothing = columns_of(graph, x, Span(0, 0), dim)
        return graph.call_function(F.pad, (nothing, (*(0, 0) * (-dim - 1), 0, 1)))
    if len(parts) == 1:  # a product's bits depend on where its input lies: memory of its own, as in the network
        return graph.call_method("clone", (parts[0],))
    return graph.call_function(torch.cat, (parts, dim))


def columns_of(graph: fx.Graph, x: fx.Node, span: Span, dim: int) -> fx.Node:
    before = (slice(None),) if dim == 1 else (Ellipsis,)
    after = (slice(None),) * (-dim - 1)
    return graph.call_function(operator.getitem, (x, (*before, slice(*span), *after)))
