"""Parameters of the module: tied ones are refused, and those that forward uses itself become layers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from ..layers import EideticParameter
from ..wiring.diagnostics import at_node
from .nodes import path_of


def refuse_ties(original: nn.Module, nodes: Iterable[fx.Node]) -> None:
    """Raise ConversionError where two of ``nodes`` use one parameter of ``original`` (``b.weight = a.weight``).

    A layer's rows are its units, and its columns the units it reads. A tied parameter would be pruned, frozen and grown
    in two places that do not agree, and its two replacements would each have a copy of it.
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


def replace_parameters(module: nn.Module, graph: fx.Graph) -> None:
    """Replace parameters that the graph uses itself by :class:`EideticParameter` layers, in place."""
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        path, _, name = path_of(node).rpartition(".")
        owner = module.get_submodule(path)
        held = getattr(owner, name)
        if isinstance(held, nn.Parameter) and held.dim():
            delattr(owner, name)
            owner.add_module(name, EideticParameter(held, dim=None))
        if isinstance(getattr(owner, name), EideticParameter):
            with graph.inserting_before(node):
                call = graph.call_module(path_of(node))
            call.meta = node.meta
            node.replace_all_uses_with(call)
            graph.erase_node(node)
