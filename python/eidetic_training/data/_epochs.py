"""Loaders that count their epochs: every ``iter()`` is the next one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from eidetic_kernels.checking import whole_number


class Epochs(ABC):
    """A loader whose batches depend on the epoch's number. ``epoch`` is the number of the next ``iter()``."""

    epoch = 0

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch; the loader's own count of epochs stays as it is."""

    def set_epoch(self, epoch: int) -> None:
        """Let the next ``iter()`` be epoch ``epoch``, counted from 0. Raises InputError for a negative number."""
        self.epoch = whole_number("epoch", epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)
