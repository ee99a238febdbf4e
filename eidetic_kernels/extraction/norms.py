"""Plain versions of what is taken over all units that a segment may see: LayerNorm, RMSNorm, GroupNorm, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from ..layers import EideticGroupNorm, EideticLayerNorm, EideticRMSNorm
from ..layers.prefix import EideticPrefix
from ..layout import Source, Span, positions, reads
from .graph import emit_as_rows, emit_concatenation, emit_read, emit_slice
from .pieces import filled
from .prefix import Prefix
from .products import spatial_dims


def layer_norm(prefix: Prefix, layers: Sequence[EideticLayerNorm]) -> nn.Module:
    """A torch LayerNorm or RMSNorm for each segment, over what it may see, of which its own columns are kept."""
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
        y = _emit_affine(graph, root, y, t, weight, bias)
        for part, size in enumerate(sizes):
            if size:
                span = Span(sum(sizes[:part]), sum(sizes[: part + 1]))
                made[part].append(y if size == sum(sizes) else emit_slice(graph, y, span, -1))

    y = emit_concatenation(graph, [each for part in made for each in part] or [x], -1)
    graph.output(y if first.unit_dim == -1 else graph.call_function(torch.movedim, (y, -1, 1)))
    return fx.GraphModule(root, graph, "PrefixNorm")


def _norm_of(
    layers: Sequence[EideticLayerNorm], segment: int, seen: int, own: int
) -> tuple[nn.Module, Tensor | None, Tensor | None]:
    """torch's norm over ``seen`` columns, and the scale and shift to apply to the segment's ``own`` ones.

    A norm that sees the segment's own columns only holds scale and shift itself; then both are None.
    """
    affine = zip(*(layer.affine_of(segment) for layer in layers))
    weight, bias = (None if tensors[0] is None else torch.cat(tensors) for tensors in affine)
    norm = _torchs(layers[0], seen, weight if own == seen else None, bias)
    return (norm, None, None) if own == seen else (norm, weight, bias)


def _torchs(layer: EideticLayerNorm, seen: int, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    """torch's norm like ``layer`` over ``seen`` units, with scale and shift unless ``weight`` is None."""
    like = torch.empty(0) if weight is None else weight
    if isinstance(layer, EideticRMSNorm):
        norm = nn.RMSNorm(seen, layer.eps if layer._own_eps else None, weight is not None, like.device, like.dtype)
    else:
        norm = nn.LayerNorm(seen, layer.eps, weight is not None, bias is not None, like.device, like.dtype)
    return norm if weight is None else filled(norm, weight, bias)


def _emit_affine(
    graph: fx.Graph, root: nn.Module, y: fx.Node, task: int, weight: Tensor | None, bias: Tensor | None
) -> fx.Node:
    """``y`` [*, C] times ``weight`` plus ``bias`` (unless None), which ``root`` holds for ``task``."""
    for name, tensor, operation in (("weight", weight, torch.mul), ("bias", bias, torch.add)):
        if tensor is not None:
            root.register_parameter(f"task{task}_{name}", nn.Parameter(tensor.clone()))
            y = graph.call_function(operation, (y, graph.get_attr(f"task{task}_{name}")))
    return y


def group_norm(prefix: Prefix, layers: Sequence[EideticGroupNorm]) -> nn.Module:
    """A torch GroupNorm for each segment: over its own groups, or over all channels that it may see.

    A norm's bits depend on how its input lies in memory, so each reads what it reads in the network: images with
    channels last, a single one and volumes with channels first.
    """
    groups = [prefix.kept_of(layer.segments) for layer in layers]
    columns, start = sum(group.present(prefix.task) for group in groups), 0
    volumes = any(spatial_dims(each) == 3 for layer in layers for each in prefix.producers(layer.segments))
    root, graph = nn.Module(), fx.Graph()
    x = graph.call_function(torch.movedim, (graph.placeholder("x"), 1, -1))
    made: list[fx.Node] = []
    for part, (layer, group) in enumerate(zip(layers, groups)):
        for t, units in prefix.rows(layer.segments):
            size, together = units.stop - units.start, layer.together_in
            span = group.span(t, not together and layer.forward_transfer[t])
            seen = span.stop - span.start
            affine = _affine(layer, units)
            name = f"task{t}" if len(layers) == 1 else f"part{part}_task{t}"
            root.add_module(name, _torchs_group_norm(layer, seen // together if together else 1, seen, size, affine))

            y = _emit_seen(graph, x, Span(start + span.start, start + span.stop), columns)
            y = graph.call_function(torch.movedim, (y, -1, 1))
            y = graph.call_method("contiguous", (y,)) if volumes else y
            y = graph.call_module(name, (y,))
            if seen > size:
                y = graph.call_function(torch.movedim, (emit_slice(graph, y, Span(seen - size, seen), 1), 1, -1))
                y = _emit_affine(graph, root, y, t, affine.get("weight"), affine.get("bias"))
                y = graph.call_function(torch.movedim, (y, -1, 1))
            made.append(y)
        start += group.present(prefix.task)
    y = emit_concatenation(graph, made, 1) if made else graph.call_function(torch.movedim, (x, -1, 1))
    if not all(group.present(prefix.task) for group in groups):  # beside images without channels it puts channels first
        y = graph.call_method("contiguous", (y,))
    graph.output(y)
    return fx.GraphModule(root, graph, "PrefixGroupNorm")


def _affine(layer: EideticGroupNorm, units: slice) -> dict[str, Tensor]:
    frozen = {name: getattr(layer, f"frozen_{name}") for name in ("weight", "bias")}
    return {name: tensor[units] for name, tensor in frozen.items() if tensor is not None}


def _torchs_group_norm(
    layer: EideticGroupNorm, groups: int, seen: int, own: int, affine: dict[str, Tensor]
) -> nn.GroupNorm:
    """torch's GroupNorm of ``seen`` channels, with scale and shift where they are all the segment's own."""
    if not affine or own < seen:
        return nn.GroupNorm(groups, seen, layer.eps, affine=False)
    like = affine["weight"]
    norm = nn.GroupNorm(groups, seen, layer.eps, device=like.device, dtype=like.dtype)
    if "bias" not in affine:
        norm.register_parameter("bias", None)
    return filled(norm, like, affine.get("bias"))


def reduction(prefix: Prefix, layers: Sequence[EideticPrefix]) -> nn.Module:
    """The reduction for each segment over what the segment may see, once for each of its units."""
    (layer,) = layers
    dim, group = layer.unit_dim, prefix.kept_of(layer.segments)
    root, graph = nn.Module(), fx.Graph()
    given = graph.placeholder("x")
    x = _emit_movedim(graph, given, dim, -1)
    made: list[fx.Node] = []
    for t, units in prefix.rows(layer.segments):
        y = _emit_seen(graph, x, group.span(t, layer.forward_transfer[t]), group.present(prefix.task))
        y = _emit_call(graph, layer, _emit_movedim(graph, y, -1, dim))
        y = _emit_movedim(graph, y, dim, -1)
        made.append(graph.call_function(torch.repeat_interleave, (y, units.stop - units.start), {"dim": -1}))
    graph.output(_emit_movedim(graph, emit_concatenation(graph, made, -1), -1, dim) if made else given)
    return fx.GraphModule(root, graph, "PrefixReduction")


def _emit_seen(graph: fx.Graph, x: fx.Node, span: Span, columns: int) -> fx.Node:
    """The units ``span`` of ``x`` [*, C], which has ``columns`` of them, lying in memory as in the network.

    It is copied if it is a part of ``x`` only.
    """
    return emit_as_rows(graph, x if span == (0, columns) else emit_slice(graph, x, span, -1), copy=span != (0, columns))


def _emit_movedim(graph: fx.Graph, x: fx.Node, source: int, to: int) -> fx.Node:
    return x if source == to else graph.call_function(torch.movedim, (x, source, to))


def _emit_call(graph: fx.Graph, layer: EideticPrefix, x: fx.Node) -> fx.Node:
    """What the layer's reduction makes of ``x``, in torch's own operations."""
    made = layer.reduce(cast(Any, fx.Proxy(x, GraphAppendingTracer(graph))))
    return cast(Any, made).node
