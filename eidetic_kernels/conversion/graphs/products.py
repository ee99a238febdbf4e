"""Products with a parameter, written in other ways than as a linear layer, become linear layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from .capture import Captured
from .nodes import args_of, is_tensor, operation, shape_of

ROWS = "_rows"  # what is added to a parameter's name for its transpose


def leave_out_nothing(captured: Captured) -> None:
    """Leave empty tensors out of what is put together (a model's prefix of no tokens), in place."""
    for node in list(captured.graph.nodes):
        if node.op != "call_function" or operation(node) not in ("cat", "concat", "concatenate"):
            continue
        dim = (args_of(node)[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape_of(node))
        full = [each for each in args_of(node)[0] if len(shape_of(each)) > dim and shape_of(each)[dim]]
        if len(full) == 1:
            node.replace_all_uses_with(full[0])
            captured.graph.erase_node(node)
        elif len(full) < len(args_of(node)[0]):
            node.args = (full, *args_of(node)[1:])
    for node in reversed(list(captured.graph.nodes)):
        if node.op == "call_function" and not node.users and is_tensor(node) and 0 in shape_of(node):
            captured.graph.erase_node(node)


def take_gates_apart(captured: Captured) -> None:
    """``glu`` as what it does: one half of the units times the sigmoid of the other, in place."""
    graph, aten = captured.graph, torch.ops.aten
    for node in list(graph.nodes):
        if node.op != "call_function" or operation(node) != "glu":
            continue
        x, dim = args_of(node)[0], args_of(node)[1] if len(node.args) > 1 else -1
        with graph.inserting_before(node):
            size = shape_of(node)[dim]
            halves = graph.call_function(aten.split_with_sizes.default, (x, [size, size], dim % len(shape_of(node))))
            halves.meta = {**node.meta, "val": [node.meta["val"]] * 2}
            first, second = (graph.call_function(operator.getitem, (halves, number)) for number in range(2))
            gate = graph.call_function(aten.sigmoid.default, (second,))
            made = graph.call_function(aten.mul.Tensor, (first, gate))
        for each in (first, second, gate, made):
            each.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def rewrite_products(captured: Captured, module: nn.Module) -> None:
    """``x @ weight``, ``addmm(bias, x, weight)`` of parameters of ``module`` as ``linear``, in place.

    The module gets a transposed copy of the parameter, in memory as a linear layer has it.
    """
    graph = captured.graph
    transposed: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or operation(node) not in ("addmm", "matmul", "mm"):
            continue
        bias, x, weight = node.args if operation(node) == "addmm" else (None, *node.args)
        path = captured.held.get(getattr(weight, "name", ""))
        if path is None or path in captured.constants or any(value != 1 for value in node.kwargs.values()):
            continue
        owner, _, name = path.rpartition(".")
        parent = module.get_submodule(owner)
        value = getattr(parent, name)
        if not isinstance(value, nn.Parameter) or value.dim() != 2 or len(weight.users) > 1:
            continue
        if bias is not None and (bias.name not in captured.held or shape_of(bias) != (value.shape[1],)):
            continue
        if not hasattr(parent, name + ROWS):
            parent.register_parameter(name + ROWS, nn.Parameter(value.detach().t().contiguous(), value.requires_grad))
        if path not in transposed:
            with graph.inserting_before(weight):
                new = graph.placeholder(f"{weight.name}{ROWS}")
            new.meta["val"] = weight.meta["val"].new_empty(value.shape[1], value.shape[0])
            captured.held[new.name] = path + ROWS
            captured.parameters.add(path + ROWS)
            transposed[path] = new
        node.target = torch.ops.aten.linear.default
        arguments: tuple[Any, ...] = (x, transposed[path], bias)
        node.args, node.kwargs = arguments, {}
