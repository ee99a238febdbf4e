"""Plain versions of layers that multiply: linear ones, convolutions of every kind, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from ..layers import (
    EideticConv2d,
    EideticConvolution,
    EideticConvTranspose,
    EideticEmbedding,
    EideticGroupedConv2d,
    EideticLinear,
    SegmentedLayer,
    StaircaseLayer,
)
from ..layout import Span, staircase
from .graph import emit_read, emit_slice
from .pieces import Piece, filled, joined
from .prefix import Prefix

Convolution = EideticConv2d | EideticConvolution | EideticGroupedConv2d

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def products(prefix: Prefix, layer: EideticLinear | EideticConv2d | EideticConvolution) -> nn.Module:
    """The layer without its norm: a torch.nn layer for each segment."""
    output = prefix.kept_of(layer.segments)
    structure = staircase(output, prefix.sources(layer), layer.forward_transfer, prefix.task)
    pieces: list[Piece] = []
    for t, stair in enumerate(structure.stairs):
        if stair.rows:
            weight, bias = layer.frozen_rows_of(t)
            weight = weight if stair.columns else weight.new_zeros(stair.rows, 1, *weight.shape[2:])
            pieces.append(Piece(f"task{t}", _torchs(layer, weight, bias), stair.spans))
    if pieces or isinstance(layer, EideticLinear):
        return joined(pieces, structure.columns, unit_dim_from_end(layer))
    return _no_channels(layer)


def grouped(prefix: Prefix, layers: Sequence[EideticGroupedConv2d]) -> nn.Module:
    """A grouped convolution for each segment; a segment reads the channels of its own groups."""
    pieces: list[Piece] = []
    column, several = 0, len(layers) > 1
    for part, layer in enumerate(layers):
        for t, units in prefix.rows(layer.segments):
            groups = (units.stop - units.start) // layer.makes
            bias = None if layer.frozen_bias is None else layer.frozen_bias[units]
            module = _torchs(layer, layer.frozen_weight[units], bias, groups)
            stop = column + groups * layer.reads
            pieces.append(Piece(f"part{part}_task{t}" if several else f"task{t}", module, (Span(column, stop),)))
            column = stop
    return joined(pieces, column, unit_dim_from_end(layers[0])) if pieces else _no_channels(layers[0])


def embedding(prefix: Prefix, layers: Sequence[EideticEmbedding]) -> nn.Module:
    """One table with the units of all segments: what is looked up is not computed, so no segment needs its own."""
    (layer,) = layers
    rows = [layer.frozen_rows_of(t)[0] for t, _ in prefix.rows(layer.segments)]
    table = torch.cat(rows) if rows else layer.weight.detach().new_empty(0, layer.num_embeddings)
    factory = {"padding_idx": layer.padding_idx, "device": table.device, "dtype": table.dtype}
    return filled(skip_init(nn.Embedding, layer.num_embeddings, len(table), **factory), table.t(), None)


def unit_dim_from_end(layer: SegmentedLayer) -> int:
    """The dimension of units in the layer's input and output, counted from the end."""
    return -1 if isinstance(layer, (EideticLinear, EideticEmbedding)) else -1 - spatial_dims(layer)


def spatial_dims(layer: nn.Module) -> int:
    """Over how many dimensions a convolution moves; 0 for other layers."""
    return len(getattr(layer, "kernel_size", ()))


def _no_channels(layer: Convolution) -> nn.Module:
    """A convolution to an image without channels, which the library does not have: one channel is made and cut off."""
    dim, zero = unit_dim_from_end(layer), layer.weight.new_zeros(1, 1, *layer.kernel_size)
    bias = None if layer.bias is None else zero.flatten()[:1]
    graph = fx.Graph()
    nothing = emit_read(graph, graph.placeholder("x"), (), 0, dim)
    graph.output(emit_slice(graph, graph.call_module("window", (nothing,)), Span(0, 0), dim))
    return fx.GraphModule({"window": _torchs(layer, zero, bias)}, graph, "Segments")


def _torchs(layer: StaircaseLayer | Convolution, weight: Tensor, bias: Tensor | None, groups: int = 1) -> nn.Module:
    """A torch.nn layer like ``layer`` with ``weight`` [rows, columns of a group, *kernel] and ``bias`` [rows]."""
    factory = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    rows, columns = weight.shape[0], weight.shape[1] * groups
    if isinstance(layer, EideticLinear):
        return filled(skip_init(nn.Linear, columns, rows, **factory), weight, bias)

    assert isinstance(layer, Convolution), "no other layer multiplies"
    stride, _, dilation = layer.geometry
    kind = spatial_dims(layer) - 1
    options = {"stride": stride, "padding": layer.padding, "dilation": dilation, **factory}
    if isinstance(layer, EideticConvTranspose):  # torch's has a row for each channel of the input
        options["output_padding"] = layer.output_padding
        module = skip_init(TRANSPOSED[kind], columns, rows, layer.kernel_size, **options)
        return filled(module, weight.transpose(0, 1), bias)
    options |= {"groups": groups, "padding_mode": layer.padding_mode}
    return filled(skip_init(CONVOLUTIONS[kind], columns, rows, layer.kernel_size, **options), weight, bias)
