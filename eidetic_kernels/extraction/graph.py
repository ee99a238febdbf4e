"""Nodes of a torch.fx graph that take columns of a tensor apart and put columns together."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx

from ..layout import Span


def emit_slice(graph: fx.Graph, x: fx.Node, span: Span, dim: int) -> fx.Node:
    """The columns ``span`` of ``x`` in dimension ``dim``, which is 1 or counts from the end."""
    before = (slice(None),) if dim == 1 else (Ellipsis,)
    after = (slice(None),) * (-dim - 1)
    arguments: Any = (x, (*before, slice(*span), *after))  # torch's type of arguments knows no Ellipsis
    return graph.call_function(operator.getitem, arguments)


def emit_concatenation(graph: fx.Graph, values: Sequence[fx.Node], dim: int) -> fx.Node:
    """``values`` one after the other in dimension ``dim``; a single one is returned as it is."""
    return values[0] if len(values) == 1 else graph.call_function(torch.cat, (list(values), dim))


def emit_read(graph: fx.Graph, x: fx.Node, spans: Sequence[Span], columns: int, dim: int) -> fx.Node:
    """The columns ``spans`` of ``x``, which has ``columns`` of them; ``x`` itself if they are all.

    Without spans, one column of zeros: a layer that reads no unit gives its bias.
    """
    if tuple(spans) == (Span(0, columns),):
        return x
    parts = [emit_slice(graph, x, span, dim) for span in spans]
    if not parts:
        nothing = emit_slice(graph, x, Span(0, 0), dim)
        return graph.call_function(F.pad, (nothing, cast(Any, (*(0, 0) * (-dim - 1), 0, 1))))
    if len(parts) == 1:  # a product's bits depend on where its input lies: memory of its own, as in the network
        return graph.call_method("clone", (parts[0],))
    return graph.call_function(torch.cat, (parts, dim))


def emit_as_rows(graph: fx.Graph, x: fx.Node, copy: bool = True) -> fx.Node:
    """``x`` [*, units] lying in memory as a segment of a network reads it in rows [positions, units].

    The rows lie one after the other; those of a single image may lie each unit with all positions. ``copy``: in memory
    of their own in any case, as in the network where they are a part of something wider.
    """
    rows = graph.call_function(torch.flatten, (x, 0, -2))
    return graph.call_method("view_as", (graph.call_method("clone", (rows,)) if copy else rows, x))
