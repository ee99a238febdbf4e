"""Piggyback (Mallya, Davis and Lazebnik, 2018): a fixed network, and a learned binary mask for every later task."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eidetic_kernels.checking import real_number

from .base import Conditions, Method, fit
from .networks import NormStatistics, PlainNetwork, count, norms, products


class Piggyback(Method):
    """The first task trains the network. Every later one learns which of its weights to use, and a head.

    A weight is used if its real-valued score exceeds ``threshold``. Gradients pass the threshold as if it were not
    there. Scores start at ``start``; both are the paper's (0.005 and 0.01). ``mask_lr`` is the scores' learning rate.

    The paper's network is pre-trained on ImageNet; here it is the first task's. BatchNorm's scale and shift stay the
    first task's, and each task has its own statistics.
    """

    def __init__(self, conditions: Conditions, threshold: float = 0.005, start: float = 0.01, mask_lr: float = 1e-3):
        super().__init__(conditions)
        self.threshold, self.start = real_number("threshold", threshold), real_number("start", start)
        self.mask_lr = real_number("mask_lr", mask_lr, 0.0)
        self.network = PlainNetwork(conditions.network())
        self.statistics = NormStatistics(self.network)
        self.layers = products(self.network)
        self.masks: dict[int, list[Tensor]] = {}

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        self.network.train()
        if task == 0:
            self._train_network(loader)
        else:
            self._train_mask(task, loader, head)
        self.statistics.keep(task)

    def _train_network(self, loader: Iterable) -> None:
        conditions = self.conditions
        optimizer = conditions.make_optimizer(self.network.parameters())
        fit(lambda x: self.network(x, 0), loader, optimizer, conditions.schedule(optimizer))
        for _, p in self.network.body_parameters():
            p.requires_grad_(False)
        self.masks[0] = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in self.layers]

    def _train_mask(self, task: int, loader: Iterable, head: nn.Linear) -> None:
        conditions = self.conditions
        for layer in norms(self.network):
            layer.reset_running_stats()
        scores = [torch.full_like(layer.weight, self.start).requires_grad_() for layer in self.layers]
        groups = [{"params": scores, "lr": self.mask_lr}, {"params": list(head.parameters())}]
        optimizer = conditions.make_optimizer(groups)
        schedule = conditions.schedule(optimizer)
        fit(lambda x: self._masked(x, task, self._chosen(scores)), loader, optimizer, schedule)
        self.masks[task] = [(score > self.threshold).detach() for score in scores]

    def _chosen(self, scores: list[Tensor]) -> list[Tensor]:
        return [_Step.apply(score, self.threshold) for score in scores]

    def _masked(self, x: Tensor, task: int, masks: list[Tensor]) -> Tensor:
        """The network's answer with its weights multiplied by ``masks``."""
        names = {id(p): name for name, p in self.network.named_parameters()}
        used = {names[id(layer.weight)]: layer.weight * mask for layer, mask in zip(self.layers, masks)}
        return torch.func.functional_call(self.network, used, (x, task))

    def _logits(self, x: Tensor, task: int) -> Tensor:
        self.network.eval()
        self.statistics.use(task)
        return self._masked(x, task, self.masks[task])

    def stored_numbers(self) -> float:
        bits = sum(mask.numel() for task, masks in self.masks.items() if task for mask in masks)
        return count(self.network.parameters()) + self.statistics.numbers() + bits / 32


class _Step(torch.autograd.Function):
    """1 above the threshold, 0 below; the gradient passes unchanged (straight through)."""

    @staticmethod
    def forward(ctx, score: Tensor, threshold: float) -> Tensor:
        return (score > threshold).to(score.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
