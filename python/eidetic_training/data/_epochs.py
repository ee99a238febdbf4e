"""Counting epochs: every `iter()` of a loader is the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from eidetic_kernels.errors import InputError


class Epochs(ABC):
    """A loader whose batches depend on the number of the epoch; `epoch` is that of the next `iter()`."""

    epoch = 0

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `epoch`, leaving the loader's own count of epochs as it is."""

    def set_epoch(self, epoch: int) -> None:
        """The next `iter()` is epoch `epoch` (from 0)."""
        if epoch < 0:
            raise InputError(f"epoch is {epoch}, expected 0 or more.")
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)
