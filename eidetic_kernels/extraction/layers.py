"""Plain torch.nn versions of layers whose units belong to segments, for the segments that a task needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
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
)
from ..layout import Source, Span, positions, reads, staircase
from .graph import emit_concatenation, emit_read, emit_slice
from .prefix import Prefix

Convolution = EideticConv2d | EideticGroupedConv2d
Plain = TypeVar("Plain", bound=nn.Module)

NO_PLAIN_VERSION = "{} has no plain version yet, so this task cannot be extracted."


def plain_layer(prefix: Prefix, layers: Sequence[SegmentedLayer], **residual: float | None) -> nn.Module:
    """The plain version of a layer, in evaluation mode.

    Args:
        prefix: the segments that the task needs.
        layers: the layer; or its parts, one for each unit group, where it was divided among several groups.
        residual: its forward takes a residual too. The value is the argument's default; None if it is always given.

    Raises:
        ConversionError: there is no plain version of such a layer.
    """
    for kind, make in PLAIN.items():
        if isinstance(layers[0], kind):
            return make(prefix, layers, **residual).eval()
    raise ConversionError(NO_PLAIN_VERSION.format(type(layers[0]).__name__))


@dataclass(frozen=True)
class _Piece:
    """One segment of a plain layer.

    Args:
        name: the module's name in the plain layer.
        module: the torch.nn layer of the segment.
        spans: the columns of the input that it reads.
    """

    name: str
    module: nn.Module
    spans: tuple[Span, ...]


def _staircase_layer(
    prefix: Prefix, layers: Sequence[EideticLinear | EideticConv2d], **residual: float | None
) -> nn.Module:
    """A linear layer or convolution with the norm that is a part of it, if it has one."""
    (layer,) = layers
    products = _products(prefix, layer)
    return products if layer.norm is None else _batch_norm(prefix, [layer.norm], products, **residual)


def _products(prefix: Prefix, layer: EideticLinear | EideticConv2d) -> nn.Module:
    """The layer without its norm: a torch.nn layer for each segment."""
    output = prefix.kept_of(layer.segments)
    structure = staircase(output, prefix.sources(layer), layer.forward_transfer, prefix.task)
    pieces: list[_Piece] = []
    for t, stair in enumerate(structure.stairs):
        if stair.rows:
            weight, bias = layer.frozen_rows_of(t)
            weight = weight if stair.columns else weight.new_zeros(stair.rows, 1, *weight.shape[2:])
            pieces.append(_Piece(f"task{t}", _filled(_like(layer, weight), weight, bias), stair.spans))
    if pieces or isinstance(layer, EideticLinear):
        return _joined(pieces, structure.columns, unit_dim_from_end(layer))
    return _no_channels(layer)


def unit_dim_from_end(layer: SegmentedLayer) -> int:
    """The dimension of units in the layer's input and output, counted from the end."""
    return -1 if isinstance(layer, EideticLinear) else -3


def _no_channels(layer: Convolution) -> nn.Module:
    """A convolution to an image without channels, which the library does not have: one channel is made and cut off."""
    zero = layer.weight.new_zeros(1, 1, *layer.kernel_size)
    bias = None if layer.bias is None else zero.flatten()[:1]
    graph = fx.Graph()
    nothing = emit_read(graph, graph.placeholder("x"), (), 0, -3)
    graph.output(emit_slice(graph, graph.call_module("window", (nothing,)), Span(0, 0), -3))
    return fx.GraphModule({"window": _filled(_like(layer, zero), zero, bias)}, graph, "Segments")


def _like(layer: EideticLinear | Convolution, weight: Tensor) -> nn.Module:
    """A torch.nn layer like ``layer``, for ``weight`` [rows, columns, *kernel]; its parameters are not initialised."""
    factory = {"device": weight.device, "dtype": weight.dtype}
    rows, columns, bias = weight.shape[0], weight.shape[1], layer.bias is not None
    if isinstance(layer, EideticLinear):
        return skip_init(nn.Linear, columns, rows, bias, **factory)

    stride, _, dilation = layer.geometry
    groups = rows // layer.makes if isinstance(layer, EideticGroupedConv2d) else 1
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


def _filled(module: Plain, weight: Tensor, bias: Tensor | None) -> Plain:
    """``module`` with these parameters."""
    with torch.no_grad():
        module.get_parameter("weight").copy_(weight)
        if bias is not None:
            module.get_parameter("bias").copy_(bias)
    return module


def _batch_norm(
    prefix: Prefix, layers: Sequence[EideticBatchNorm], products: nn.Module | None = None, **residual: float | None
) -> nn.Module:
    """The frozen normalisation of all kept units, ``shift + x * scale``, which is the same when the module is trained.

    ``products`` computes what is normalised, where the norm is a part of a layer.
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


def _defaults(residual: Mapping[str, float | None]) -> list[tuple[str, Any]]:
    """(name, default) of each further argument; without a default where it is always given."""
    return [(name, inspect.Parameter.empty if value is None else value) for name, value in residual.items()]


def _grouped(prefix: Prefix, layers: Sequence[EideticGroupedConv2d]) -> nn.Module:
    """A grouped convolution for each segment; a segment reads as many channels as it makes."""
    pieces: list[_Piece] = []
    column = 0
    for part, layer in enumerate(layers):
        for t, units in prefix.rows(layer.segments):
            bias = None if layer.frozen_bias is None else layer.frozen_bias[units]
            module = _filled(_like(layer, layer.frozen_weight[units]), layer.frozen_weight[units], bias)
            name = f"task{t}" if len(layers) == 1 else f"part{part}_task{t}"
            stop = column + (units.stop - units.start) // layer.makes * layer.reads
            pieces.append(_Piece(name, module, (Span(column, stop),)))
            column = stop
    return _joined(pieces, column, -3) if pieces else _no_channels(layers[0])


def _layer_norm(prefix: Prefix, layers: Sequence[EideticLayerNorm]) -> nn.Module:
    """A torch LayerNorm for each segment, over what the segment may see, of which its own columns are kept."""
    first, groups = layers[0], [prefix.kept_of(layer.segments) for layer in layers]
    sources = tuple(Source(group) for group in groups)
    starts = [sum(source.columns(prefix.task) for source in sources[:part]) for part in range(len(sources) + 1)]
    root, graph = nn.Module(), fx.Graph()
    x = graph.placeholder("x")
    if first.unit_dim == 1:
        x = graph.call_function(torch.movedim, (x, 1, -1))

    made: list[list[fx.Node]] = [[] for _ in layers]
    for t in range(prefix.task + 1):
        sizes = [group.frozen[t] for group in groups]
        if not sum(sizes):
            continue
        ends = [(start + group.start(t), start + group.stop(t)) for start, group in zip(starts, groups)]
        own = tuple(Span(*pair) for pair, size in zip(ends, sizes) if size)
        seen = reads(sources, t, all(layer.forward_transfer[t] for layer in layers), prefix.task)
        columns = sum(stop - start for start, stop in seen)
        norm, weight, bias = _norm_of(layers, t, columns, sum(sizes))
        if seen == (Span(0, sum(sizes)),) and sum(sizes) == starts[-1] and len(layers) == 1 and first.unit_dim == -1:
            return norm

        root.add_module(f"task{t}", norm)
        y = graph.call_module(f"task{t}", (emit_read(graph, x, seen, starts[-1], -1),))
        if columns > sum(sizes):
            y = emit_concatenation(graph, [emit_slice(graph, y, span, -1) for span in positions(seen, own)], -1)
        for name, tensor, operation in (("weight", weight, torch.mul), ("bias", bias, torch.add)):
            if tensor is not None:
                root.register_parameter(f"task{t}_{name}", nn.Parameter(tensor.clone()))
                y = graph.call_function(operation, (y, graph.get_attr(f"task{t}_{name}")))
        for part, size in enumerate(sizes):
            if size:
                span = Span(sum(sizes[:part]), sum(sizes[: part + 1]))
                made[part].append(y if size == sum(sizes) else emit_slice(graph, y, span, -1))

    y = emit_concatenation(graph, [each for part in made for each in part] or [x], -1)
    graph.output(y if first.unit_dim == -1 else graph.call_function(torch.movedim, (y, -1, 1)))
    return fx.GraphModule(root, graph, "PrefixNorm")


def _norm_of(
    layers: Sequence[EideticLayerNorm], segment: int, seen: int, own: int
) -> tuple[nn.LayerNorm, Tensor | None, Tensor | None]:
    """torch's LayerNorm over ``seen`` columns, and the scale and shift to apply to the segment's ``own`` ones.

    A LayerNorm that sees the segment's own columns only holds scale and shift itself; then both are None.
    """
    affine = zip(*(layer.affine_of(segment) for layer in layers))
    weight, bias = (None if tensors[0] is None else torch.cat(tensors) for tensors in affine)
    like = torch.empty(0) if weight is None else weight
    if weight is not None and own == seen:
        norm = nn.LayerNorm(seen, layers[0].eps, True, bias is not None, like.device, like.dtype)
        return _filled(norm, weight, bias), None, None
    return nn.LayerNorm(seen, layers[0].eps, False, bias is not None, like.device, like.dtype), weight, bias


def _prelu(prefix: Prefix, layers: Sequence[EideticPReLU]) -> nn.Module:
    """torch's PReLU with the slopes of all kept units."""
    rows = [layer.frozen_weight[units] for layer in layers for _, units in prefix.rows(layer.segments)]
    if not rows:  # torch refuses inputs without units
        return nn.Identity()
    slopes = torch.cat(rows)
    module = skip_init(nn.PReLU, len(slopes), device=slopes.device, dtype=slopes.dtype)
    _filled(module, slopes, None)
    if layers[0].unit_dim == 1:
        return module
    graph = fx.Graph()
    moved = graph.call_function(torch.movedim, (graph.placeholder("x"), -1, 1))
    graph.output(graph.call_function(torch.movedim, (graph.call_module("prelu", (moved,)), 1, -1)))
    return fx.GraphModule({"prelu": module}, graph, "Slopes")


def _joined(pieces: Sequence[_Piece], columns: int, dim: int) -> nn.Module:
    """A module that concatenates what ``pieces`` compute in dimension ``dim``, which counts from the end.

    ``columns`` is the width of the input. A single piece that reads all of it is returned as it is.
    """
    if len(pieces) == 1 and pieces[0].spans == (Span(0, columns),):
        return pieces[0].module
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(piece.name, (emit_read(graph, x, piece.spans, columns, dim),)) for piece in pieces]
    graph.output(emit_concatenation(graph, made or [emit_slice(graph, x, Span(0, 0), dim)], dim))
    return fx.GraphModule({piece.name: piece.module for piece in pieces}, graph, "Segments")


# How each kind of layer becomes plain: a function of the prefix and the layer's parts (one, as a rule).
PLAIN: dict[type[SegmentedLayer], Callable[..., nn.Module]] = {
    EideticLinear: _staircase_layer,
    EideticConv2d: _staircase_layer,
    EideticBatchNorm: _batch_norm,
    EideticGroupedConv2d: _grouped,
    EideticLayerNorm: _layer_norm,
    EideticPReLU: _prelu,
}
