"""Regions of ``torch.no_grad`` and ``torch.autocast``, which a capture has as graphs of their own, put in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ...wiring.diagnostics import at_node
from .nodes import args_of

AUTOCAST = "autocast"  # the meta entry of nodes in a region of torch.autocast: its settings


def inline_regions(root: nn.Module, graph: fx.Graph, trained: set[str]) -> None:
    """Put what runs under ``torch.no_grad`` or ``torch.autocast`` in place of its region.

    What ``no_grad`` returns is detached; nodes under ``autocast`` have its settings in their ``meta``.
    """
    for node in list(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
            continue
        count = 1 if name == "wrap_with_set_grad_enabled" else 4
        settings, body, given = args_of(node)[:count], args_of(node)[count], args_of(node)[count + 1 :]
        inner = getattr(root, body.target)
        inline_regions(inner, inner.graph, trained)
        detach = name == "wrap_with_set_grad_enabled" and not settings[0]
        if detach:
            _refuse_parameters(node, given, trained)
        places = [each for each in inner.graph.nodes if each.op == "placeholder"]
        known = dict(zip(places, given))
        with graph.inserting_before(node):
            for each in inner.graph.nodes:
                if each.op == "placeholder":
                    continue
                if each.op == "output":
                    made = [_left(graph, known[out], detach) for out in args_of(each)[0]]
                    break
                known[each] = graph.node_copy(each, known.__getitem__)
                if count > 1:
                    known[each].meta.setdefault(AUTOCAST, settings)
        for user in list(node.users):
            user.replace_all_uses_with(made[args_of(user)[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _left(graph: fx.Graph, node: fx.Node, detach: bool) -> fx.Node:
    if not detach:
        return node
    made = graph.call_function(torch.ops.aten.detach.default, (node,))
    made.meta = dict(node.meta)
    return made


def _refuse_parameters(node: fx.Node, given: Sequence[Any], trained: set[str]) -> None:
    for each in given:
        if isinstance(each, fx.Node) and each.name in trained:
            user = next(iter(node.users), node)
            raise at_node(user).refused(
                f"forward reads the parameter {each.name.removeprefix('p_')!r} under torch.no_grad, so it would never "
                "be trained. If it is meant to stay as it is, say so: ek.frozen(layer), or requires_grad_(False)."
            )
