"""Whether forward does in training what it does in evaluation: the graphs of both are compared, node by node.

The converted network runs the graph of evaluation in both modes; what modules do otherwise in training (dropout,
BatchNorm) their twins do. Python code under ``if self.training`` would be lost, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..errors import ConversionError
from ..wiring.diagnostics import at_node
from .example import Example
from .functionalize import name_changes

# Arguments that may differ: whose rules know that training has other values.
_MAY_DIFFER = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), (2, "training")
    ),
}


Pairs = list[tuple[fx.Node, fx.Node]]


def same_in_training(module: nn.Module, graph: fx.Graph, end: fx.Node, trained: fx.Graph, example: Tensor) -> None:
    """Refuse ``graph`` up to ``end``, of evaluation, unless ``trained``, of training, makes ``end`` in the same way.

    Outputs of training beside the first that is ``end`` (auxiliary classifiers') are left out. Notes on each node which
    one of training it is, ``meta["trained"]``. Raises ConversionError naming the first node that differs.
    """
    Example(module, trained, tolerant=True).run(example)
    name_changes(trained, "in training ")
    attempts = [_followed(module, end, other) for other in _ends(graph, end, trained)]
    if not attempts:
        raise ConversionError(
            f"{type(module).__name__}.forward returns no tensor in training mode where evaluation returns "
            f"{end.name!r}: which of its outputs are the logits is not known. Name the layer that makes them "
            '(head="path").'
        )
    found, differing = next((each for each in attempts if not each[1]), attempts[0])
    if differing:
        order = {node: number for number, node in enumerate(graph.nodes)}
        raise _difference(*min(differing, key=lambda pair: order[pair[0]]))
    _note(module, trained, found)


def _followed(module: nn.Module, end: fx.Node, other: fx.Node) -> tuple[dict[fx.Node, fx.Node], Pairs]:
    """Which node of training is which of evaluation, from the ends back to the input; and which are none."""
    found, back, differing, waiting = {}, {}, [], [(end, other)]
    while waiting:
        node, other = waiting.pop()
        if node in found or other in back:
            reads = [] if found.get(node) is other else None
        else:
            reads = _reads(module, node, other)
        if reads is None:
            differing.append((node, other))
            continue
        found[node], back[other] = other, node
        waiting += reads
    return found, differing


def _note(module: nn.Module, trained: fx.Graph, found: dict[fx.Node, fx.Node]) -> None:
    """Tell each node of evaluation its own of training; refuse those that train no longer but would in a network."""
    learned: set[fx.Node] = set()
    back = {other: node for node, other in found.items()}
    for other in trained.nodes:
        called = other.op == "call_module" and any(True for _ in module.get_submodule(other.target).parameters())
        if called or other.op == "get_attr" or not learned.isdisjoint(other.all_input_nodes):
            learned.add(other)
        if other not in back:
            continue
        if "no_grad" in other.meta and other in learned:
            raise at_node(other).refused(
                "in training it runs with gradients switched off (torch.no_grad, set_grad_enabled), which a trace does "
                "not hold: they would flow here. Freeze parameters (requires_grad_(False)) or detach() instead."
            )
        back[other].meta["trained"] = other


def _reads(module: nn.Module, node: fx.Node, other: fx.Node) -> Pairs | None:
    """The nodes that ``node`` and ``other`` read, side by side; None where they do something else."""
    if node.op != other.op or not (node.target == other.target or _same_constant(module, node, other)):
        return None
    sides = [list(_leaves(_comparable(each))) for each in (node, other)]
    if len(sides[0]) != len(sides[1]):
        return None
    reads = []
    for a, b in zip(*sides):
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            reads.append((a, b))
        elif type(a) is not type(b) or not (a is b or a == b or a != a):
            return None
    return reads


def _same_constant(module: nn.Module, node: fx.Node, other: fx.Node) -> bool:
    """Tensors made while tracing are named in the order of their making."""
    if node.op != "get_attr" or "_tensor_constant" not in node.target:
        return False
    values = [getattr(module, each.target, None) for each in (node, other)]
    return all(isinstance(value, Tensor) for value in values) and torch.equal(*values)


def _comparable(node: fx.Node) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a node but those that may differ."""
    position, name = _MAY_DIFFER.get(node.target, (None, None)) if node.op == "call_function" else (None, None)
    args = tuple(each for number, each in enumerate(node.args) if number != position)
    return args, {key: value for key, value in sorted(node.kwargs.items()) if key != name}


def _leaves(value: Any) -> Iterator[Any]:
    """Everything in nested arguments, and what holds it."""
    if isinstance(value, dict):
        value = [each for pair in value.items() for each in pair]
    elif isinstance(value, slice):
        value = ["slice", value.start, value.stop, value.step]
    if not isinstance(value, (tuple, list)):
        yield value
        return
    yield len(value)
    for each in value:
        yield from _leaves(each)


def _ends(graph: fx.Graph, end: fx.Node, trained: fx.Graph) -> list[fx.Node]:
    """Nodes of ``trained`` that may be ``end``: what is returned, or each of several; or the layer that was named."""
    if end is not next(reversed(graph.nodes)).args[0]:
        return [node for node in trained.nodes if (node.op, node.target) == (end.op, end.target)][:1]
    returned = next(reversed(trained.nodes)).args[0]
    if isinstance(returned, fx.Node) and isinstance(returned.target, type) and issubclass(returned.target, tuple):
        returned = [*returned.args, *returned.kwargs.values()]  # a named tuple is made by a node of its own
    return [each for each in _leaves(returned) if isinstance(each, fx.Node)]


def _difference(node: fx.Node, other: fx.Node) -> ConversionError:
    what = "does something else" if (node.op, node.target) != (other.op, other.target) else "is given something else"
    return at_node(other).refused(
        f"in training forward {what} here than in evaluation, where it is {at_node(node)}. Code under `if "
        "self.training` is lost in a converted network, which runs evaluation's. Put it into a module of its own and "
        "give that a rule (ek.register_rule; ek.rules.drops for one that drops branches and has p and mode, or timm's "
        "drop_prob and scale_by_keep)."
    )
