"""Changes in place become new values: whatever reads a tensor after it was changed reads the result of the change."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ...wiring.diagnostics import at_node
from .nodes import args_of, target_of

# Operations that may return the memory that they were given.
_MAY_ALIAS = (
    *("contiguous", "reshape", "flatten", "to", "type_as", "expand_as", "view_as", "reshape_as", "getitem"),
    *("dropout", "feature_dropout", "eidetic_kernels::mark"),  # which return what they are given, in evaluation
)


def functionalize(graph: fx.Graph, fixed: Container[fx.Node] = ()) -> None:
    """Rewrite ``graph`` in place so that no node depends on when another one runs.

    ``fixed``: nodes whose values are known, which are left alone. Raises ConversionError where what was changed is read
    under another name: as the whole that it is a part of, or as another part.
    """
    latest: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, fx.Node] = {}  # what each view was taken of
    stale: dict[fx.Node, fx.Node] = {}  # views that a change in place has gone past

    def read(node: fx.Node) -> fx.Node:
        while node in latest:
            node = latest[node]
        return node

    for node in list(graph.nodes):
        if node.op not in ("call_function", "output") or node in fixed:
            continue
        given = args_of(node)[0] if node.args and isinstance(args_of(node)[0], fx.Node) else None
        node.args, node.kwargs = map_arg(node.args, read), map_arg(node.kwargs, read)
        for each in node.all_input_nodes:
            if each in stale:
                raise at_node(stale[each]).refused(
                    f"it changes a tensor in place that {node.name!r} reads afterwards under another name "
                    f"({each.name!r}), as the whole of which it is a part or as another part: which units it changes "
                    "cannot be followed. Write it as a new tensor."
                )
        target = node.target
        if given is None or node.op == "output" or not isinstance(target, torch._ops.OpOverload):
            continue
        given = args_of(node)[0]
        if not _changes_first(target):
            if _aliases(node) and given not in fixed:
                views[node] = given
            continue
        if target is torch.ops.aten.copy_.default and _alike(given, args_of(node)[1]):
            source = args_of(node)[1]
            latest[given] = source
            if views.get(source) is given:  # what is written is made of what it replaces
                del views[source]
            _write_back(graph, source, given, views, latest, stale)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            continue
        functional = _functional(target)
        if functional is None:
            raise at_node(node).refused(f"{target} changes a tensor in place, and has no other form.")
        node.target = functional
        changed = _as_before(graph, node, given) if functional._schema.name in _BOOLEAN else node
        latest[given] = changed
        _write_back(graph, changed, given, views, latest, stale)


def _write_back(
    graph: fx.Graph,
    node: fx.Node,
    given: fx.Node,
    views: dict[fx.Node, fx.Node],
    latest: dict[fx.Node, fx.Node],
    stale: dict[fx.Node, fx.Node],
) -> None:
    """Put what ``node`` makes of ``given`` into what that is a view of."""
    changed, view = node, given
    while view in views:
        whole = views[view]
        for other, of in views.items():
            if of is whole and other is not view:
                stale[other] = node
        scatter = _SCATTER.get(target_of(view))
        place = node if changed is node else changed
        if scatter is None:
            stale[whole] = node
            return
        with graph.inserting_after(place):
            changed = graph.call_function(scatter, (whole, changed, *args_of(view)[1:]), dict(view.kwargs))
        changed.meta = dict(whole.meta)
        latest[whole] = changed
        view = whole
    for other, of in views.items():
        if of is given:
            stale[other] = node


def _as_before(graph: fx.Graph, node: fx.Node, given: fx.Node) -> fx.Node:
    """What a comparison in place leaves in ``given``: numbers of its dtype."""
    with graph.inserting_after(node):
        made = graph.call_function(torch.ops.aten.to.dtype, (node, given.meta["val"].dtype))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, lambda user: user is not made)
    return made


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether ``a`` with the numbers of ``b`` is ``b``."""
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype


_SCATTER = {
    torch.ops.aten.slice.Tensor: torch.ops.aten.slice_scatter.default,
    torch.ops.aten.select.int: torch.ops.aten.select_scatter.default,
}


def _aliases(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", "") == "getitem"
    name = target._schema.name.removeprefix("aten::")
    returns = target._schema.returns
    return name in _MAY_ALIAS or any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _changes_first(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and arguments[0].alias_info.is_write


_BOOLEAN = tuple(f"aten::{name}" for name in "eq ne lt le gt ge logical_and logical_or logical_xor logical_not".split())
_OTHERWISE = {  # what is called otherwise when it changes nothing
    torch.ops.aten.pow_.Tensor: torch.ops.aten.pow.Tensor_Tensor,
    torch.ops.aten.pow_.Scalar: torch.ops.aten.pow.Tensor_Scalar,
    torch.ops.aten.bernoulli_.float: torch.ops.aten.bernoulli.p,
    torch.ops.aten.uniform_.default: torch.ops.aten.uniform.default,
    torch.ops.aten.normal_.default: torch.ops.aten.normal_functional.default,
}


def _functional(target: torch._ops.OpOverload) -> Any:
    if target in _OTHERWISE:
        return _OTHERWISE[target]
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    return getattr(packet, target._overloadname, None)
