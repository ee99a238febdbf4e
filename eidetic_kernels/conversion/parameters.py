"""Parameters of a module that is converted: none in two places, and those that forward uses itself become layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from ..layers import EideticParameter
from ..wiring.diagnostics import at_node


def refuse_ties(original: nn.Module, nodes: Iterable[fx.Node]) -> None:
    """Raise ConversionError where two of ``nodes`` use one parameter of ``original`` (``b.weight = a.weight``).

    A layer's rows are a task's units and its columns those it reads: a tied parameter would be pruned, frozen and grown
    in two places, which do not agree; and twins would each have their own from then on.
    """
    parameters = dict(original.named_parameters(remove_duplicate=False))
    first: dict[int, tuple[str, str]] = {}
    for node in nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        below = f"{node.target}."
        for path, parameter in parameters.items():
            if not parameter.numel() or not (path == node.target or path.startswith(below)):
                continue
            known, kind = first.setdefault(parameter.data_ptr(), (path, node.op))
            if (known, kind) != (path, node.op):
                how = f"is tied to {known!r}" if known != path else "is used both by its layer and beside it"
                raise at_node(node).refused(
                    f"the parameter {path!r} {how}: units would be pruned and frozen in two places. Give each place a "
                    "parameter of its own (a copy of it to begin with)."
                )


def hold_parameters(module: nn.Module, graph: fx.Graph) -> None:
    """Parameters that the graph uses directly become layers, a part a unit."""
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        owner, _, name = node.target.rpartition(".")
        owner = module.get_submodule(owner)
        held = getattr(owner, name)
        if isinstance(held, nn.Parameter) and held.dim():
            delattr(owner, name)
            owner.add_module(name, EideticParameter(held, dim=None))
        if isinstance(getattr(owner, name), EideticParameter):
            with graph.inserting_before(node):
                call = graph.call_module(node.target)
            call.meta = node.meta
            node.replace_all_uses_with(call)
            graph.erase_node(node)
