"""A layer over concatenated groups, as one layer a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .segmented import SegmentedLayer


class Parts(nn.ModuleList):
    """Stands for a layer that treats each unit by itself (BatchNorm) where its input concatenates several groups.

    Every group lives its own life, so each gets its own part of the layer, ``widths`` units wide, with the layer's
    parameters and statistics. DenseNet and GoogLeNet need it.
    """

    def __init__(self, layer: SegmentedLayer, widths: list[int]):
        bounds = [sum(widths[:number]) for number in range(len(widths) + 1)]
        super().__init__(layer.part(slice(*pair)) for pair in zip(bounds, bounds[1:]))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [part.segments.present(part.scope.task) for part in self]
        # A part's bits must not depend on what lies beside it: each reads memory of its own.
        return torch.cat([part(piece.contiguous()) for part, piece in zip(self, x.split(sizes, 1))], 1)
