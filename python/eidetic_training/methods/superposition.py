"""Superposition of many models into one (Cheung et al., 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Conditions
from .simple import Shared


class Superposition(Shared):
    """Every layer's input is multiplied by the task's own random signs (the paper's binary superposition).

    All tasks share the weights; contexts of different tasks are nearly orthogonal, so each task's network can be read
    back from the sum with little interference. Signs are drawn from the seed and the task, so nothing is stored for
    them. For a convolution the context multiplies channels.
    """

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self._context = 0
        for number, layer in enumerate(self._layers()):
            layer.register_forward_pre_hook(lambda module, inputs, n=number: (self._signed(n, inputs[0]), *inputs[1:]))

    def answer(self, x: Tensor, task: int) -> Tensor:
        self._context = task
        return self.network(x, task)

    def signs(self, layer: int, task: int, columns: int) -> Tensor:
        """The context of ``task`` at a layer: [columns] of -1 and 1."""
        generator = torch.Generator().manual_seed((self.conditions.seed << 24) + (task << 12) + layer)
        return torch.randint(0, 2, (columns,), generator=generator).float() * 2 - 1

    def _signed(self, layer: int, x: Tensor) -> Tensor:
        context = self.signs(layer, self._context, x.shape[1]).to(x.device)
        return x * context.view(-1, *[1] * (x.dim() - 2))

    def _layers(self) -> list[nn.Module]:
        return [m for m in self.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
