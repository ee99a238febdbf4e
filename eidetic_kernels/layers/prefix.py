"""EideticPrefix: a mean, norm or the like over units, taken over what a unit's own task may see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..layout import Source, reads
from .inputs import check_tensor
from .layer_norm import seen_by_segment
from .segmented import SegmentedLayer


class EideticPrefix(SegmentedLayer):
    """Stands for ``reduce(x)``, which takes one number of all units (a mean over channels, say).

    Each unit gets the number that is taken over the units which its own segment may see, as in
    :class:`.EideticLayerNorm`. So a frozen unit's output never depends on a later unit. The result therefore keeps the
    dimension of the units, where the plain one has size 1; while there is one segment, all of them get the same number.

    Args:
        width: how many units there are.
        reduce: called with a tensor like x; returns one with size 1 in the dimension of the units.
        dim: the dimension of the units, counted from the end.

    Raises InputError for an input with another number of units.
    """

    live_names = ()

    def __init__(self, width: int, reduce: Callable[[Tensor], Tensor], dim: int):
        super().__init__(width)
        self.reduce, self.unit_dim = reduce, dim
        self.forward_transfer: tuple[bool, ...] = (True,)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x)
        task, dim = self.scope.task, self.unit_dim
        present = self.segments.present(task)
        if x.dim() < -dim or x.shape[dim] != present:
            raise InputError(f"{self} expects {present} units in dimension {dim}; got {list(x.shape)}.")
        if not present:
            return x
        units, source = x.movedim(dim, -1), Source(self.segments)
        pieces = []
        for segment in range((self.segments.tasks if task is None else task) + 1):
            size = self.segments.size(segment)
            if size:
                span = reads((source,), segment, self.forward_transfer[segment], task)
                live = segment == self.segments.tasks
                values = seen_by_segment(units, span, self.segments, segment, live, self.scope.full_input_grad)
                number = self.reduce(values.movedim(-1, dim)).movedim(dim, -1)
                pieces.append(number.expand(*number.shape[:-1], size))
        return torch.cat(pieces, -1).movedim(-1, dim)

    def cut_live(self, keep: Tensor) -> None:
        pass

    def freeze_live(self) -> None:
        self.forward_transfer = (*self.forward_transfer, True)

    def allocate_frozen(self) -> None:
        pass

    def renew_live(self, forward_transfer: bool = True) -> None:
        self.forward_transfer = (*self.forward_transfer[:-1], forward_transfer)

    def extra_repr(self) -> str:
        return f"{self.segments.width}, dim={self.unit_dim}"
