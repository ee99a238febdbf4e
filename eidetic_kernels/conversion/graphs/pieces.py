"""Parameters that forward cuts into the weights of several layers become a parameter for each."""

from __future__ import annotations

import torch
from torch import fx, nn

from .capture import Captured
from .nodes import args_of, concrete, operation, shape_of, target_of

_CUTS = ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unbind", "slice")
_TAKE = ("linear", "conv1d", "conv2d", "conv3d")


def cut_parameters(captured: Captured, module: nn.Module) -> None:
    """Give ``module`` a parameter for each piece of rows that ``captured`` cuts off for a layer, in place.

    A packed projection of attention is cut so: query, key and value read different tokens.
    """
    graph = captured.graph
    for place in [node for node in graph.nodes if node.op == "placeholder"]:
        path = captured.held.get(place.name, "")
        pieces = _pieces(place) if path in captured.parameters and shape_of(place) else None
        if pieces is None:
            continue
        owner, _, name = path.rpartition(".")
        parent, whole = module.get_submodule(owner), module.get_parameter(path)
        captured.parameters.discard(path)
        for number, (node, rows) in enumerate(sorted(pieces.items(), key=lambda each: each[1].start)):
            own = _named(name, number)
            if not hasattr(parent, own):
                value = whole.detach()[rows.start : rows.stop].clone()
                parent.register_parameter(own, nn.Parameter(value, whole.requires_grad))
            with graph.inserting_before(place):
                new = graph.placeholder(f"{place.name}_{number}")
            new.meta["val"] = node.meta["val"]
            new_path = f"{owner}.{own}" if owner else own
            captured.held[new.name] = new_path
            captured.parameters.add(new_path)
            node.replace_all_uses_with(new)
        for node in reversed(list(graph.nodes)):
            if node.op == "call_function" and not node.users and place in (node, *node.all_input_nodes):
                graph.erase_node(node)
            elif node in pieces:
                graph.erase_node(node)


def _named(name: str, number: int) -> str:
    """``in_proj_weight`` as ``in_proj_0_weight``: the layer that takes it is named ``in_proj_0``."""
    for role in ("weight", "bias"):
        if name.endswith(role):
            return f"{name.removesuffix(role) or 'piece_'}{number}_{role}"
    return f"{name}_{number}"


def _pieces(place: fx.Node) -> dict[fx.Node, range] | None:
    """The nodes that are pieces of rows of a parameter, and their rows; None where it is read in another way."""
    numbers = torch.arange(shape_of(place)[0])
    found: dict[fx.Node, range] = {}
    for user in place.users:
        if user.op != "call_function" or operation(user) not in _CUTS or args_of(user)[0] is not place:
            return None
        arguments = [concrete(each) for each in args_of(user)[1:]]
        dim = user.kwargs.get("dim", arguments[0] if operation(user) == "slice" else (arguments[1:] or [0])[0])
        if dim != 0 or any(isinstance(each, fx.Node) for each in arguments):
            return None
        made = target_of(user)(numbers, *arguments, **user.kwargs)
        parts = (
            {user: made} if isinstance(made, torch.Tensor) else {each: made[args_of(each)[1]] for each in user.users}
        )
        for node, own in parts.items():
            if not len(own) or not all(_takes(reader, node) for reader in node.users):
                return None
            found[node] = range(int(own[0]), int(own[-1]) + 1)
            if len(found[node]) != len(own):
                return None
    ranges = sorted(found.values(), key=lambda each: each.start)
    apart = all(a.stop <= b.start for a, b in zip(ranges, ranges[1:]))
    return found if found and apart else None


def _takes(reader: fx.Node, node: fx.Node) -> bool:
    return reader.op == "call_function" and operation(reader) in _TAKE and node in args_of(reader)[1:3]
