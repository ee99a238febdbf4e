"""Changes in place become new values: whatever reads a tensor after it was changed reads the result of the change.

torch.fx records values, not memory. ``x.relu_()`` followed by ``f(x)`` becomes ``f`` of the result, so that units are
followed as they were meant. Where the changed memory is read under another name (through a view, say), a rule would
follow the wrong units; such a change is refused.
"""

from __future__ import annotations

from torch import fx

from ..wiring.diagnostics import at_node
from ..wiring.in_place import IN_PLACE
from .nodes import path_of


def functionalize(graph: fx.Graph, when: str = "") -> None:
    """Rewrite ``graph`` in place so that no node depends on when another one runs.

    Args:
        graph: :class:`.example.Example` has run it, and noted on each node what it changed.
        when: what an error message begins with, such as "in training ".

    Raises:
        ConversionError: a change reaches other nodes by another way than its result.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        for changed, returned in _changes(node).items():
            if changed.op == "get_attr":
                raise at_node(node).refused(
                    f"{when}it changes {changed.target!r} of the module in place whenever it runs, which every task "
                    "would. Leave it out, or keep it outside of the module."
                )
            later = [user for user in changed.users if order[user] > order[node]]
            if later and not (returned and changed in node.all_input_nodes):
                raise at_node(node).refused(
                    f"{when}it changes in place what node {changed.name!r} made, under another name (a view of it, or "
                    f"an index), and {later[0].name!r} reads that afterwards: which units it changes cannot be "
                    "followed. Write it as a new tensor (y = y + 1, torch.cat, torch.where), and use that."
                )
            for user in later:
                user.replace_input_with(changed, node)
        if node.op == "call_function":
            node.target = IN_PLACE.get(node.target, node.target)


def _changes(node: fx.Node) -> dict[fx.Node, bool]:
    """The nodes whose tensors ``node`` changes in place, each with whether it returns that very tensor."""
    changes = node.meta.pop("changes", {})
    if node.op == "call_method" and path_of(node).endswith("_") and not path_of(node).endswith("__"):
        changes.setdefault(node.args[0], True)  # detach_ and the like change no number, so the example shows nothing
    return changes


def remove_unused(graph: fx.Graph) -> None:
    """Remove nodes that nothing reads; after :func:`functionalize` that includes changes in place."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
