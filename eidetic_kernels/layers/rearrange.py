"""Splits of units, for networks whose units are pruned and recycled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layout import Source
from .scope import Scope


class Split(nn.Module):
    """Stands for ``chunk``, ``split`` or a slice of dimension ``unit_dim`` (1 or -1), into pieces of ``sizes`` units.

    Once wired, each piece consists of some of the groups that lie side by side in the input, with the units that these
    have by now.
    """

    def __init__(self, sizes: Sequence[int], unit_dim: int = 1):
        super().__init__()
        self.sizes, self.unit_dim = tuple(sizes), unit_dim
        self.sources: tuple[Source, ...] = ()
        self.pieces: tuple[tuple[int, ...], ...] = ()
        self.scope = Scope()

    def wire(self, sources: tuple[Source, ...], pieces: tuple[tuple[int, ...], ...], scope: Scope) -> None:
        """Learn which groups lie side by side in the input, and the numbers of those that make each piece."""
        self.sources, self.pieces, self.scope = sources, pieces, scope

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not self.sources:
            return x.split(self.sizes, self.unit_dim)
        dim = self.unit_dim
        groups = x.split([source.columns(self.scope.task) for source in self.sources], dim)
        return tuple(
            groups[piece[0]] if len(piece) == 1 else torch.cat([groups[i] for i in piece], dim) for piece in self.pieces
        )

    def extra_repr(self) -> str:
        return f"{self.sizes}"
