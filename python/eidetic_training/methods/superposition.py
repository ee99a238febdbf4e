"""Superposition of many models into one (Cheung et al., 2019)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .base import Conditions
from .networks import products
from .simple import Shared


class Superposition(Shared):
    """Every layer's input is multiplied by random signs of the task, its context (the paper's binary superposition).

    All tasks share the weights. Contexts of different tasks are nearly orthogonal, so each task's network can be read
    out of the sum with little interference. Signs are drawn from the seed, the task and the layer, so none are stored.
    For a convolution, the context multiplies channels.
    """

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self._context = 0
        for number, layer in enumerate(products(self.network)):
            layer.register_forward_pre_hook(partial(self._multiply, number))

    def answer(self, x: Tensor, task: int) -> Tensor:
        self._context = task
        return self.network(x, task)

    def signs(self, layer: int, task: int, columns: int) -> Tensor:
        """The context of ``task`` at a layer: -1 and 1, float32 [columns]."""
        generator = torch.Generator().manual_seed((self.conditions.seed << 24) + (task << 12) + layer)
        return torch.randint(0, 2, (columns,), generator=generator).float() * 2 - 1

    def _multiply(self, layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A forward pre-hook: the inputs, the first one by the context of the task that is asked."""
        x = inputs[0]
        context = self.signs(layer, self._context, x.shape[1]).to(x.device)
        return x * context.view(-1, *[1] * (x.dim() - 2)), *inputs[1:]
