"""PackNet (Mallya and Lazebnik, 2018): weights packed task by task into one network by magnitude pruning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from eidetic_kernels.checking import real_number

from .base import Conditions, Hooks, Method, expected_tasks, fit, gradient
from .networks import PlainNetwork, count, count_statistics, norms, products

FREE = -1  # the owner of a weight that no task owns


class PackNet(Method):
    """Train the free weights, prune the smallest, retrain the rest and freeze it. Pruned weights are free again.

    A task runs with the weights of tasks up to its own. As in the paper, biases and BatchNorm are trained with the
    first task and fixed from then on. The last third of the epochs retrains.

    Args:
        prune: the fraction of a layer's free weights that each task gives back (the paper's 0.5 or 0.75).
        tasks: how many will come, if known; free weights are then divided evenly among them, whatever ``prune`` is.
    """

    def __init__(self, conditions: Conditions, prune: float = 0.75, tasks: int | None = None):
        super().__init__(conditions)
        self.fraction, self.expected = real_number("prune", prune, 0.0, below=1.0), expected_tasks(tasks)
        self.network = PlainNetwork(conditions.network())
        self.layers = products(self.network)  # of the body alone: heads come later and belong to their tasks
        self.owner = [torch.full_like(layer.weight, FREE, dtype=torch.int16) for layer in self.layers]

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        self.network.train()
        if task:
            self._fix_all_but_weights()
            self._start()

        trained = [p for _, p in self.network.body_parameters() if p.requires_grad] + list(head.parameters())
        epochs = self.conditions.epochs
        for stage, passes in (("train", epochs - epochs // 3), ("retrain", epochs // 3)):
            if stage == "retrain":
                self._give_back(task)
            optimizer = self.conditions.make_optimizer(trained)
            schedule = self.conditions.schedule(optimizer, passes)
            fit(lambda x: self.network(x, task), loader, optimizer, schedule, _Packed(self))
        self._claim(task)

    def _fix_all_but_weights(self) -> None:
        """Biases and BatchNorm stay as the first task left them."""
        for layer in norms(self.network):
            layer.eval()
        for _, p in self.network.body_parameters():
            if not any(p is layer.weight for layer in self.layers):
                p.requires_grad_(False)

    @torch.no_grad()
    def _start(self) -> None:
        """Initialise free weights as torch does: the last task left them at 0."""
        for layer, owner in zip(self.layers, self.owner):
            fresh = torch.empty_like(layer.weight)
            nn.init.kaiming_uniform_(fresh, a=5**0.5)
            layer.weight.copy_(torch.where(owner == FREE, fresh, layer.weight))

    @torch.no_grad()
    def _give_back(self, task: int) -> None:
        """Prune the smallest free weights of each layer."""
        for layer, owner in zip(self.layers, self.owner):
            free = owner == FREE
            fraction = self.fraction if self.expected is None else 1 - 1 / max(1, self.expected - task)
            pruned = int(free.sum() * fraction)
            if pruned:
                smallest = layer.weight.abs().masked_fill(~free, torch.inf).flatten().topk(pruned, largest=False)
                layer.weight.view(-1)[smallest.indices] = 0
                owner.view(-1)[smallest.indices] = task + 1  # set aside; free again once the task is learned
        self._aside = task + 1

    def _claim(self, task: int) -> None:
        """Free weights become the task's; what was set aside is free."""
        for owner in self.owner:
            owner[owner == FREE] = task
            owner[owner == self._aside] = FREE

    def _logits(self, x: Tensor, task: int) -> Tensor:
        self.network.eval()
        whole = [layer.weight.clone() for layer in self.layers]
        for layer, owner in zip(self.layers, self.owner):
            layer.weight.mul_((owner <= task) & (owner != FREE))
        answer = self.network(x, task)
        for layer, weight in zip(self.layers, whole):
            layer.weight.copy_(weight)
        return answer

    def stored_numbers(self) -> float:
        bits = max(1, self.tasks).bit_length()  # an owner for each weight
        masks = sum(owner.numel() for owner in self.owner) * bits / 32
        return count(self.network.parameters()) + count_statistics(self.network) + masks


class _Packed(Hooks):
    """Owned and set-aside weights do not move, neither by their gradient nor by the optimizer's decay or momentum."""

    def __init__(self, method: PackNet):
        self.method = method
        self.fixed = [(layer.weight.detach().clone(), owner != FREE) for layer, owner in _pairs(method)]

    def after_backward(self) -> None:
        for (layer, _), (_, fixed) in zip(_pairs(self.method), self.fixed):
            gradient(layer.weight).masked_fill_(fixed, 0)

    @torch.no_grad()
    def after_step(self) -> None:
        for (layer, _), (before, fixed) in zip(_pairs(self.method), self.fixed):
            layer.weight.copy_(torch.where(fixed, before, layer.weight))


def _pairs(method: PackNet) -> Iterator[tuple[nn.Linear | nn.Conv2d, Tensor]]:
    return zip(method.layers, method.owner)
