"""Compares the graphs of evaluation and training node by node: forward must do the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...errors import ConversionError
from ...wiring.diagnostics import at_node
from .capture import Captured
from .nodes import args_of, leaves, operation
from .regions import AUTOCAST

# Arguments that may differ, by position: what training does there, a layer of ours does as well.
_MAY_DIFFER = {"dropout": (1, 2), "feature_dropout": (1, 2), "batch_norm": (5,), "scaled_dot_product_attention": (4,)}


def in_training(captured: Captured, end: fx.Node, trained: Captured, ends: Sequence[fx.Node]) -> dict[Any, fx.Node]:
    """The node of the graph of training for each node that ``end`` needs; one of ``ends`` there stands for it.

    Where training drops units after a node and evaluation does nothing, the node stands for the dropout as well.

    Raises ConversionError for the first node that does something else in training.
    """
    failures = []
    for other in ends:
        found: dict[Any, fx.Node] = {}
        differing = _follow(captured, end, trained, other, found)
        if differing is None:
            return found
        failures.append(differing)
    if not failures:
        raise ConversionError("forward returns no tensor in training.")
    node, other = failures[0]
    raise at_node(other).refused(
        f"in training forward does something else here ({_shown(other)}) than in evaluation ({_shown(node)}), so "
        "what it does in training would be lost. Give that part a module of its own with a rule (ek.register_rule), or "
        "leave it out."
    )


def _shown(node: fx.Node) -> str:
    numbers = [str(each) for each in leaves([node.args, node.kwargs]) if isinstance(each, (int, float))]
    return f"{operation(node)} {', '.join(numbers)}".strip() if node.op == "call_function" else node.name


def _follow(
    captured: Captured, end: fx.Node, trained: Captured, other: fx.Node, found: dict[Any, fx.Node]
) -> tuple[fx.Node, fx.Node] | None:
    order = {node: number for number, node in enumerate(captured.graph.nodes)}
    waiting, differing = [((end, other), (end, other))], []  # pairs, and who reads them
    dropped_by: dict[fx.Node, fx.Node] = {}  # the node of evaluation for each dropout in training: one draws once
    while waiting:
        pair, readers = waiting.pop()
        node, other = (_numbers(each) for each in pair)
        if operation(node) != "dropout" and operation(other) == "dropout":
            dropped, other = other, _numbers(args_of(other)[0])
            dropped_by.setdefault(dropped, node)
            if found.setdefault((node, "dropped"), dropped) is not dropped:
                differing.append((node, dropped))
        if node in found:
            if found[node] is not other:
                differing.append((node, other))
            continue
        pairs = _reads(captured, node, trained, other)
        if pairs is None:
            named = node.op != "placeholder" and other.op != "placeholder"
            differing.append((node, other) if named else readers)
            continue
        if _drops(other) and dropped_by.setdefault(other, node) is not node:
            differing.append((node, other))
        found[node] = other
        waiting += [(each, (node, other)) for each in pairs]
    return min(differing, key=lambda pair: order[pair[0]]) if differing else None


def _arguments(node: fx.Node) -> list[Any]:
    """The node's arguments in the order of its operation's schema, defaults included."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *(value for _, value in sorted(node.kwargs.items()))]
    given = list(node.args)
    for argument in node.target._schema.arguments[len(given) :]:
        given.append(node.kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None))
    return given


def _numbers(node: fx.Node) -> fx.Node:
    """The node whose numbers ``node`` gives, in other memory perhaps."""
    while node.op == "call_function" and operation(node) in ("contiguous", "clone"):
        node = args_of(node)[0]
    return node


def _reads(captured: Captured, node: fx.Node, trained: Captured, other: fx.Node) -> list | None:
    if node.op != other.op or operation(node) != operation(other):
        return None
    if node.meta.get(AUTOCAST) != other.meta.get(AUTOCAST):
        return None
    if node.op == "placeholder":
        return [] if _same_tensor(captured, node, trained, other) else None
    skip = _MAY_DIFFER.get(operation(node), ())
    sides = [
        list(leaves([each for number, each in enumerate(_arguments(n)) if number not in skip])) for n in (node, other)
    ]
    if len(sides[0]) != len(sides[1]):
        return None
    pairs = []
    for a, b in zip(*sides):
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            pairs.append((a, b))
        elif type(a) is not type(b) or not (a is b or a == b or a != a):
            return None
    return pairs


def _drops(node: fx.Node) -> bool:
    return operation(node) in ("dropout", "feature_dropout", "eidetic_kernels::mark")


def _same_tensor(captured: Captured, node: fx.Node, trained: Captured, other: fx.Node) -> bool:
    """Whether two placeholders are the same input, or the same tensor of the network; constants by their numbers."""
    paths = captured.held.get(node.name, node.name), trained.held.get(other.name, other.name)
    made = captured.constants.get(paths[0]), trained.constants.get(paths[1])
    if made[0] is None or made[1] is None:
        return made[0] is made[1] and paths[0] == paths[1]
    return made[0].dtype == made[1].dtype and torch.equal(made[0], made[1])
