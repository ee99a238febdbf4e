"""Finds the layer of a recorded graph that becomes task 0's head."""

from __future__ import annotations

from typing import Any, cast

from torch import fx, nn

from ..checking import nearest, shown
from ..errors import ConversionError, InputError
from ..wiring.diagnostics import at_node
from .layer_replacement import is_plain, refuse_hooks
from .nodes import called_module


def find_head(module: nn.Module, graph: fx.Graph, head: str | bool | None) -> tuple[fx.Node, fx.Node, nn.Linear | None]:
    """(node of the features, node of the logits, the layer between them).

    Without such a layer, features and logits are the same node, and the layer is None.

    Args:
        graph: its nodes carry ``meta["shape"]``.
        head: as in :func:`.convert.convert`.

    Raises:
        ConversionError: there is no such layer or no such output.
        InputError: ``head`` is of the wrong kind.
    """
    name = type(module).__name__
    end: Any = next(reversed(graph.nodes)).args[0]
    if isinstance(head, str):
        calls = [node for node in graph.nodes if node.op == "call_module" and node.target == head]
        if len(calls) != 1 or not isinstance(module.get_submodule(head), nn.Linear):
            linear = [path for path, each in module.named_modules() if isinstance(each, nn.Linear)]
            raise ConversionError(
                f"head={shown(head)} must name a linear layer that {name}.forward calls once"
                f"{nearest(head, linear)}. Linear layers: {', '.join(linear) or 'none'}."
            )
        end = calls[0]
    elif head is not None and head is not False:
        raise InputError(f"head must be a layer's path, None (the last layer) or False (none); got {shown(head)}.")

    shape = end.meta.get("shape") if isinstance(end, fx.Node) else None
    if not isinstance(end, fx.Node) or shape is None or len(shape) != 2:
        what = type(end).__name__ if shape is None else f"a tensor of shape {list(shape)}"
        raise ConversionError(
            f"{name}.forward must return one tensor, logits [N, classes] or features [N, units]; it returned {what}. "
            'Name the layer that makes the logits (head="path"), or wrap the module in one that returns one tensor.'
        )
    last = end.args[0] if end.args else None
    if head is None and _is_softmax(end) and isinstance(last, fx.Node) and _is_linear(module, last):
        raise at_node(end).refused(
            f"it turns the logits of {last.target!r} into probabilities, which a head does not: name that layer, "
            f"convert(..., head={last.target!r}), and train with cross_entropy, which takes logits."
        )
    if head is False or not _is_linear(module, end):
        return end, end, None
    if len(end.users) > 1:
        raise at_node(end).refused("the head's output is used in other places too.")
    refuse_hooks(module, end)
    return end.all_input_nodes[0], end, cast(nn.Linear, called_module(module, end))


def _is_linear(module: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and is_plain(called_module(module, node), nn.Linear)


def _is_softmax(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", node.target) in ("softmax", "log_softmax") and bool(node.args)
