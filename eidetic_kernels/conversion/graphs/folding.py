"""What a graph makes of fixed tensors alone (masks, positions, tables of sines) is made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .capture import Captured
from .nodes import leaves

_RANDOM = ("bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "randperm", "normal", "uniform", "empty")


def fold(captured: Captured, module: nn.Module) -> dict[fx.Node, Any]:
    """The values of nodes that depend on no input, no parameter and nothing random. They run as they stand, in place
    and all; buffers are read as they are now."""
    values: dict[fx.Node, Any] = {}
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            path = captured.held.get(node.name)
            if path is not None:
                value = captured.constants.get(path)
                if value is None:
                    owner, _, name = path.rpartition(".")
                    value = getattr(module.get_submodule(owner), name)
                if not isinstance(value, nn.Parameter) and not _is_statistic(module, path):
                    values[node] = value.detach().clone()
            continue
        if node.op != "call_function" or not all(each in values for each in node.all_input_nodes):
            continue
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)) or any(
            isinstance(each, torch.SymInt) for each in leaves([node.args, node.kwargs])
        ):
            continue
        name = getattr(node.target, "_schema", None)
        if (
            name is not None
            and name.name.removeprefix("aten::").rstrip("_").startswith(_RANDOM)
            and "empty" not in name.name
        ):
            continue

        args, kwargs = (map_arg(given, values.__getitem__) for given in (node.args, node.kwargs))
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
    return values


def _is_statistic(module: nn.Module, path: str) -> bool:
    owner = module.get_submodule(path.rpartition(".")[0])
    return isinstance(owner, nn.modules.batchnorm._BatchNorm)
