"""What cuts an image's channels apart or shuffles them, for networks in which channels come and go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layout import Source
from .scope import Scope


class Split(nn.Module):
    """Stands for ``chunk``, ``split`` or a slice of dimension ``unit_dim`` (1 or -1), into pieces of ``sizes`` units.

    Wired, each piece is some of the groups that lie side by side in its input, as many units as they have by now.
    """

    def __init__(self, sizes: Sequence[int], unit_dim: int = 1):
        super().__init__()
        self.sizes, self.unit_dim = tuple(sizes), unit_dim
        self.sources: tuple[Source, ...] = ()
        self.pieces: tuple[tuple[int, ...], ...] = ()
        self.scope = Scope()

    def wire(self, sources: tuple[Source, ...], pieces: tuple[tuple[int, ...], ...], scope: Scope) -> None:
        """Learn what lies side by side in the input, and which of these make each piece."""
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


class Shuffle(nn.Module):
    """Stands for :class:`torch.nn.ChannelShuffle`. Wired, it leaves its input alone: groups stay side by side, and
    who reads them knows in which order they came (see :meth:`.StaircaseLayer.reorder`)."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups, self.wired = groups, False

    def wire(self) -> None:
        self.wired = True

    def forward(self, x: Tensor) -> Tensor:
        return x if self.wired else x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.groups}"
