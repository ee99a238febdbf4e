"""Continual learning via neural pruning (Golkar, Kagan and Cho, 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import real_number
from eidetic_kernels.modes import evaluating
from eidetic_kernels.tasks.pruning import GroupPlan, PruningPlan

from ..training.epoch import evaluate
from .base import Conditions, Hooks, fit
from .segmented import Segmented


class CLNP(Segmented):
    """Train with a penalty on activity, then keep the active units, as few as ``tolerance`` allows.

    The paper's method has the same staircase: active units are frozen, nothing leads from free units into them, and
    free ones are trained for the next task. It differs from Eidetic Learning in how units are chosen: an L1 penalty on
    activations (``sparsity``), one pass without recovery, and a threshold on mean activity for each layer. Here the
    threshold is the largest for which training accuracy falls by at most ``tolerance`` (the paper's m %), one layer
    after another.
    """

    def __init__(
        self, conditions: Conditions, tasks: int | None = None, sparsity: float = 1e-4, tolerance: float = 0.005
    ):
        super().__init__(conditions, tasks)
        self.sparsity = real_number("sparsity", sparsity, 0.0)
        self.tolerance = real_number("tolerance", tolerance, 0.0, below=1.0)

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
            # Bisection, to 1 % of the units: accuracy falls with nearly every unit that goes.
            while enough - few > max(1, len(order) // 100):
                middle = (enough + few) // 2
                before = net.snapshot()
                self._cut(number, order[:middle])
                good = self.accuracy(loader) >= least
                net.restore(before)
                enough, few = (middle, few) if good else (enough, middle)
            self._cut(number, order[:enough])

    def _cut(self, number: int, kept: Tensor) -> None:
        """Keep only the live units ``kept`` of a group."""
        group = self.network.groups[number]
        keep = kept.sort().values.cpu()
        self.network.apply_plan(PruningPlan("activity", (GroupPlan(group.name, group.segments.live, keep),)))

    @torch.no_grad()
    def mean_activity(self, loader: Iterable) -> list[Tensor]:
        """Mean |activation| of every live unit over ``loader``: a tensor [live] for each unit group."""
        sums: list[Tensor] | None = None
        samples = 0
        with evaluating(self.network):
            for x, _ in loader:
                with _Activity(self.network) as activity:
                    self.network(x)
                means = activity.means()
                sums = [m * len(x) for m in means] if sums is None else [s + m * len(x) for s, m in zip(sums, means)]
                samples += len(x)
        return [s / samples for s in sums or ()]

    def accuracy(self, loader: Iterable) -> float:
        """Training accuracy in evaluation mode."""
        return evaluate(self.network, loader).accuracy


class _Activity:
    """Captures what each unit group's live units compute in every forward pass, through a ReLU.

    That is the output of the group's layer that runs last. Norms that are part of a layer run in that layer's pass.
    """

    def __init__(self, net: EideticNetwork):
        self.net = net
        self.handles: list[RemovableHandle] = []
        self._captured: dict[int, Tensor] = {}

    def __enter__(self) -> _Activity:
        for number, group in enumerate(self.net.groups):
            frozen = group.segments.frozen_total
            for layer in group.layers:
                self.handles.append(layer.register_forward_hook(partial(self._capture, number, frozen)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def _capture(self, number: int, frozen: int, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        self._captured[number] = y[:, frozen:]

    @property
    def live(self) -> dict[int, Tensor]:
        """Activations [N, live, *] of the latest pass, by the group's number."""
        return {number: F.relu(y) for number, y in self._captured.items()}

    def total(self) -> Tensor:
        """The L1 norm of live activations, averaged over samples and positions, summed over groups."""
        return sum((a.sum(1).mean() for a in self.live.values()), torch.zeros(()))

    def means(self) -> list[Tensor]:
        """Mean activation [live] of each group, in their order."""
        return [a.mean((0, *range(2, a.dim()))) for _, a in sorted(self.live.items())]


class _Sparse(Hooks):
    """The penalty on activity."""

    def __init__(self, activity: _Activity, strength: float):
        self.activity, self.strength = activity, strength

    def penalty(self) -> Tensor:
        return self.strength * self.activity.total()
