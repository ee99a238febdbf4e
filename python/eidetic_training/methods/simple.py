"""Bounds: a network for every task, one network trained on one task after another, one trained on all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from eidetic_kernels.errors import TaskError
from eidetic_kernels.tasks.checks import pairs

from .base import Conditions, Hooks, Method, each_with_classes, fit
from .networks import NormStatistics, PlainNetwork, count, count_statistics, norms


class SingleTask(Method):
    """A separate network for every task: an upper bound on what a task can reach, at the cost of a network each."""

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self.networks: list[PlainNetwork] = []

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        network = PlainNetwork(self.conditions.network())
        network.add_head(num_classes)
        network.train()
        optimizer = self.conditions.make_optimizer(network.parameters())
        fit(lambda x: network(x, 0), loader, optimizer, self.conditions.schedule(optimizer))
        self.networks.append(network.eval())

    def _logits(self, x: Tensor, task: int) -> Tensor:
        return self.networks[task](x, 0)

    def stored_numbers(self) -> float:
        return sum(count(network.parameters()) + count_statistics(network) for network in self.networks)


class Shared(Method):
    """Abstract. All tasks train the body of one plain network; heads and BatchNorm statistics are each task's own."""

    per_task_statistics = True

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self.network = PlainNetwork(conditions.network())
        self.statistics = NormStatistics(self.network)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        self.network.add_head(num_classes)
        self.network.train()
        hooks = self.hooks(task)
        optimizer = self.conditions.make_optimizer(self.network.parameters_of(task))
        fit(lambda x: self.answer(x, task), loader, optimizer, self.conditions.schedule(optimizer), hooks)
        self.statistics.keep(task)
        self.after_task(task, loader)

    def answer(self, x: Tensor, task: int) -> Tensor:
        """Logits [N, classes] of ``task``, in the network's mode."""
        return self.network(x, task)

    def hooks(self, task: int) -> Hooks:
        """What training ``task`` adds to ordinary training."""
        return Hooks()

    def after_task(self, task: int, loader: Iterable) -> None:
        """Called when a task is learned: keep what later tasks need of it."""

    def _logits(self, x: Tensor, task: int) -> Tensor:
        self.network.eval()
        self.statistics.use(task if self.per_task_statistics else self.tasks - 1)
        return self.answer(x, task)

    def stored_numbers(self) -> float:
        statistics = self.statistics.numbers()
        return count(self.network.parameters()) + (statistics if self.per_task_statistics else statistics / self.tasks)


class Sequential(Shared):
    """Plain training of one task after another, with nothing against forgetting: the lower bound.

    Everything but the heads is shared, BatchNorm's statistics included, as in ordinary fine-tuning.
    """

    per_task_statistics = False


class Joint(Shared):
    """All tasks at once, a batch of each in turn: what a network can reach that may keep all data.

    Its epochs are passes over all tasks' data. BatchNorm's statistics are each task's own, measured after training.
    It learns with :meth:`learn_all` only; ``learn`` raises TaskError.
    """

    def learn_all(self, loaders: Sequence[Iterable], classes: Sequence[int]) -> None:
        loaders, classes = each_with_classes(loaders, classes)
        torch.manual_seed(self.conditions.seed << 16)
        for num_classes in classes:
            self.network.add_head(num_classes)
        self.network.train()
        optimizer = self.conditions.make_optimizer(self.network.parameters())
        for _ in self.conditions.schedule(optimizer):
            for task, batch in _in_turn(loaders):
                fit(partial(self.network, task=task), [batch], optimizer, range(1))
        for task, loader in enumerate(loaders):
            _measure_statistics(self.network, loader)
            self.statistics.keep(task)
        self.tasks = len(loaders)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        raise TaskError("joint training needs all tasks at once: call learn_all instead of learn.")


def _in_turn(loaders: Sequence[Iterable]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(task, batch): one batch of each loader in turn, until all are at their end."""
    open_loaders = {task: iter(pairs("loader", loader)) for task, loader in enumerate(loaders)}
    while open_loaders:
        for task in list(open_loaders):
            batch = next(open_loaders[task], None)
            if batch is None:
                del open_loaders[task]
            else:
                yield task, batch


@torch.no_grad()
def _measure_statistics(network: PlainNetwork, loader: Iterable) -> None:
    """Set BatchNorm's statistics to those of ``loader``: the plain average of its batches'."""
    layers = norms(network)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # makes torch average over all batches
    network.train()
    for x, _ in loader:
        network.features(x)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
