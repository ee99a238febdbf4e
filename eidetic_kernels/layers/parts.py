"""A layer over several groups, as one layer a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

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

    Every group is pruned and frozen on its own, so each gets its own part of the layer: that for ``units`` of it, with
    the layer's parameters and statistics. DenseNet, GoogLeNet and ShuffleNet need it. Parts of a BatchNorm run in one
    call where all their channels are live, or all frozen: a channel's output does not depend on its neighbours.
    """

    if TYPE_CHECKING:  # a ModuleList does not say of what; layers differ in what else they have

        def __iter__(self) -> Iterator[Any]: ...
        def __getitem__(self, idx: int) -> Any: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, layer: SegmentedLayer, units: Sequence[Tensor]):
        super().__init__(layer.part(each) for each in units)  # pyright: ignore[reportCallIssue] not every layer has it
        self.train(layer.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        sizes = [part.columns_read(part.scope.task) for part in self]
        if self._are_one() and x.dim() in self[0].dims and x.shape[1] == sum(sizes) > 0:
            if residual is None or residual.shape == x.shape:
                return self._at_once(x, residual, sizes)
        # A part's bits must not depend on its neighbours: each reads memory of its own.
        pieces = [(piece.contiguous(),) for piece in x.split(sizes, 1)]
        if residual is not None:
            pieces = [(*piece, other.contiguous()) for piece, other in zip(pieces, residual.split(sizes, 1))]
        return torch.cat([part(*piece) for part, piece in zip(self, pieces)], 1)

    def _are_one(self) -> bool:
        """Whether one normalisation can stand for all parts: they have equal settings and no hooks, and either no
        channel is frozen, or the pass is a recall, where all are."""
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
        weight, bias, mean, var, scale, shift, *options = norms[0]
        if parts[0].scope.task in (None, LIVE):
            weight, bias = _joined([each.weight for each in norms]), _joined([each.bias for each in norms])
            mean, var = (
                torch.cat([each.running_mean for each in norms]),
                torch.cat([each.running_var for each in norms]),
            )
        else:
            scale = torch.cat([each.frozen_scale for each in norms])
            shift = torch.cat([each.frozen_shift for each in norms])
        norm = ops.Norm(weight, bias, mean, var, scale, shift, *options)

        full_input_grad = parts[0].scope.full_input_grad or (not parts[0].owned and x.requires_grad)
        y = ops.segmented_batch_norm(x, norm, residual, full_input_grad)
        if norm.training:  # the statistics have moved
            for part, mean, var in zip(parts, norm.running_mean.split(sizes), norm.running_var.split(sizes)):
                part.running_mean.copy_(mean)
                part.running_var.copy_(var)
        return y


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of all parts' numbers; None where they have none."""
    given = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(given) if given else None


class Shared(nn.ModuleList):
    """Stands for a layer that makes units, where these are read apart (after ``chunk``): one layer a group of them.

    ``widths``: how many of the layer's units each makes, in order. ShuffleNet needs it.
    """

    unit_dim = 1  # or -1: see SegmentedLayer

    if TYPE_CHECKING:  # as above

        def __iter__(self) -> Iterator[Any]: ...
        def __getitem__(self, idx: int) -> Any: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, layer: StaircaseLayer, widths: Sequence[int]):
        bounds = [sum(widths[:number]) for number in range(len(widths) + 1)]
        super().__init__(layer.part(slice(*pair)) for pair in zip(bounds, bounds[1:]))
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        dim = self.unit_dim
        if not all(part.untouched for part in self):
            return torch.cat([part(x) for part in self], dim)
        # A product's bits depend on its number of rows: until something changes, all parts together are the layer.
        bias = None
        if any(part.bias is not None for part in self):  # a query and a value may have one, and the key none
            rows = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in self]
            bias = torch.cat(rows)
        y = self[0].whole(x, joined([part.live_weight() for part in self]), bias)
        pieces = y.split([part.segments.live for part in self], dim)
        return torch.cat([part(x, computed=piece) for part, piece in zip(self, pieces)], dim)
