"""Continual learning via neural pruning (Golkar, Kagan and Cho, 2019)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels.modes import evaluating
from eidetic_kernels.tasks.pruning import GroupPlan, PruningPlan

from .base import Conditions, Hooks, fit
from .segmented import Segmented


class CLNP(Segmented):
    """Train with a penalty on activity, then keep the units that are active, as few as ``tolerance`` allows.

    The paper's method is the same staircase: active units are frozen, nothing leads from free units into them, free
    ones are trained for the next task. What differs from Eidetic Learning is how units are chosen: an L1 penalty on
    activations (``sparsity``), one pass, no recovery, and per layer a threshold on mean activity, here the
    largest for which training accuracy falls by at most ``tolerance`` (the paper's m %), layer after layer.
    """

    def __init__(
        self, conditions: Conditions, tasks: int | None = None, sparsity: float = 1e-4, tolerance: float = 0.005
    ):
        super().__init__(conditions, tasks)
        self.sparsity, self.tolerance = sparsity, tolerance

    def _train(self, task: int, loader: Iterable) -> None:
        net = self.network.train()
        optimizer = self.conditions.make_optimizer(net.parameters())
        with _Activity(net) as activity:
            fit(net, loader, optimizer, self.conditions.schedule(optimizer), _Sparse(activity, self.sparsity))
        self._keep_the_active(loader)

    @torch.no_grad()
    def _keep_the_active(self, loader: Iterable) -> None:
        net = self.network
        activity = self.mean_activity(loader)
        least = self.accuracy(loader) * (1 - self.tolerance)
        for number in range(len(net.groups)):
            order = activity[number].argsort(descending=True)
            enough, few = len(order), 0
            while enough - few > max(1, len(order) // 100):  # bisection: accuracy falls with every unit, nearly
                middle = (enough + few) // 2
                before = net.snapshot()
                self._cut(number, order[:middle])
                good = self.accuracy(loader) >= least
                net.restore(before)
                enough, few = (middle, few) if good else (enough, middle)
            self._cut(number, order[:enough])

    def _cut(self, number: int, kept: Tensor) -> None:
        group = self.network.groups[number]
        keep = kept.sort().values.cpu()
        self.network.apply_plan(PruningPlan("activity", (GroupPlan(group.name, group.segments.live, keep),)))

    @torch.no_grad()
    def mean_activity(self, loader: Iterable) -> list[Tensor]:
        """Mean |activation| of every live unit over ``loader``, a tensor [live] a unit group."""
        sums, samples = None, 0
        with evaluating(self.network):
            for x, _ in loader:
                with _Activity(self.network) as activity:
                    self.network(x)
                means = activity.means()
                sums = [m * len(x) for m in means] if sums is None else [s + m * len(x) for s, m in zip(sums, means)]
                samples += len(x)
        return [s / samples for s in sums]

    @torch.no_grad()
    def accuracy(self, loader: Iterable) -> float:
        """Training accuracy in evaluation mode."""
        right = samples = 0
        with evaluating(self.network):
            for x, y in loader:
                right += int((self.network(x).argmax(1) == y).sum())
                samples += len(x)
        return right / samples


class _Activity:
    """Records, in every forward pass, what follows each unit group: the ReLU of its last layer's live units.

    The last is the one that runs last; norms that are part of a layer run in that layer's pass.
    """

    def __init__(self, net: nn.Module):
        self.net = net
        self._captured: dict[int, Tensor] = {}

    def __enter__(self) -> _Activity:
        self.handles = []
        for number, group in enumerate(self.net.groups):
            frozen = group.segments.frozen_total
            for layer in group.layers:
                hook = layer.register_forward_hook(
                    lambda module, inputs, y, n=number, f=frozen: self._captured.__setitem__(n, y[:, f:])
                )
                self.handles.append(hook)
        return self

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def live(self) -> dict[int, Tensor]:
        """By the group's number, [N, live, *]."""
        return {number: F.relu(y) for number, y in self._captured.items()}

    def total(self) -> Tensor:
        """The L1 norm of live activations, a mean over samples and positions."""
        return sum(a.sum(1).mean() for a in self.live.values())

    def means(self) -> list[Tensor]:
        return [a.mean((0, *range(2, a.dim()))) for _, a in sorted(self.live.items())]


class _Sparse(Hooks):
    def __init__(self, activity: _Activity, strength: float):
        self.activity, self.strength = activity, strength

    def penalty(self) -> Tensor:
        return self.strength * self.activity.total()
