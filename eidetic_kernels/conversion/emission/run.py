"""Emits a graph, node by node."""

from __future__ import annotations

import operator
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import ConversionError
from ...layers.fixed import FixedTensor
from ...wiring.diagnostics import at_node
from ..graphs.nodes import args_of, operation
from ..graphs.regions import AUTOCAST
from ..owners.maps import Owners
from .dropping import attention, drop_after, dropout, mark
from .emitter import Emitter
from .layers import layer_call
from .masks import BROADCASTING, broadcast_arguments
from .resizing import RESIZING
from .shuffles import follow_shuffle, note_layout


def emit_graph(emitter: Emitter, features: fx.Node) -> None:
    captured = emitter.analysis.captured
    needed = _needed(features, emitter.by_node)
    for name, place in captured.inputs.items():
        emitter.nodes[place] = emitter.graph.placeholder(name)
    for node in captured.graph.nodes:
        if node.op in ("output", "placeholder") or node not in needed:  # tensors are read where they are used
            continue
        _enter(emitter, node.meta.get(AUTOCAST))
        if node not in emitter.fixed and follow_shuffle(emitter, node):
            continue
        else:
            if any(each in emitter.apart for each in node.all_input_nodes):
                raise at_node(node).refused("units of several groups were taken apart, and are used so.")
            note_layout(emitter, node)
            emitter.nodes[node] = _emitted(emitter, node)
            if (node, "dropped") in emitter.trained:
                drop_after(emitter, node, emitter.trained[node, "dropped"])
    _enter(emitter, None)
    emitter.graph.output(emitter.nodes[features])


def _emitted(emitter: Emitter, node: fx.Node) -> Any:
    try:
        return _emit(emitter, node)
    except ConversionError as error:
        if str(error).startswith(("node ", "module ")):
            raise
        raise at_node(node).refused(f"{error}") from error


def _enter(emitter: Emitter, settings: Any) -> None:
    """Go on in the region of ``torch.autocast`` with these settings."""
    if settings == emitter.autocast:
        return
    if emitter.entered is not None:
        emitter.free(emitter.graph.call_function(torch.amp.autocast_mode._exit_autocast, (emitter.entered,)))
    emitter.autocast, emitter.entered = settings, None
    if settings is not None:
        emitter.entered = emitter.free(emitter.graph.call_function(torch.amp.autocast_mode._enter_autocast, settings))


def _emit(emitter: Emitter, node: fx.Node) -> Any:
    name = operation(node)
    if node in emitter.by_node:
        return layer_call(emitter, node, emitter.by_node[node])
    if name == "getitem":
        return emitter.graph.call_function(operator.getitem, (emitter.argument(args_of(node)[0]), args_of(node)[1]))
    value = emitter.analysis.values[node]
    if not isinstance(value, (Owners, list, tuple)) and not isinstance(value, Tensor):
        if name in ("_assert_tensor_metadata", "_assert_scalar") or value is None:
            return None
    if isinstance(value, Tensor):  # made of fixed tensors alone
        return _fixed(emitter, node, value)
    if name in ("dropout", "feature_dropout"):
        return dropout(emitter, node)
    if name == "eidetic_kernels::mark":
        return mark(emitter, node)
    if name == "scaled_dot_product_attention":
        made = attention(emitter, node)
        if made is not None:
            return made
    args, kwargs = list(node.args), dict(node.kwargs)
    if name.rstrip("_") in RESIZING and any(left is not None for left in _all_elastic(emitter, node)):
        return RESIZING[name.rstrip("_")](emitter, node)
    made = broadcast_arguments(emitter, node) if name in BROADCASTING else emitter.argument(args)
    return emitter.copy(node, made, {k: emitter.argument(v) for k, v in kwargs.items()})


def _fixed(emitter: Emitter, node: fx.Node, value: Tensor) -> fx.Node:
    """A tensor that was computed once."""
    path = f"_fixed_{len([each for each in emitter.nodes if each in emitter.fixed])}"
    if value.dim() not in (4, 5):
        emitter.module.register_buffer(path, value.detach().clone())
        return emitter.graph.get_attr(path)
    emitter.module.add_module(path, FixedTensor(value.detach().clone()))
    made = emitter.graph.call_module(path)
    made.meta["dropped"] = node
    return made


def _all_elastic(emitter: Emitter, node: fx.Node) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for each in (node, *node.all_input_nodes):
        if emitter.owners(each) is not None:
            found += emitter.elastic(each)
        elif isinstance(emitter.analysis.values.get(each), (list, tuple)):
            for piece in emitter.analysis.values[each]:
                if isinstance(piece, Owners):
                    found += emitter.world.kept(piece, each)
    return found


def _needed(node: fx.Node, layers: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that ``node`` is made of; of layers only what they read, their tensors are their own."""
    found, waiting = set(), [node]
    while waiting:
        each = waiting.pop()
        if each not in found:
            found.add(each)
            read = args_of(each)[1:2] if operation(each) == "embedding" else args_of(each)[:1]
            waiting += read if each in layers else each.all_input_nodes
    return found
