"""The interface of every continual learning method, so that all can be compared under equal conditions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import (
    a_list,
    explained,
    function,
    instance,
    one_of,
    real_number,
    require,
    shown,
    whole_number,
)
from eidetic_kernels.errors import InputError, NonFiniteLossError, TaskError
from eidetic_kernels.tasks.checks import mean_loss, pairs

from ..training.annealing import annealed
from ..training.optimizers import OPTIMIZERS, make_optimizer


@dataclass(frozen=True)
class Conditions:
    """What is equal for all methods.

    Args:
        network: makes a fresh network of the compared architecture. Methods without segments use its plain version.
        epochs: passes over a task's data. A method that trains in stages (prune and retrain) divides them.
        optimizer: its name, one of :data:`eidetic_training.training.optimizers.OPTIMIZERS`.
        lr: its learning rate.
        seed: of weights and the order of random draws.
        polish: how many epochs, at the end of each stage, let the learning rate fall to zero.

    Raises InputError for a value of the wrong kind or out of its range.
    """

    network: Callable[[], EideticNetwork]
    epochs: int = 10
    optimizer: str = "adam"
    lr: float = 1e-3
    seed: int = 0
    polish: int = 0

    def __post_init__(self) -> None:
        function("network", self.network, "a function that makes a fresh network")
        whole_number("epochs", self.epochs, 1)
        one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        real_number("lr", self.lr, 0.0)
        whole_number("seed", self.seed, -(2**32), 2**32)  # methods draw seeds of their own from it
        whole_number("polish", self.polish)

    def schedule(self, optimizer: torch.optim.Optimizer, epochs: int | None = None) -> Iterator[int]:
        """Count ``epochs`` (all that there are, if None), and set the learning rates of each."""
        epochs = self.epochs if epochs is None else epochs
        last = min(self.polish, epochs)
        yield from range(epochs - last)
        for done in annealed(optimizer, last):
            yield epochs - last + done

    def make_optimizer(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], **arguments: Any
    ) -> torch.optim.Optimizer:
        """A new optimizer for ``parameters``, or for groups of them with their own arguments."""
        return make_optimizer(self.optimizer, parameters, **{"lr": self.lr, **arguments})


class Method(ABC):
    """Abstract. Learns tasks in order, and answers for any of them if told which task is meant (task-incremental).

    A subclass says in its docstring which paper it follows, and what it leaves out.
    """

    def __init__(self, conditions: Conditions):
        self.conditions = instance("conditions", conditions, Conditions, "Conditions(...)")
        self.tasks = 0
        torch.manual_seed(conditions.seed)

    def learn(self, loader: Iterable, num_classes: int) -> None:
        """Learn the next task from batches (x [N, ...], y [N] int64).

        Raises InputError for what is no loader, batches of the wrong kind, and a wrong number of classes.
        """
        num_classes = whole_number("num_classes", num_classes, 1)
        pairs("loader", loader)  # before a head is made
        torch.manual_seed((self.conditions.seed << 16) + self.tasks)
        self._learn(self.tasks, loader, num_classes)
        self.tasks += 1

    @abstractmethod
    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None: ...

    @torch.no_grad()
    def logits(self, x: Tensor, task: int) -> Tensor:
        """Logits [N, classes] of a learned task, in evaluation mode, without gradients.

        Raises TaskError for a task that is not learned, InputError for an input that the network cannot take.
        """
        if type(task) is not int or not 0 <= task < self.tasks:
            raise TaskError(f"task {shown(task)} is unknown: {self.tasks} tasks are learned, from 0 on.")
        with explained(f"the network cannot compute on {shown(x)}"):
            return self._logits(x, task)

    @abstractmethod
    def _logits(self, x: Tensor, task: int) -> Tensor: ...

    @abstractmethod
    def stored_numbers(self) -> float:
        """How many float32 numbers are kept to answer for all tasks; a mask bit counts as 1/32."""

    def units_used(self) -> float | None:
        """The fraction of the network's units that learned tasks own; None for a method whose tasks own no units."""
        return None

    def learn_all(self, loaders: Sequence[Iterable], classes: Sequence[int]) -> None:
        """Learn all tasks. A method that needs them at once (joint training) overrides this.

        Raises InputError unless there is a number of classes for each loader.
        """
        loaders, classes = each_with_classes(loaders, classes)
        for loader, num_classes in zip(loaders, classes, strict=True):
            self.learn(loader, num_classes)


def each_with_classes(loaders: Sequence[Iterable], classes: Sequence[int]) -> tuple[list[Iterable], list[int]]:
    """Loaders and their tasks' numbers of classes. Raises InputError where these are none, or differ in number."""
    loaders = a_list("loaders", loaders, "a list of loaders, one for each task")
    given = a_list("classes", classes, "a list of each task's number of classes")
    counts = [whole_number("classes of a task", each, 1) for each in given]
    require(len(loaders) == len(counts) > 0, f"classes must be {len(loaders)} numbers, one for each loader", classes)
    return loaders, counts


def expected_tasks(tasks: int | None) -> int | None:
    """How many tasks will come, if that is known. Raises InputError for what is no such number."""
    return None if tasks is None else whole_number("tasks", tasks, 1)


class Hooks:
    """What a method adds to ordinary training. Every step calls them in this order; override what is needed."""

    def penalty(self) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def after_backward(self) -> None:
        """Called when gradients are computed and the optimizer has not stepped yet."""

    def after_step(self) -> None:
        """Called when the optimizer has stepped."""


def fit(
    answer: Callable[[Tensor], Tensor],
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    schedule: Iterable[int],
    hooks: Hooks | None = None,
) -> None:
    """Ordinary training by cross-entropy.

    Args:
        answer: from x to logits [N, classes].
        schedule: the epochs, from :meth:`Conditions.schedule` or a range.

    Raises InputError for an empty loader or what is none, NonFiniteLossError when the loss is no longer finite.
    """
    hooks = hooks or Hooks()
    for epoch in schedule:
        total: Tensor | None = None
        for x, y in pairs("loader", loader):
            optimizer.zero_grad(set_to_none=True)
            with explained(f"the network cannot compute on {shown(x)}"):
                logits = answer(x)
            loss = mean_loss(F.cross_entropy, logits, y) + hooks.penalty()
            loss.backward()
            hooks.after_backward()
            optimizer.step()
            hooks.after_step()
            total = loss.detach() if total is None else total + loss.detach()
        if total is None:
            raise InputError("the loader gave no batch: its data set is empty, or drop_last=True dropped all of it.")
        if not torch.isfinite(total):
            raise NonFiniteLossError(f"the loss became NaN or infinite in epoch {epoch}: lower the learning rate.")


def gradient(parameter: Tensor) -> Tensor:
    """The gradient that a backward pass left; zeros if it left none."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
