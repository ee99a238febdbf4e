"""Counting right answers, batch by batch, of all samples and of each class."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class ClassCount(NamedTuple):
    """How many of a class's ``samples`` were answered rightly."""

    right: int
    samples: int

    @property
    def accuracy(self) -> float:
        """In [0, 1]; NaN for a class without samples."""
        return self.right / self.samples if self.samples else math.nan


class LabelCounts:
    """How many samples each of ``classes`` classes has. The counts stay on the labels' device."""

    def __init__(self, classes: int) -> None:
        self._counts = torch.zeros(classes, dtype=torch.long)

    def add(self, y: Tensor) -> None:
        """Count the labels ``y`` [N], int64."""
        self._counts = self._counts.to(y.device).scatter_add(0, y, torch.ones_like(y))

    @property
    def samples(self) -> list[int]:
        """Of each class."""
        return self._counts.tolist()

    @property
    def majority(self) -> float:
        """The most frequent class's share of all samples, in [0, 1]: how often it is the right answer."""
        return max(self.samples) / sum(self.samples)


class ClassCounter:
    """Counts right answers and samples of each of ``classes`` classes."""

    def __init__(self, classes: int) -> None:
        self._right, self._all = LabelCounts(classes), LabelCounts(classes)

    def add(self, right: Tensor, y: Tensor) -> None:
        """Count a batch; ``right`` [N] is true where the answer was right, ``y`` [N] has the classes."""
        self._right.add(y[right.to(y.device)])
        self._all.add(y)

    @property
    def counts(self) -> tuple[ClassCount, ...]:
        """Of each class."""
        return tuple(map(ClassCount, self._right.samples, self._all.samples))
