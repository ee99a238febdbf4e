"""Counting right answers, batch by batch."""

from __future__ import annotations

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
