"""The plain torch network that methods without segments train, and that benchmarks time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eidetic_kernels import EideticNetwork
from eidetic_kernels.tasks.base import OWN_MODULES

from .plain_layers import plain


class PlainNetwork(nn.Module):
    """The body of ``net`` in torch's own layers with the same weights, and a linear head for each task.

    ``net`` must be fresh, and is used up: its modules become the plain network's. The plain network runs its
    ``forward``, so both compute the same.

    Attributes:
        columns: how many features there are.
        tied: whether an addition ties several layers' units together.

    Raises InputError for a layer that has no plain version.
    """

    def __init__(self, net: EideticNetwork):
        super().__init__()
        self.columns = sum(source.columns(None) for source in net.wiring.features)
        self.tied = any(len(group.producers) > 1 for group in net.groups)
        with next(net.parameters()).device:
            self.body = _Body(net)
        self.task_heads = nn.ModuleList()

    def add_head(self, num_classes: int) -> nn.Linear:
        """A new head, for the next task."""
        head = nn.Linear(self.columns, num_classes, device=next(self.parameters()).device)
        self.task_heads.append(head)
        return head

    def features(self, x: Tensor) -> Tensor:
        """What heads read: [N, columns]."""
        return self.body(x)

    def forward(self, x: Tensor, task: int = -1) -> Tensor:
        """Logits [N, classes] of ``task``; of the latest, when it is left out."""
        return self.task_heads[task](self.features(x))

    def body_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Everything but the heads, by name: what tasks share."""
        return [(f"body.{name}", p) for name, p in self.body.named_parameters()]

    def parameters_of(self, task: int) -> list[nn.Parameter]:
        """What training ``task`` may change: the body and the task's head."""
        return [p for _, p in self.body_parameters()] + list(self.task_heads[task].parameters())


class _Body(nn.Module):
    """What a network's author wrote: its layers, its own attributes and its ``forward``."""

    def __init__(self, net: EideticNetwork):
        super().__init__()
        own = vars(net).keys() - vars(EideticNetwork()).keys()
        self.__dict__.update({name: vars(net)[name] for name in own})
        for name, child in list(net.named_children()):
            if name not in OWN_MODULES:
                setattr(self, name, plain(child))
        self._forward = type(net).forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(cast(EideticNetwork, self), x)  # it has all that the author's forward uses


def products(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear layers and convolutions in ``module``, in order."""
    return [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def norms(module: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers in ``module``, in order."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def count(parameters: Iterable[Tensor]) -> int:
    """Numbers in ``parameters``."""
    return sum(p.numel() for p in parameters)


def count_statistics(module: nn.Module) -> int:
    """Numbers in the running statistics of ``module``: a mean and a variance for each unit."""
    return sum(2 * layer.num_features for layer in norms(module))


class NormStatistics:
    """Running statistics by task, for methods that train BatchNorm anew on every task.

    Shared statistics would be the last task's: without this, every method forgets by its normalisation alone.
    """

    def __init__(self, network: nn.Module):
        self.layers = norms(network)
        self.kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def keep(self, task: int) -> None:
        """Remember the present statistics as those of ``task``."""
        self.kept[task] = [
            (m.get_buffer("running_mean").clone(), m.get_buffer("running_var").clone()) for m in self.layers
        ]

    @torch.no_grad()
    def use(self, task: int) -> None:
        """Put the statistics of ``task`` in place."""
        for layer, (mean, variance) in zip(self.layers, self.kept[task]):
            layer.get_buffer("running_mean").copy_(mean)
            layer.get_buffer("running_var").copy_(variance)

    def numbers(self) -> int:
        """How many numbers are kept."""
        return sum(count(pair) for kept in self.kept.values() for pair in kept)
