"""Images without channels in an extracted graph: what a convolution makes where the task took none of its units.

torch's pooling, padding and resizing refuse them. Recall lends them a channel (:mod:`..layers.no_channels`). So does an
extracted graph, in nodes of its own, since it must run without this package.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from ..layers.no_channels import NO_CHANNEL_REFUSALS
from ..layout import Span
from .graph import emit_read, emit_slice


@torch.no_grad()
def lend_channels(plain: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Rewrite ``plain`` where a node refuses an image without channels, which it makes of ``inputs`` [N, ...]."""
    run = _Lending(plain)
    run.run(*inputs)
    for refusal in run.refusals:
        _lend(plain.graph, refusal)
    for refusal in run.refusals:
        _take_back(plain.graph, refusal)
    plain.recompile()


@dataclass(frozen=True)
class _Refusal:
    """A node that refuses the images without channels that ``given`` make. ``several``: it returns several values."""

    node: fx.Node
    given: tuple[fx.Node, ...]
    several: bool


class _Lending(fx.Interpreter):
    """Runs a graph, and notes which nodes refuse an image without channels; they are given one with one channel."""

    def __init__(self, plain: fx.GraphModule):
        super().__init__(plain)
        self.refusals: list[_Refusal] = []

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        run = getattr(self, n.op)
        try:
            return run(n.target, args, kwargs)
        except NO_CHANNEL_REFUSALS as refusal:
            try:
                lent = run(n.target, *tree_map(_with_a_channel, (args, kwargs)))
            except NO_CHANNEL_REFUSALS:
                raise refusal from None
            given = tuple(node for node in n.all_input_nodes if _has_no_channel(self.env[node]))
            self.refusals.append(_Refusal(n, given, several=not isinstance(lent, Tensor)))
            return tree_map(_without_channels, lent)


def _lend(graph: fx.Graph, refusal: _Refusal) -> None:
    """Let the node read one channel of zeros of each such image."""
    with graph.inserting_before(refusal.node):
        for given in refusal.given:
            refusal.node.replace_input_with(given, emit_read(graph, given, (), 0, -3))


def _take_back(graph: fx.Graph, refusal: _Refusal) -> None:
    """Let the node's readers get no channel of what it makes."""
    parts = [user for user in refusal.node.users if user.target is operator.getitem]
    for made in parts if refusal.several else [refusal.node]:
        with graph.inserting_after(made):
            nothing = emit_slice(graph, made, Span(0, 0), -3)
        made.replace_all_uses_with(nothing, lambda user, nothing=nothing: user is not nothing)


def _with_a_channel(value: Any) -> Any:
    return value.new_zeros(value.shape[0], 1, *value.shape[2:]) if _has_no_channel(value) else value


def _without_channels(value: Any) -> Any:
    return value[:, :0] if isinstance(value, Tensor) and value.dim() == 4 else value


def _has_no_channel(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and not value.shape[1]
