"""Counting right answers, batch by batch, of all samples and of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from eidetic_kernels.errors import InputError


class Accuracy:
    """The fraction of samples that were answered rightly."""

    def __init__(self) -> None:
        self.samples = 0
        self._right: int | Tensor = 0

    def add(self, right: Tensor) -> None:
        """Count a batch; ``right`` [N] is true where the answer was right. The sum stays on its device."""
        self._right = self._right + right.sum()
        self.samples += len(right)

    @property
    def value(self) -> float:
        """In [0, 1]. Raises InputError if no sample was counted."""
        if not self.samples:
            raise InputError("the loader gave no batch, so there is nothing to evaluate.")
        return int(self._right) / self.samples


class ClassAccuracy:
    """The fraction of each class's samples that were answered rightly, for ``classes`` classes."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(2, classes, dtype=torch.long)  # right answers, samples

    def add(self, right: Tensor, y: Tensor) -> None:
        """Count a batch; ``right`` [N] is true where the answer was right, ``y`` [N] has the classes."""
        classes = self._counts.shape[1]
        counts = [torch.bincount(labels, minlength=classes) for labels in (y[right], y)]
        self._counts = self._counts + torch.stack(counts).to(self._counts.device)

    @property
    def samples(self) -> list[int]:
        """How many samples each class has."""
        return self._counts[1].tolist()

    @property
    def values(self) -> list[float]:
        """Of each class, in [0, 1]; NaN for a class without samples."""
        right, samples = self._counts.double()
        return (right / samples).tolist()
