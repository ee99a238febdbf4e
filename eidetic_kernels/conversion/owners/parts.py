"""Groups of units for a network whose owners are known, and what may not be done with all units of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ConversionError
from ...wiring.diagnostics import WAYS_OUT, at_node
from ..graphs.nodes import operation
from .analysis import Analysis
from .groups import Grouped, group_units
from .step import PRODUCERS

_CUTTING = ("split", "split_with_sizes", "chunk", "slice", "tensor_split", "unbind", "select", "unsafe_split")


def grouped_units(analysis: Analysis, features: Tensor) -> Grouped:
    """The groups, such that whatever layers read, cut off or return is some groups whole.

    ``features`` are the units that the network returns. Raises ConversionError for units that cannot be sorted so.
    """
    layers = analysis.layers
    parts: list[tuple[Tensor, bool]] = []
    for layer in layers:
        if "columns" in layer.options:
            parts.append((layer.options["columns"], layer.reads.coarse))
    parts += [(layer.units, layer.reads.coarse) for layer in layers if layer.kind not in PRODUCERS]
    parts.append((features, False))
    for node, value in analysis.values.items():
        if node.op == "call_function" and operation(node) in _CUTTING:
            pieces: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
            parts += [(piece.units.flatten(), piece.coarse) for piece in pieces if hasattr(piece, "units")]
    try:
        return group_units(analysis.constraints, parts)
    except ConversionError as error:
        raise ConversionError(f"units are tied in a way that pruning could not follow: {error}\n{WAYS_OUT}") from error


def refuse_mixed(analysis: Analysis, grouped: Grouped) -> None:
    """Raise ConversionError where a mean or the like is taken over all units of a group, frozen and live ones alike."""
    for node, units, _, kind in analysis.mixed:
        if kind not in ("refuse", "softmax"):
            continue
        for number in torch.unique(grouped.group[units[units >= 0]]).tolist():
            if number >= 0 and grouped.grains[number] == grouped.widths[number] and len(units.unique()) > 1:
                raise at_node(node).refused("it mixes all units of a layer, frozen and live ones.")
