"""PackNet (Mallya and Lazebnik, 2018): weights packed task by task into one network by magnitude pruning."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .base import Conditions, Hooks, Method, fit
from .networks import PlainNetwork, count, norms

FREE = -1  # the owner of a weight that no task has


class PackNet(Method):
    """Train the free weights, prune the smallest, retrain what is left and freeze it; pruned ones are free again.

    A task runs with the weights of tasks up to its own. As in the paper, biases and BatchNorm are trained with the
    first task and fixed from then on, and ``prune`` is the share of a layer's free weights given back after each task
    (0.5 and 0.75 there); the last third of the epochs retrains. ``tasks`` known beforehand may be given instead: then
    what is free is divided evenly among the tasks to come.
    """

    def __init__(self, conditions: Conditions, prune: float = 0.75, tasks: int | None = None):
        super().__init__(conditions)
        self.share, self.expected = prune, tasks
        self.network = PlainNetwork(conditions.network())
        # Of the body alone: heads come later and belong to their tasks.
        self.layers = [m for m in self.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        self.owner = [torch.full_like(layer.weight, FREE, dtype=torch.int16) for layer in self.layers]

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        self.network.train()
        if task:
            for layer in norms(self.network):
                layer.eval()
            for _, p in self.network.body_parameters():
                if not any(p is layer.weight for layer in self.layers):
                    p.requires_grad_(False)
            self._start()
        trained = [p for _, p in self.network.body_parameters() if p.requires_grad] + list(head.parameters())
        epochs = self.conditions.epochs
        for stage, share in (("train", epochs - epochs // 3), ("retrain", epochs // 3)):
            if stage == "retrain":
                self._give_back(task)
            optimizer = self.conditions.make_optimizer(trained)
            schedule = self.conditions.schedule(optimizer, share)
            fit(lambda x: self.network(x, task), loader, optimizer, schedule, _Packed(self))
        self._claim(task)

    @torch.no_grad()
    def _start(self) -> None:
        """Free weights start from torch's initialisation: the last task left them at 0."""
        for layer, owner in zip(self.layers, self.owner):
            fresh = torch.empty_like(layer.weight)
            nn.init.kaiming_uniform_(fresh, a=5**0.5)
            layer.weight.copy_(torch.where(owner == FREE, fresh, layer.weight))

    @torch.no_grad()
    def _give_back(self, task: int) -> None:
        """Prune the smallest free weights of each layer."""
        for layer, owner in zip(self.layers, self.owner):
            free = owner == FREE
            share = self.share if self.expected is None else 1 - 1 / max(1, self.expected - task)
            pruned = int(free.sum() * share)
            if pruned:
                smallest = layer.weight.abs().masked_fill(~free, torch.inf).flatten().topk(pruned, largest=False)
                layer.weight.view(-1)[smallest.indices] = 0
                owner.view(-1)[smallest.indices] = task + 1  # set aside; free again once the task is learned
        self._aside = task + 1

    def _claim(self, task: int) -> None:
        for owner in self.owner:
            owner[owner == FREE] = task
            owner[owner == self._aside] = FREE

    @torch.no_grad()
    def logits(self, x: Tensor, task: int) -> Tensor:
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
        statistics = sum(2 * layer.num_features for layer in norms(self.network))
        return count(self.network.parameters()) + statistics + masks


class _Packed(Hooks):
    """Owned and set-aside weights do not move: neither by their gradient nor by the optimizer's own doing."""

    def __init__(self, method: PackNet):
        self.method = method
        self.fixed = [(layer.weight.detach().clone(), owner != FREE) for layer, owner in _pairs(method)]

    def after_backward(self) -> None:
        for (layer, _), (_, fixed) in zip(_pairs(self.method), self.fixed):
            layer.weight.grad.masked_fill_(fixed, 0)

    @torch.no_grad()
    def after_step(self) -> None:
        for (layer, _), (before, fixed) in zip(_pairs(self.method), self.fixed):
            layer.weight.copy_(torch.where(fixed, before, layer.weight))


def _pairs(method: PackNet):
    return zip(method.layers, method.owner)
