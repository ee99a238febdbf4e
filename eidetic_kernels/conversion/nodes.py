"""What the nodes of a recorded graph call."""

from __future__ import annotations

from typing import cast

from torch import fx, nn


def path_of(node: fx.Node) -> str:
    """The path that a ``call_module`` or ``get_attr`` node names."""
    return cast(str, node.target)


def called_module(module: nn.Module, node: fx.Node) -> nn.Module:
    """The module below ``module`` that a ``call_module`` node calls."""
    return module.get_submodule(path_of(node))
