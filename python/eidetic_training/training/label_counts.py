"""A task's labels, counted while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor


class LabelCounts:
    """How many samples each of ``classes`` classes has."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, dtype=torch.long)

    def add(self, y: Tensor) -> None:
        """Count the labels ``y`` [N], int64. The counts stay on their device."""
        self._counts = self._counts.to(y.device).scatter_add(0, y, torch.ones_like(y))

    @property
    def majority(self) -> float:
        """The most frequent class's share of all samples, in [0, 1]: how often it is the right answer."""
        return int(self._counts.max()) / int(self._counts.sum())
