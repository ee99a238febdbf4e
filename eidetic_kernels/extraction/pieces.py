"""The pieces of a plain layer: what each segment computes of the columns that it reads, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from ..layout import Span
from .graph import emit_concatenation, emit_read, emit_slice

Plain = TypeVar("Plain", bound=nn.Module)


@dataclass(frozen=True)
class Piece:
    """One segment of a plain layer.

    Args:
        name: the module's name in the plain layer.
        module: the torch.nn layer of the segment.
        spans: the columns of the input that it reads.
    """

    name: str
    module: nn.Module
    spans: tuple[Span, ...]


def joined(pieces: Sequence[Piece], columns: int, dim: int) -> nn.Module:
    """A module that concatenates what ``pieces`` compute in dimension ``dim``, which counts from the end.

    ``columns`` is the width of the input. A single piece that reads all of it is returned as it is.
    """
    if len(pieces) == 1 and pieces[0].spans == (Span(0, columns),):
        return pieces[0].module
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = [graph.call_module(piece.name, (emit_read(graph, x, piece.spans, columns, dim),)) for piece in pieces]
    graph.output(emit_concatenation(graph, made or [emit_slice(graph, x, Span(0, 0), dim)], dim))
    return fx.GraphModule({piece.name: piece.module for piece in pieces}, graph, "Segments")


def filled(module: Plain, weight: Tensor, bias: Tensor | None) -> Plain:
    """``module`` with these parameters."""
    with torch.no_grad():
        module.get_parameter("weight").copy_(weight)
        if bias is not None:
            module.get_parameter("bias").copy_(bias)
    return module
