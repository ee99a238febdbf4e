"""What every continual learning method offers, so that all can be compared under equal conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError, NonFiniteLossError

from ..training.annealing import annealed
from ..training.optimizers import make_optimizer


@dataclass(frozen=True)
class Conditions:
    """What is equal for all methods: the network, the optimizer, the epochs, the seed.

    network: makes a fresh network of the compared architecture; methods that do not prune use its plain twin.
    epochs: passes over a task's data. A method that trains in stages (prune and retrain) divides them.
    polish: at the end of each stage, so many of its epochs let the learning rate fall to zero.
    """

    network: Callable[[], EideticNetwork]
    epochs: int = 10
    optimizer: str = "adam"
    lr: float = 1e-3
    seed: int = 0
    polish: int = 0

    def schedule(self, optimizer: torch.optim.Optimizer, epochs: int | None = None) -> Iterator[int]:
        """Counts ``epochs`` (all there are, if None), setting the learning rates of each."""
        epochs = self.epochs if epochs is None else epochs
        last = min(self.polish, epochs)
        yield from range(epochs - last)
        for done in annealed(optimizer, last):
            yield epochs - last + done

    def make_optimizer(self, parameters: Iterable[nn.Parameter], **arguments: Any) -> torch.optim.Optimizer:
        return make_optimizer(self.optimizer, parameters, **{"lr": self.lr, **arguments})


class Method(ABC):
    """Learns tasks in order and answers for any of them; the task is named when it is asked (task-incremental).

    A subclass says in its docstring which paper it follows, and what of it is left out.
    """

    def __init__(self, conditions: Conditions):
        self.conditions = conditions
        self.tasks = 0
        torch.manual_seed(conditions.seed)

    def learn(self, loader: Iterable, num_classes: int) -> None:
        """Learn the next task from batches (x, y)."""
        torch.manual_seed((self.conditions.seed << 16) + self.tasks)
        self._learn(self.tasks, loader, num_classes)
        self.tasks += 1

    @abstractmethod
    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None: ...

    @abstractmethod
    def logits(self, x: Tensor, task: int) -> Tensor:
        """Logits [N, classes] of a learned task, in evaluation mode, without gradients."""

    @abstractmethod
    def stored_numbers(self) -> float:
        """How many float32 numbers are kept to answer for all tasks; a mask bit counts a thirty-second."""

    def units_used(self) -> float | None:
        """The share of the network's units that learned tasks own; None where tasks own no units."""
        return None

    def learn_all(self, loaders: Sequence[Iterable], classes: Sequence[int]) -> None:
        """Learn all tasks; a method that wants them at once (joint training) overrides this."""
        for loader, num_classes in zip(loaders, classes, strict=True):
            self.learn(loader, num_classes)


class Hooks:
    """What a method adds to ordinary training; every step calls them in this order. Override what is needed."""

    def penalty(self) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def after_backward(self) -> None:
        """Gradients are there; the optimizer has not moved yet."""

    def after_step(self) -> None:
        """The optimizer has moved."""


def fit(
    answer: Callable[[Tensor], Tensor],
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    schedule: Iterable[int],
    hooks: Hooks | None = None,
) -> None:
    """Ordinary training of ``answer``, a function from x to logits, by cross-entropy, in the epochs of
    ``schedule`` (Conditions.schedule, or a range).

    Raises InputError for an empty loader, NonFiniteLossError when the loss stops being finite.
    """
    hooks = hooks or Hooks()
    for epoch in schedule:
        total, batches = 0.0, 0
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(answer(x), y) + hooks.penalty()
            loss.backward()
            hooks.after_backward()
            optimizer.step()
            hooks.after_step()
            total, batches = total + loss.detach(), batches + 1
        if not batches:
            raise InputError("the loader gave no batch: its data set is empty, or drop_last=True dropped all of it.")
        if not torch.isfinite(total):
            raise NonFiniteLossError(f"the loss became NaN or infinite in epoch {epoch}: lower the learning rate.")
