"""Layers with parameters take the place of the operations that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import ConversionError
from ...layers import (
    EideticConvTranspose,
    EideticEmbedding,
    EideticLayerNorm,
    LayerNormParts,
    Parts,
    Shared,
)
from ...layers.prefix import EideticPrefix
from ...layout import Source
from ...wiring.diagnostics import at_node
from ..graphs.capture import SAMPLES
from ..graphs.nodes import args_of, shape_of
from ..owners.computed import Computed
from ..owners.layers import layer_path
from ..owners.maps import Owners
from ..owners.step import PRODUCERS, Layer
from .emitter import Emitter
from .making import MAKERS, owns, plain_layer
from .reading import columns_of, order_of, sources_of


def _prefix(emitter: Emitter, node: fx.Node, layer: Layer) -> fx.Node:
    """A mean or the like over all units."""
    sources = sources_of(emitter, columns_of(emitter, args_of(node)[0], layer.units, layer.options["dim"]), node.name)
    if len(sources) != 1:
        raise at_node(node).refused("a mean over units of several groups.")
    number = emitter.number_of(sources[0])
    path = f"prefix_{node.name}"
    new = EideticPrefix(
        emitter.grouped.widths[number], _Reducing(node.target, args_of(node)[1:], node.kwargs), layer.options["dim"]
    )
    emitter.module.add_module(path, new)
    emitter.groups[number].norms[f"body.{path}"] = new
    return emitter.graph.call_module(path, (emitter.argument(args_of(node)[0]),))


def layer_call(emitter: Emitter, node: fx.Node, layer: Layer) -> fx.Node:
    if layer.kind == "prefix":
        return _prefix(emitter, node, layer)
    make = MAKERS[layer.kind]
    path, given = layer.path, args_of(node)[1 if layer.kind == "embedding" else 0]
    if path in emitter.replaced:
        if layer.kind not in PRODUCERS and _followed(emitter, node, layer) != emitter.replaced[path]:
            raise at_node(node).refused(f"{path!r} is called with other units than before.")
        return emitter.graph.call_module(path, (emitter.argument(given),))
    computed = layer.options.get("computed")
    if computed is None and not owns(emitter, path, node):
        path = plain_layer(emitter, node, layer)
    old: Any = emitter.module.get_submodule(path)
    new = make(emitter, node, layer, old)
    for name, parameter in old.named_parameters(recurse=False):
        if name == "weight" and isinstance(new, (EideticConvTranspose, EideticEmbedding)):
            parameter = nn.Parameter(parameter.detach().transpose(0, 1).contiguous(), parameter.requires_grad)
        setattr(new, name, parameter)
    fresh = {name for name, _ in new.named_parameters(recurse=False)} - {name for name, _ in old.named_parameters()}
    if fresh and computed is None:
        raise at_node(node).refused(f"{path!r} has no {', '.join(sorted(fresh))}, which its layer would train.")
    for name, buffer in old.named_buffers(recurse=False):
        new.register_buffer(name, buffer)
    if computed is not None:
        _compute(emitter, path, new, computed)
    new.train(old.training)
    rank = len(shape_of(node))
    last = layer.kind == "layer_norm" or (layer.kind == "prelu" and layer.options["dim"] == -1)
    emitter.replaced[path] = _followed(emitter, node, layer) if layer.kind not in PRODUCERS else None
    if layer.kind in PRODUCERS:
        runs = emitter.grouped.runs[layer.options["weight"]]
        parts = {path: new}
        if len(runs) > 1:
            shared = emitter.split[f"body.{path}"] = Shared(new, [run.width for run in runs])
            parts = {f"{path}.{i}": part for i, part in enumerate(shared)}
        if layer.kind != "embedding":
            _unbiased(emitter, node, runs, list(parts.values()))
        columns = layer.options["columns"]
        laid = columns_of(emitter, given, columns, -1 if layer.kind == "linear" else 1)
        sources = sources_of(emitter, laid, path, heads=layer.reads.coarse)
        order = order_of(emitter, given, columns, -1 if layer.kind == "linear" else 1)
        for run, (name, part) in zip(runs, parts.items()):
            emitter.groups[run.group].producers[f"body.{name}"] = part
            emitter.sources[f"body.{name}"] = sources
            if order is not None:
                emitter.orders[f"body.{name}"] = order
        if layer.kind == "linear" and (rank > 2 or len(layer.reads.samples.flatten()) != SAMPLES):
            emitter.last |= {f"body.{name}" for name in (path, *parts)}
    else:
        dim = _unit_dim(layer)
        sources = sources_of(emitter, columns_of(emitter, args_of(node)[0], layer.units, dim), path)
        order = order_of(emitter, args_of(node)[0], layer.units, dim)
        if len(sources) == 1 and order is None:
            number = emitter.number_of(sources[0])
            emitter.groups[number].norms[f"body.{path}"] = new
        else:
            widths = [emitter.grouped.widths[emitter.number_of(source)] * source.block for source in sources]
            if layer.kind == "grouped" and order is not None and old.groups != old.out_channels:
                raise at_node(node).refused("its groups of channels are put together by a shuffle.")
            if layer.kind == "grouped" and old.in_channels != old.out_channels:
                widths = [width * old.out_channels // old.in_channels for width in widths]
            units = (torch.arange(sum(widths)) if order is None else torch.tensor(order).argsort()).split(widths)
            kind = LayerNormParts if isinstance(new, EideticLayerNorm) else Parts
            parts = emitter.split[f"body.{path}"] = kind(new, units)
            for i, (source, part) in enumerate(zip(sources, parts)):
                emitter.groups[emitter.number_of(source)].norms[f"body.{path}.{i}"] = part
        if last:
            emitter.last.add(f"body.{path}")
    emitter.module.set_submodule(path, new)
    return emitter.graph.call_module(path, (emitter.argument(given),))


def _compute(emitter: Emitter, path: str, new: Any, computed: Computed) -> None:
    """Let ``new`` compute its weight as the module at ``path`` did."""
    new.weight = emitter.analysis.held(computed.weight).value
    extras = {}
    for each in computed.extras:
        owner, _, name = each.rpartition(".")
        if owner != path and layer_path(each) != path:
            raise ConversionError(f"{path!r}: its weight is computed of {each!r}, which is another module's.")
        if name in new._parameters:
            del new._parameters[name]
        extras[name] = emitter.analysis.held(each).value
    new.compute_weight(computed.rule, extras)


def _followed(emitter: Emitter, node: fx.Node, layer: Layer) -> tuple[Source, ...]:
    laid = columns_of(emitter, args_of(node)[0], layer.units, _unit_dim(layer))
    return sources_of(emitter, laid, layer.path)


def _unit_dim(layer: Layer) -> int:
    """The dimension of the units that a layer follows."""
    return layer.options["dim"] if layer.kind == "prelu" else -1 if layer.kind == "layer_norm" else 1


def _unbiased(emitter: Emitter, node: fx.Node, runs: Sequence[Any], parts: Sequence[Any]) -> None:
    """Take the bias of parts where it is fixed: zeros between a query's and a value's."""
    bias = emitter.analysis.value(args_of(node)[2]) if len(node.args) > 2 else None
    if not isinstance(bias, Owners):
        return
    units = bias.units.flatten()
    for run, part in zip(runs, parts):
        own = units[run.start : run.start + run.width]
        if bool((own < 0).all()):
            if bool(part.bias.detach().any()):
                raise at_node(node).refused("a part of its bias is fixed, and not zero.")
            part.bias = part.frozen_bias = None
        elif bool((own < 0).any()):
            raise at_node(node).refused("a part of its bias is fixed for some units of a group.")


class _Reducing:
    """An operation with all its arguments but the first."""

    def __init__(self, target: Any, args: Sequence[Any], kwargs: Any):
        self.target, self.args, self.kwargs = target, tuple(args), dict(kwargs)

    def __call__(self, x: Tensor) -> Tensor:
        return self.target(x, *self.args, **self.kwargs)
