"""Plain versions of a network's modules that are no single layer: attention, parameters, divided layers, splits."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..layers import (
    EideticBatchNorm,
    EideticMultiheadAttention,
    EideticParameter,
    EideticPositionNetwork,
    EideticRelativeAttention,
    EideticWindowAttention,
    EideticWindowAttentionV2,
    HeadedAttention,
    Parts,
    SegmentedLayer,
    Shared,
    Split,
)
from ..layers.attention import PROJECTIONS
from ..layout import Span
from . import attention
from .graph import emit_concatenation, emit_slice
from .layers import NO_PLAIN_VERSION, plain_layer
from .prefix import Prefix
from .products import unit_dim_from_end


def plain_module(module: nn.Module, prefix: Prefix, **residual: float | None) -> nn.Module:
    """The plain version of any module of a network, for the segments in ``prefix``, in evaluation mode.

    ``residual``: as for :func:`.layers.plain_layer`. Raises ConversionError where there is no plain version.
    """
    if isinstance(module, SegmentedLayer):
        return plain_layer(prefix, [module], **residual)
    if isinstance(module, Parts):
        return plain_layer(prefix, cast("list[SegmentedLayer]", list(module)), **residual)
    if isinstance(module, Shared):
        return _shared(module, prefix)
    if isinstance(module, HeadedAttention):
        return _attention(module, prefix)
    if isinstance(module, Split):
        return _split(module, prefix)
    return copy.deepcopy(module).eval()


def takes_residual(module: nn.Module) -> bool:
    """Whether the module normalises its units, and may add a residual before their activation."""
    layer = module[0] if isinstance(module, Parts) else module
    return isinstance(layer, EideticBatchNorm) or getattr(layer, "norm", None) is not None


def plain_values(layer: EideticParameter | EideticPositionNetwork, prefix: Prefix) -> Tensor:
    """The tensor that the layer's forward gives, of the units that are kept."""
    kept = [(units.start // layer.shared, units.stop // layer.shared) for _, units in prefix.rows(layer.segments)]
    frozen = layer.get_buffer("frozen_weight")
    rows = [frozen[start:stop] for start, stop in kept]
    values = torch.cat(rows) if rows else frozen[:0]
    if isinstance(layer, EideticPositionNetwork):
        return values.t().contiguous()
    return values.movedim(0, cast(int, layer.dim)).contiguous()


def _attention(module: HeadedAttention, prefix: Prefix) -> nn.Module:
    """The attention of all kept heads at once."""
    projections = dict(module.named_children())
    plain = {name: plain_module(projections[name], prefix) for name in (*PROJECTIONS, "out_proj")}
    heads = prefix.kept[module.query.segments].present(prefix.task) // module.head_dim
    given = heads, module.head_dim, plain
    if isinstance(module, EideticMultiheadAttention):
        return attention.traced(attention.MultiheadAttention(*given, batch_first=module.batch_first))
    if not isinstance(module, (EideticRelativeAttention, EideticWindowAttention)):
        raise ConversionError(NO_PLAIN_VERSION.format(type(module).__name__))

    position_bias = cast("EideticParameter | EideticPositionNetwork", module.position_bias)
    tensors = {"position_bias": plain_values(position_bias, prefix), "positions": module.get_buffer("positions")}
    if isinstance(module, EideticRelativeAttention):
        return attention.traced(attention.RelativeAttention(*given, scale=module.scale, **tensors))
    kind = attention.WindowAttention
    if isinstance(module, EideticWindowAttentionV2):
        kind = attention.CosineWindowAttention
        tensors["logit_scale"] = plain_values(cast(EideticParameter, module.logit_scale), prefix)
    window, shift = module.window_size, module.shift_size
    return attention.traced(kind(*given, window=window, shift=shift, **tensors))


def _shared(module: Shared, prefix: Prefix) -> nn.Module:
    """The parts of a divided layer, which read the same input, and their concatenation."""
    layers = cast("list[SegmentedLayer]", list(module))
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(f"part{number}", (x,)) for number in range(len(layers))]
    graph.output(emit_concatenation(graph, made, unit_dim_from_end(layers[0])))
    parts = {f"part{number}": plain_layer(prefix, [part]) for number, part in enumerate(layers)}
    return fx.GraphModule(cast("dict[str, Any]", parts), graph, "Shared")


def _split(module: Split, prefix: Prefix) -> nn.Module:
    """The pieces, with as many units as are kept, each in memory of its own."""
    widths, pieces = module.sizes, [(number,) for number in range(len(module.sizes))]  # of the network's input
    if module.sources:
        kept = [replace(source, group=prefix.kept_of(source.group)) for source in module.sources]
        widths = [source.columns(prefix.task) for source in kept]
        pieces = module.pieces
    spans = [Span(sum(widths[:number]), sum(widths[: number + 1])) for number in range(len(widths))]

    graph = fx.Graph()
    x = graph.placeholder("x")
    made: list[fx.Node] = []
    for piece in pieces:
        parts = [emit_slice(graph, x, spans[number], module.unit_dim) for number in piece]
        if len(parts) == 1:
            made.append(graph.call_method("clone", (parts[0],)))
        else:
            made.append(emit_concatenation(graph, parts, module.unit_dim))
    graph.output(tuple(made))
    return fx.GraphModule(nn.Module(), graph, "Split")
