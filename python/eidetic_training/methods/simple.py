"""The bounds: a network for every task, one network trained on one task after another, one trained on all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .base import Conditions, Hooks, Method, fit
from .networks import NormStatistics, PlainNetwork, count, norms


class SingleTask(Method):
    """A network of its own for every task: the upper bound of what a task can reach, at the price of all of them."""

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

    @torch.no_grad()
    def logits(self, x: Tensor, task: int) -> Tensor:
        return self.networks[task](x, 0)

    def stored_numbers(self) -> float:
        statistics = (2 * layer.num_features for network in self.networks for layer in norms(network))
        return sum(count(network.parameters()) for network in self.networks) + sum(statistics)


class Shared(Method):
    """Abstract. One plain network whose body all tasks train, a head for each; BatchNorm statistics by task."""

    per_task_statistics = True

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self.network = PlainNetwork(conditions.network())
        self.statistics = NormStatistics(self.network)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        self.network.add_head(num_classes)
        self.network.train()
        hooks = self.hooks(task)
        trained = [p for _, p in self.network.body_parameters()] + list(self.network.task_heads[task].parameters())
        optimizer = self.conditions.make_optimizer(trained)
        fit(lambda x: self.answer(x, task), loader, optimizer, self.conditions.schedule(optimizer), hooks)
        self.statistics.keep(task)
        self.after_task(task, loader)

    def answer(self, x: Tensor, task: int) -> Tensor:
        return self.network(x, task)

    def hooks(self, task: int) -> Hooks:
        """What this task's training adds."""
        return Hooks()

    def after_task(self, task: int, loader: Iterable) -> None:
        """What is remembered of a task just learned."""

    @torch.no_grad()
    def logits(self, x: Tensor, task: int) -> Tensor:
        self.network.eval()
        self.statistics.use(task if self.per_task_statistics else self.tasks - 1)
        return self.answer(x, task)

    def stored_numbers(self) -> float:
        statistics = self.statistics.numbers()
        return count(self.network.parameters()) + (statistics if self.per_task_statistics else statistics / self.tasks)


class Sequential(Shared):
    """Plain training, one task after another, nothing done against forgetting: the lower bound.

    Everything but the heads is shared, BatchNorm's statistics included, as ordinary fine-tuning does.
    """

    per_task_statistics = False


class Joint(Shared):
    """All tasks at once, a batch of each in turn: what a network that may keep all data can reach.

    Its epochs are passes over all tasks' data. BatchNorm's statistics are each task's own, measured after training.
    """

    def learn_all(self, loaders: Sequence[Iterable], classes: Sequence[int]) -> None:
        torch.manual_seed(self.conditions.seed << 16)
        for num_classes in classes:
            self.network.add_head(num_classes)
        self.network.train()
        optimizer = self.conditions.make_optimizer(self.network.parameters())
        for _ in self.conditions.schedule(optimizer):
            for task, batch in _in_turn(loaders):
                fit(lambda x, t=task: self.network(x, t), [batch], optimizer, range(1))
        for task, loader in enumerate(loaders):
            _measure_statistics(self.network, loader)
            self.statistics.keep(task)
        self.tasks = len(loaders)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        raise NotImplementedError("joint training wants all tasks at once: call learn_all.")


def _in_turn(loaders: Sequence[Iterable]) -> Iterable[tuple[int, tuple[Tensor, Tensor]]]:
    """(task, batch), one batch of each loader after another, until all are spent."""
    open_loaders = {task: iter(loader) for task, loader in enumerate(loaders)}
    while open_loaders:
        for task in list(open_loaders):
            batch = next(open_loaders[task], None)
            if batch is None:
                del open_loaders[task]
            else:
                yield task, batch


@torch.no_grad()
def _measure_statistics(network: PlainNetwork, loader: Iterable) -> None:
    """BatchNorm's statistics over ``loader``, as the plain average of its batches'."""
    layers = NormStatistics(network).layers
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's word for the average over all batches
    network.train()
    for x, _ in loader:
        network.features(x)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
