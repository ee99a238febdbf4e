"""What a graph changes in place, named: whoever reads a tensor after it was changed reads the result of the change.

torch.fx records values, not memory. ``x.relu_()`` followed by ``f(x)`` becomes f of the result, by which units are
followed as they were meant; where the changed memory is read under another name (through a view, say), a rule would
follow the wrong units, and it is refused.
"""

from __future__ import annotations

from torch import fx

from ..wiring.diagnostics import at_node
from ..wiring.in_place import IN_PLACE


def name_changes(graph: fx.Graph, when: str = "") -> None:
    """Rewrite ``graph``, after :class:`.example.Example` ran it, so that no node depends on when another runs.

    ``when``: what a refusal begins with.

    Raises ConversionError for a change that reaches other nodes by another way than its result.
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
    changes = node.meta.pop("changes", {})
    if node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__"):
        changes.setdefault(node.args[0], True)  # detach_ and its like change no number
    return changes


def remove_unused(graph: fx.Graph) -> None:
    """Leave out what nothing reads; after :func:`name_changes` that includes changes in place."""
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
