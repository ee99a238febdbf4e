"""Changes in place become new values: whatever reads a tensor after it was changed reads the result of the change."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from ..errors import ConversionError

# Operations that may return the memory that they were given.
_MAY_ALIAS = ("contiguous", "reshape", "flatten", "to", "type_as", "expand_as", "view_as", "reshape_as", "getitem")


def functionalize(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place so that no node depends on when another one runs.

    Raises ConversionError where what was changed is read under another name: as the whole that it is a part of.
    """
    latest: dict[fx.Node, fx.Node] = {}
    base: dict[fx.Node, fx.Node] = {}
    changed: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "output":
            node.args = map_arg(node.args, lambda each: _read(each, latest, base, changed, node))
            continue
        if node.op != "call_function":
            continue
        node.args = map_arg(node.args, lambda each: _read(each, latest, base, changed, node))
        node.kwargs = map_arg(node.kwargs, lambda each: _read(each, latest, base, changed, node))
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if first is not None and _aliases(node):
            base[node] = base.get(first, first)
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and _changes_first(target) and first is not None:
            if first in base:  # a view: whoever reads the whole, or another view of it, does not see the change
                changed[base[first]] = node
            functional = _functional(target)
            if functional is None:
                raise ConversionError(f"{node.name}: {target} changes a tensor in place, and has no other form.")
            node.target = functional
            for old, new in list(latest.items()):
                if new is first:
                    latest[old] = node
            latest[first] = node


def _read(node: fx.Node, latest: dict, base: dict, changed: dict, reader: fx.Node) -> fx.Node:
    root = base.get(node, node)
    if root in changed and latest.get(node, node) is not changed[root] and base.get(latest.get(node, node)) is None:
        raise ConversionError(
            f"{changed[root].name} changes in place a part of what {root.name} made, and {reader.name} reads that "
            "afterwards: which units it changes cannot be followed. Write it as a new tensor."
        )
    return latest.get(node, node)


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


def _functional(target: torch._ops.OpOverload) -> Any:
    name = target._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    return getattr(packet, target._overloadname, None)
