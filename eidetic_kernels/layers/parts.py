"""A layer over several groups, as one layer a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..parameters import joined
from .segmented import SegmentedLayer
from .staircase import StaircaseLayer


class Parts(nn.ModuleList):
    """Stands for a layer that treats each unit by itself (BatchNorm) where its input concatenates several groups.

    Every group lives its own life, so each gets its own part of the layer: that for ``units`` of it, with the layer's
    parameters and statistics. DenseNet and GoogLeNet need it.
    """

    def __init__(self, layer: SegmentedLayer, units: Sequence[Tensor]):
        super().__init__(layer.part(each) for each in units)
        self.train(layer.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        sizes = [part.segments.present(part.scope.task) for part in self]
        # A part's bits must not depend on what lies beside it: each reads memory of its own.
        pieces = [(piece.contiguous(),) for piece in x.split(sizes, 1)]
        if residual is not None:
            pieces = [(*piece, other.contiguous()) for piece, other in zip(pieces, residual.split(sizes, 1))]
        return torch.cat([part(*piece) for part, piece in zip(self, pieces)], 1)


class Shared(nn.ModuleList):
    """Stands for a layer that makes units, where these are read apart (after ``chunk``): one layer a group of them.

    ``widths``: how many of the layer's units each makes, in order. ShuffleNet needs it.
    """

    unit_dim = 1  # or -1: see SegmentedLayer

    def __init__(self, layer: StaircaseLayer, widths: Sequence[int]):
        bounds = [sum(widths[:number]) for number in range(len(widths) + 1)]
        super().__init__(layer.part(slice(*pair)) for pair in zip(bounds, bounds[1:]))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        dim = self.unit_dim
        if not all(part.untouched for part in self):
            return torch.cat([part(x) for part in self], dim)
        # A product's bits depend on its number of rows: until something changes, all parts together are the layer.
        bias = None if self[0].bias is None else torch.cat([part.bias for part in self])
        y = self[0].whole(x, joined([part.weight for part in self]), bias)
        pieces = y.split([part.segments.live for part in self], dim)
        return torch.cat([part(x, computed=piece) for part, piece in zip(self, pieces)], dim)
