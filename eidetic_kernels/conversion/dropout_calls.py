"""Dropouts of a recorded graph become modules, one for each place."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from ..wiring import rules
from ..wiring.diagnostics import at_node
from .layer_replacement import refuse_hooks
from .nodes import called_module, path_of

MODULES: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
}


def replace_dropout_calls(module: nn.Module, graph: fx.Graph) -> None:
    """Replace calls of ``F.dropout(x, p, self.training)`` by modules, in place, which know which units are frozen.

    What a call does in training is read off its node in the graph of training (``meta["trained"]``). Raises
    ConversionError for a rate that is computed, and for dropout in evaluation.
    """
    for node in list(graph.nodes):
        kind = MODULES.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        here, trained = _options(node), _options(node.meta["trained"])
        known = isinstance(trained["p"], (int, float)) and all(isinstance(o["training"], bool) for o in (here, trained))
        if not known or (here["training"] and here["p"]):
            name = getattr(node.target, "__name__", node.target)
            raise at_node(node).refused(
                f"F.{name} with a rate that is computed, or that drops out in evaluation too (its "
                "training is True unless it is told, training=self.training), has no rule."
            )
        path = f"functional_{node.name}"
        module.add_module(path, kind(trained["p"] if trained["training"] else 0.0))
        node.op, node.target, node.args, node.kwargs = "call_module", path, (here["input"],), {}


def unshare_dropouts(module: nn.Module, graph: fx.Graph) -> None:
    """Give each place a copy of a dropout module that is called in several: each place has frozen units of its own."""
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_module" and rules.module_rule(called_module(module, node)) is rules.drops:
            refuse_hooks(module, node)
            path = path_of(node)
            while path in seen:
                path += "_again"
            if path != node.target:
                module.set_submodule(path, copy.deepcopy(called_module(module, node)))
                node.target = path
            seen.add(path)


def _options(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by name, defaults included."""
    return {"p": 0.5, "training": True} | dict(zip(("input", "p", "training"), node.args)) | dict(node.kwargs)
