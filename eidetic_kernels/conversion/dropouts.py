"""Dropouts of a recorded graph: one a place."""

from __future__ import annotations

import copy

from torch import fx, nn

from .. import rules
from .twins import refuse_hooks


def unshare_dropouts(module: nn.Module, graph: fx.Graph) -> None:
    """One dropout module called in several places becomes one a place: each has frozen units of its own."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module" and rules.module_rule(module.get_submodule(node.target)) is rules.drops:
            refuse_hooks(module, node)
            path = node.target
            while path in seen:
                path += "_again"
            if path != node.target:
                module.set_submodule(path, copy.deepcopy(module.get_submodule(node.target)))
                node.target = path
            seen.add(path)
