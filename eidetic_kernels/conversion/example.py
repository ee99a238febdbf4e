"""Runs a recorded graph on an example, which tells the sizes that rules ask for and what changes in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..modes import seeded
from ..wiring import rules
from .nodes import path_of


class Example(fx.Interpreter):
    """Runs ``graph`` of ``module`` and notes on each node, in ``meta``, what its value was.

    ``meta`` holds the ``shape`` of a tensor, the ``shapes`` of several, or a ``number``; and in ``changes`` the nodes
    whose tensors the node changed in place, each with whether it returned that very tensor.

    Args:
        tolerant: nodes that cannot run (an auxiliary classifier, on a small image) are left out, as are their readers.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, tolerant: bool = False):
        super().__init__(module, graph=graph)
        self.extra_traceback = False
        self.tolerant = tolerant
        self.versions: dict[fx.Node, list[int]] = {}

    def run(self, example: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad(), seeded(0, example.device):
            return super().run(example.clone())

    def run_node(self, node: fx.Node) -> Any:
        try:
            result = super().run_node(node)
        except Exception:
            if not self.tolerant:
                raise
            result = None
        if node.op == "call_module" and isinstance(result, Tensor) and _drops_in_place(self.fetch_attr(path_of(node))):
            result.mul_(1)  # in training it is written to

        changed = [other for other, value in self.env.items() if self.versions[other] != _versions(value)]
        if changed:
            node.meta["changes"] = {other: result is self.env[other] for other in changed}
            self.versions |= {other: _versions(self.env[other]) for other in changed}
        self.versions[node] = _versions(result)

        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
        elif isinstance(result, (tuple, list)) and all(isinstance(each, Tensor) for each in result):
            node.meta["shapes"] = tuple(tuple(each.shape) for each in result)
        elif isinstance(result, int):
            node.meta["number"] = result
        return result


def _drops_in_place(module: Any) -> bool:
    return rules.module_rule(module) is rules.drops and getattr(module, "inplace", False)


def _versions(value: Any) -> list[int]:
    """How often each tensor of ``value`` was written to; tensors that share memory share the count."""
    if isinstance(value, Tensor):
        return [0 if value.is_inference() else value._version]
    return [version for each in value for version in _versions(each)] if isinstance(value, (tuple, list)) else []
