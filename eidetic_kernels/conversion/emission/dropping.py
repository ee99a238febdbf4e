"""Dropout and attention, which know the units that arrive."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import fx

from ...layers import EideticDropout, EideticScaledDotProduct
from ...tasks.joining import aware_of_segments
from ...wiring.diagnostics import at_node
from ..graphs.capture import SAMPLES
from ..graphs.marks import drops
from ..graphs.nodes import args_of, operation, shape_of
from ..owners.maps import small
from .emitter import Emitter
from .places import set_module
from .reading import sources_of


def dropout(emitter: Emitter, node: fx.Node) -> Any:
    """A call of dropout; what it does in training is read off the graph of training."""
    given, other = args_of(node)[0], emitter.trained[node]
    p, on = args_of(other)[1], args_of(other)[2]
    if not isinstance(p, (int, float)) or (args_of(node)[2] and args_of(node)[1]):
        reason = "it drops out in evaluation too, or by a rate that is computed: give it training=self.training."
        raise at_node(node).refused(reason)
    if not (on and p):
        return emitter.argument(given)
    path = f"functional_{node.name}"
    return _dropping(emitter, node, path, EideticDropout(p, channels=operation(node) == "feature_dropout"), given)


def drop_after(emitter: Emitter, node: fx.Node, dropout: fx.Node) -> None:
    """What training alone drops of what ``node`` made."""
    p, on = args_of(dropout)[1], args_of(dropout)[2]
    if not isinstance(p, (int, float)):
        raise at_node(node).refused("dropout with a rate that is computed.")
    if on and p:
        emitter.nodes[node] = _dropping(emitter, node, f"dropped_{node.name}", EideticDropout(p), node)
        emitter.nodes[node].meta["source"] = node


def mark(emitter: Emitter, node: fx.Node) -> Any:
    """A module that drops."""
    path = args_of(node)[1]
    old = emitter.dropping.setdefault(path, emitter.module.get_submodule(path))  # which another call may have replaced
    if not drops(old):
        return emitter.graph.call_module(path, (emitter.argument(args_of(node)[0]),))
    while f"body.{path}" in emitter.dropouts:
        path += "_again"
    return _dropping(emitter, node, path, aware_of_segments(copy.deepcopy(old)), args_of(node)[0])


def _dropping(emitter: Emitter, node: fx.Node, path: str, layer: Any, given: fx.Node) -> fx.Node:
    """A call of ``layer``, which drops of what ``given`` made."""
    if not layer.p:
        return emitter.argument(given)
    x, rank = emitter.owners(given), len(shape_of(given))
    numbers = small(emitter.numbers(x.units))
    loose = [d for d, left in enumerate(emitter.elastic(given)) if left is not None]
    loose = loose or [d for d, size in enumerate(numbers.shape) if size > 1]
    if not loose:  # a single unit: where units usually lie
        loose = [d for d in (1, rank - 1) if x.shape[d] == 1][:1]
    if not x.owned or len(loose) != 1:
        raise at_node(node).refused("dropout of what is no task's.")
    (dim,) = loose
    columns = x.units
    for d in x.unit_dims:
        if d != dim:
            columns = columns.narrow(d, 0, 1)
    columns = columns.flatten()
    folded = x.samples.shape[dim] > 1  # samples and heads side by side, as torch's attention has them
    if folded:
        columns = columns[: len(columns) // SAMPLES]
    emitter.dropouts[f"body.{path}"] = sources_of(emitter, columns, node.name, heads=True)
    layer.unit_dim = 1 if folded or dim == 1 else dim - rank
    set_module(emitter.module, path, layer)
    if not folded:
        return emitter.graph.call_module(path, (emitter.argument(given),))
    if dim or not bool((x.samples.flatten() == torch.arange(SAMPLES).repeat_interleave(len(columns))).all()):
        raise at_node(node).refused("dropout of samples and units that lie in one dimension.")
    whole = emitter.argument(given)
    batch = emitter.size(next(iter(emitter.analysis.captured.inputs.values())), 0)
    rest = [emitter.free(emitter.size(given, d)) for d in range(1, rank)]
    apart = emitter.free(emitter.graph.call_function(torch.ops.aten.reshape.default, (whole, [batch, -1, *rest])))
    dropped = emitter.free(emitter.graph.call_module(path, (apart,)))
    made = emitter.graph.call_function(torch.ops.aten.flatten.using_ints, (dropped, 0, 1))
    made.meta["dropped"] = given
    return made


def attention(emitter: Emitter, node: fx.Node) -> Any:
    q = emitter.owners(args_of(node)[0])
    rank = len(q.shape)
    if len(node.args) > 3 and args_of(node)[3] is not None or q.units.shape[rank - 3] == 1:
        return None
    if q.samples.shape[rank - 3] > 1:  # samples and heads in one dimension
        return None
    v = emitter.owners(args_of(node)[2])
    columns = v.units.narrow(rank - 2, 0, 1).flatten()
    sources = sources_of(emitter, columns, node.name)
    if len(sources) != 1 or sources[0].block != 1:
        return None
    path = f"attention_{node.name}"
    other = emitter.trained[node]
    p = args_of(other)[4] if len(other.args) > 4 else other.kwargs.get("dropout_p", 0.0)
    emitter.module.add_module(path, EideticScaledDotProduct(cast(float, p)))
    emitter.dropouts[f"body.{path}"] = sources
    args = [emitter.argument(each) for each in args_of(node)[:3]]
    causal = args_of(node)[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    return emitter.graph.call_module(path, (*args, causal), {"scale": node.kwargs.get("scale")})
