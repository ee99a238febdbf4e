"""Calls of ``F.scaled_dot_product_attention`` become modules, which know which task each head belongs to."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from ..layers import EideticScaledDotProduct
from ..wiring.diagnostics import at_node


def replace_attention_calls(module: nn.Module, graph: fx.Graph) -> None:
    """Replace the calls in ``graph`` of ``module`` by modules, in place.

    The rate of dropout is read off the call's node in the graph of training (``meta["trained"]``). Raises
    ConversionError for attention with a mask, grouped queries, or numbers that a trace does not hold.
    """
    calls = [node for node in graph.nodes if node.target is F.scaled_dot_product_attention]
    for number, node in enumerate(calls):
        options, dropout = _options(node), _options(node.meta["trained"])["dropout_p"]
        q, k, v, mask, gqa = (options[name] for name in ("query", "key", "value", "attn_mask", "enable_gqa"))
        fixed = not any(isinstance(options[name], fx.Node) for name in ("is_causal", "scale"))
        if mask is not None or gqa or not fixed or not isinstance(dropout, (int, float)):
            raise at_node(node).refused(
                "attention with a mask (is_causal is understood), with fewer keys than queries (enable_gqa), "
                "with a scale made of sizes, which pruning changes, or whose dropout in training cannot be read off a "
                "trace has no rule."
            )
        path = f"scaled_dot_product_attention_{number}"
        module.add_module(path, EideticScaledDotProduct(dropout))
        node.op, node.target, node.args = "call_module", path, (q, k, v, options["is_causal"])
        node.kwargs = {"scale": options["scale"]}


def _options(node: fx.Node) -> dict[str, Any]:
    """The call's arguments by name, defaults included."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    defaults = dict.fromkeys(names) | {"dropout_p": 0.0, "is_causal": False, "enable_gqa": False}
    return defaults | dict(zip(names, node.args)) | dict(node.kwargs)
