"""Compares the graphs of training and evaluation node by node: forward must do the same in both.

The converted network runs the graph of evaluation in both modes. What modules do differently in training (dropout,
BatchNorm) their replacements do as well. Python code under ``if self.training`` would be lost, so it is refused.
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
from .functionalize import functionalize
from .nodes import called_module, path_of

# Arguments that may differ, by position and name: the functions' rules know that training has other values.
_MAY_DIFFER = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    **dict.fromkeys(
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), (2, "training")
    ),
}


Pairs = list[tuple[fx.Node, fx.Node]]


def check_training(module: nn.Module, graph: fx.Graph, end: fx.Node, trained: fx.Graph, example: Tensor) -> None:
    """Raise ConversionError unless training computes the outputs in the same way; it names the first node that differs.

    Further outputs of training (auxiliary classifiers') are left out. Notes on each node of ``graph`` the node of
    training that corresponds to it, ``meta["trained"]``.

    Args:
        graph: the graph of evaluation.
        end: the node of ``graph`` whose value is wanted.
        trained: the graph of training, which changes: it is functionalized.
        example: an input, which ``trained`` is run on.
    """
    Example(module, trained, tolerant=True).run(example)
    functionalize(trained, "in training ")
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
    """The node of training for each node of evaluation, from the ends back to the input; and pairs that differ."""
    found: dict[fx.Node, fx.Node] = {}
    back: dict[fx.Node, fx.Node] = {}
    differing: Pairs = []
    waiting: Pairs = [(end, other)]
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
    """Note on each node of evaluation its node of training.

    Raises ConversionError for a node that runs without gradients in training, which a trace does not hold.
    """
    learned: set[fx.Node] = set()
    back = {other: node for node, other in found.items()}
    for other in trained.nodes:
        called = other.op == "call_module" and any(True for _ in called_module(module, other).parameters())
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
    """Pairs of the nodes that ``node`` and ``other`` read; None where the two do different things."""
    if node.op != other.op or not (node.target == other.target or _same_constant(module, node, other)):
        return None
    sides = [list(_leaves(_comparable(each))) for each in (node, other)]
    if len(sides[0]) != len(sides[1]):
        return None
    reads: Pairs = []
    for a, b in zip(*sides):
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            reads.append((a, b))
        elif type(a) is not type(b) or not (a is b or a == b or a != a):
            return None
    return reads


def _same_constant(module: nn.Module, node: fx.Node, other: fx.Node) -> bool:
    """Whether both read equal constants; a trace names these in the order in which it meets them."""
    if node.op != "get_attr" or "_tensor_constant" not in path_of(node):
        return False
    first, second = (getattr(module, path_of(each), None) for each in (node, other))
    return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)


def _comparable(node: fx.Node) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a node, without those that may differ."""
    position, name = _MAY_DIFFER.get(node.target, (None, None)) if node.op == "call_function" else (None, None)
    args = tuple(each for number, each in enumerate(node.args) if number != position)
    return args, {key: value for key, value in sorted(node.kwargs.items()) if key != name}


def _leaves(value: Any) -> Iterator[Any]:
    """Every value in nested arguments, and the length of each list, tuple or dictionary that holds some."""
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
    """Nodes of ``trained`` that may correspond to ``end``: each output, or the layer that was named as the head."""
    if end is not next(reversed(graph.nodes)).args[0]:
        return [node for node in trained.nodes if (node.op, node.target) == (end.op, end.target)][:1]
    returned = next(reversed(trained.nodes)).args[0]
    if isinstance(returned, fx.Node) and isinstance(returned.target, type) and issubclass(returned.target, tuple):
        returned = [*returned.args, *returned.kwargs.values()]  # a named tuple is made by a node of its own
    return [each for each in _leaves(returned) if isinstance(each, fx.Node)]


def _difference(node: fx.Node, other: fx.Node) -> ConversionError:
    """The error for a node of evaluation and the node of training that should be the same."""
    what = "does something else" if (node.op, node.target) != (other.op, other.target) else "is given something else"
    return at_node(other).refused(
        f"in training forward {what} here than in evaluation, where it is {at_node(node)}. Code under `if "
        "self.training` is lost in a converted network, which runs evaluation's. Put it into a module of its own and "
        "give that a rule (ek.register_rule; ek.rules.drops for one that drops branches and has p and mode, or timm's "
        "drop_prob and scale_by_keep)."
    )
