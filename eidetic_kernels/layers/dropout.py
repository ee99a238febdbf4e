"""Dropout that leaves frozen units alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layout import Source
from .scope import Scope


class EideticDropout(nn.Module):
    """Drops live units only, so what frozen units read and produce is the same in training and evaluation (P5).

    Live units see frozen features undropped: measured, that is also the more accurate (bench/results/dropout.md).

    Takes the place of :class:`torch.nn.Dropout` (elements) or, with ``channels=True``, of Dropout1d/2d/3d (whole
    channels) when a network's unit groups are found. Not wired, or with nothing frozen, it is torch's dropout.
    """

    def __init__(self, p: float = 0.5, channels: bool = False):
        super().__init__()
        self.inner = nn.Dropout(p)
        self.p, self.channels = p, channels
        self.source: Source | None = None
        self.scope = Scope()

    def wire(self, source: Source, scope: Scope) -> None:
        """Learn which columns (dimension 1) are frozen."""
        self.source, self.scope = source, scope

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        frozen = 0 if self.source is None else self.source.trainable().start
        if frozen == 0:
            return self._drop(x)
        if frozen == x.shape[1]:
            return x
        return torch.cat([x[:, :frozen], self._drop(x[:, frozen:])], 1)

    def _drop(self, x: Tensor) -> Tensor:
        return torch.feature_dropout(x, self.p, True) if self.channels else self.inner(x)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"
