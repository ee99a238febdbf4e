"""Dropouts of a recorded graph: modules, one a place."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from ..wiring import rules
from ..wiring.diagnostics import at_node
from .layer_replacement import refuse_hooks

MODULES = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d, F.dropout3d: nn.Dropout3d}


def drop_by_module(module: nn.Module, graph: fx.Graph) -> None:
    """Calls of ``F.dropout(x, p, self.training)`` become modules, which know which units are frozen.

    What a call does in training is read off its node of the training trace (``meta["trained"]``).
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in MODULES:
            continue
        here, trained = _options(node), _options(node.meta["trained"])
        known = isinstance(trained["p"], (int, float)) and all(isinstance(o["training"], bool) for o in (here, trained))
        if not known or (here["training"] and here["p"]):
            raise at_node(node).refused(
                f"F.{node.target.__name__} with a rate that is computed, or that drops out in evaluation too (its "
                "training is True unless it is told, training=self.training), has no rule."
            )
        path = f"functional_{node.name}"
        module.add_module(path, MODULES[node.target](trained["p"] if trained["training"] else 0.0))
        node.op, node.target, node.args, node.kwargs = "call_module", path, (here["input"],), {}


def _options(node: fx.Node) -> dict[str, Any]:
    return {"p": 0.5, "training": True} | dict(zip(("input", "p", "training"), node.args)) | node.kwargs


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
