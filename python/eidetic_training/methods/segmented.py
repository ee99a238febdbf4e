"""Methods on an eidetic network: Eidetic Learning itself, and what freezes units as it does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from eidetic_kernels.modes import evaluating

from ..training.even_share import even_share
from ..training.settings import TaskSettings
from ..training.trainer import train_task
from .base import Conditions, Method, expected_tasks


class Segmented(Method):
    """Abstract. Trains an eidetic network. ``tasks``: how many will come, if known; they then share units evenly."""

    def __init__(self, conditions: Conditions, tasks: int | None = None):
        super().__init__(conditions)
        self.network = conditions.network()
        self.expected = expected_tasks(tasks)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        units = None
        if self.expected is not None:
            units = even_share(self.network, max(1, self.expected - task))
        self.network.prepare_for_task(task, num_classes, max_units=units)
        self._train(task, loader)
        if self.network.current_task is not None:
            self.network.finish_task()

    @abstractmethod
    def _train(self, task: int, loader: Iterable) -> None:
        """Train and prune the task that was just prepared."""

    def _logits(self, x: Tensor, task: int) -> Tensor:
        with evaluating(self.network):
            return self.network(x, task=task)

    def stored_numbers(self) -> float:
        frozen = [b for name, b in self.network.named_buffers() if "frozen_" in name]
        return sum(b.numel() for b in frozen)

    def units_used(self) -> float:
        rows = self.network.capacity().rows
        return sum(sum(row.frozen) for row in rows) / sum(row.width for row in rows)


class Eidetic(Segmented):
    """Eidetic Learning (Dronen and Balestriero, 2025). ``settings`` are those of :class:`TaskSettings`.

    Epochs before pruning, together with those at a falling learning rate, are at most those of the conditions.
    Recovery from pruning adds its own.
    """

    def __init__(self, conditions: Conditions, tasks: int | None = None, **settings: Any):
        super().__init__(conditions, tasks)
        epochs = max(1, conditions.epochs - conditions.polish)
        self.settings = TaskSettings.of_dict({"polish_epochs": conditions.polish, **settings, "max_epochs": epochs})

    def _train(self, task: int, loader: Iterable) -> None:
        optimizer = self.conditions.make_optimizer(self.network.parameters())
        train_task(self.network, loader, optimizer, settings=self.settings)
