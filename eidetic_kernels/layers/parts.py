"""A layer over several groups, as one layer a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..layout import LIVE
from .batch_norm import EideticBatchNorm
from .segmented import SegmentedLayer
from .staircase import StaircaseLayer
from .succession import joined

# What parts of a BatchNorm must have in common to run in one call; made of one layer, they do.
_ALIKE = ("training", "eps", "momentum", "activation", "affine")


class Parts(nn.ModuleList):
    """Stands for a layer that treats each unit by itself (BatchNorm) where its input concatenates several groups.

    Every group lives its own life, so each gets its own part of the layer: that for ``units`` of it, with the layer's
    parameters and statistics. DenseNet, GoogLeNet and ShuffleNet need it. Parts of a BatchNorm run in one call where
    all their channels are live, or all frozen: a channel's output does not depend on those beside it.
    """

    def __init__(self, layer: SegmentedLayer, units: Sequence[Tensor]):
        super().__init__(layer.part(each) for each in units)
        self.train(layer.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        sizes = [part.segments.present(part.scope.task) for part in self]
        if self._are_one() and x.dim() in self[0].dims and x.shape[1] == sum(sizes) > 0:
            if residual is None or residual.shape == x.shape:
                return self._at_once(x, residual, sizes)
        # A part's bits must not depend on what lies beside it: each reads memory of its own.
        pieces = [(piece.contiguous(),) for piece in x.split(sizes, 1)]
        if residual is not None:
            pieces = [(*piece, other.contiguous()) for piece, other in zip(pieces, residual.split(sizes, 1))]
        return torch.cat([part(*piece) for part, piece in zip(self, pieces)], 1)

    def _are_one(self) -> bool:
        """Whether one normalisation can stand for all parts, which nobody watches: no channel of it is frozen, or in
        recall all are."""
        first = self[0]
        if not isinstance(first, EideticBatchNorm) or first.momentum is None:
            return False
        recalled = first.scope.task not in (None, LIVE)
        return all(
            (recalled or not part.segments.frozen_total)
            and all(getattr(part, name) == getattr(first, name) for name in _ALIKE)
            and not (part._forward_hooks or part._forward_pre_hooks)
            for part in self
        )

    def _at_once(self, x: Tensor, residual: Tensor | None, sizes: Sequence[int]) -> Tensor:
        """All parts in one call, whose statistics are handed back to them."""
        parts, sizes = zip(*((part, size) for part, size in zip(self, sizes) if size))
        norms = [part.arguments((len(x), size, *x.shape[2:])) for part, size in zip(parts, sizes)]
        first = norms[0]
        live = first.weight, first.bias, first.running_mean, first.running_var
        frozen = first.frozen_scale, first.frozen_shift
        if parts[0].scope.task in (None, LIVE):
            live = [_joined(norms, name) for name in ("weight", "bias", "running_mean", "running_var")]
        else:
            frozen = [_joined(norms, name) for name in ("frozen_scale", "frozen_shift")]
        norm = ops.Norm(*live, *frozen, first.training, first.momentum, first.eps, first.activation)

        full_input_grad = parts[0].scope.full_input_grad or (not parts[0].owned and x.requires_grad)
        y = ops.segmented_batch_norm(x, norm, residual, full_input_grad)
        if norm.training:  # the statistics have moved
            for part, mean, var in zip(parts, norm.running_mean.split(sizes), norm.running_var.split(sizes)):
                part.running_mean.copy_(mean)
                part.running_var.copy_(var)
        return y


def _joined(norms: Sequence[ops.Norm], name: str) -> Tensor | None:
    """The tensors ``name`` of all parts as one; None where they have none."""
    return None if getattr(norms[0], name) is None else torch.cat([getattr(norm, name) for norm in norms])


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
