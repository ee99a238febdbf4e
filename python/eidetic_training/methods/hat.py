"""Hard attention to the task (Serra et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels.errors import InputError, NonFiniteLossError

from .base import Conditions
from .simple import Shared


class HAT(Shared):
    """Every task learns, beside the weights, a nearly binary gate for each unit; earlier tasks' gates block gradients.

    A gate is sigmoid(s * e) with an embedding e per task and unit; s rises from 1 / ``steepest`` to ``steepest``
    within every epoch and is ``steepest`` afterwards (the paper's s_max, 400). A weight's gradient is multiplied by
    1 - min(gate of its output, gate of its input) over all earlier tasks. ``sparsity`` (the paper's c, 0.75) weighs the
    share of units, not yet used by earlier tasks, that the task takes. Embedding gradients are compensated for the
    annealing, clamped, as in the paper's section 2.5. The optimizer is SGD there; here the compared one, whose moves
    of blocked weights are undone, since momentum would carry them on. BatchNorm's scale and shift count as weights of
    their unit. Chains of layers only (MLP, ConvNet): the gate multiplies what the next layer reads.
    """

    def __init__(self, conditions: Conditions, sparsity: float = 0.75, steepest: float = 400.0):
        super().__init__(conditions)
        self.sparsity, self.steepest = sparsity, steepest
        self.layers = [m for m in self.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        _require_chain(self.layers)
        self.embeddings: list[list[nn.Parameter]] = []
        self.used = [torch.zeros(layer.weight.shape[0]) for layer in self.layers]  # greatest gate of earlier tasks
        self._gates: list[Tensor] = []
        for number, layer in enumerate(self.layers[1:], start=1):
            layer.register_forward_pre_hook(lambda module, inputs, n=number: (self._gated(n - 1, inputs[0]),))

    def _gated(self, number: int, x: Tensor) -> Tensor:
        return x * self._gates[number].view(-1, *[1] * (x.dim() - 2))

    def gates(self, task: int, steepness: float) -> list[Tensor]:
        """The gates of ``task``, a tensor [units] a layer."""
        return [torch.sigmoid(steepness * e) for e in self.embeddings[task]]

    def answer(self, x: Tensor, task: int) -> Tensor:
        return self._answer(x, task, self.steepest)

    def _answer(self, x: Tensor, task: int, steepness: float) -> Tensor:
        self._gates = self.gates(task, steepness)
        features = self.network.features(x) * self._gates[-1]
        return self.network.task_heads[task](features)

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        device = head.weight.device
        self.embeddings.append([nn.Parameter(torch.randn(len(u), device=device)) for u in self.used])
        self.network.train()
        body = self.network.body_parameters()
        blocks = {name: self._open(name, p) for name, p in body}
        optimizer = self.conditions.make_optimizer(
            [*(p for _, p in body), *head.parameters(), *self.embeddings[task]]
        )
        for _ in range(self.conditions.epochs):
            self._epoch(task, list(loader), optimizer, body, blocks)
        with torch.no_grad():
            self.used = [torch.maximum(u, gate) for u, gate in zip(self.used, self.gates(task, self.steepest))]
        for e in self.embeddings[task]:
            e.requires_grad_(False)
        self.statistics.keep(task)

    def _epoch(self, task: int, batches: list, optimizer, body, blocks: dict[str, Tensor]) -> None:
        if not batches:
            raise InputError("the loader gave no batch: its data set is empty, or drop_last=True dropped all of it.")
        for number, (x, y) in enumerate(batches):
            low = 1 / self.steepest
            s = low + (self.steepest - low) * number / max(1, len(batches) - 1)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self._answer(x, task, s), y) + self.sparsity * self._taken()
            if not torch.isfinite(loss):
                raise NonFiniteLossError("the loss became NaN or infinite: lower the learning rate.")
            loss.backward()
            self._compensate(task, s)
            before = [p.detach().clone() for _, p in body]
            for name, p in body:
                p.grad *= blocks[name]
            optimizer.step()
            with torch.no_grad():
                for (name, p), old in zip(body, before):
                    p.copy_(torch.where(blocks[name] < 1e-6, old, p))

    def _taken(self) -> Tensor:
        """The share of units free of earlier tasks that the gates now open."""
        free = [1 - u for u in self.used]
        opened = sum((gate * f).sum() for gate, f in zip(self._gates, free))
        return opened / sum(f.sum() for f in free).clamp_min(1e-6)

    def _compensate(self, task: int, s: float) -> None:
        """Scale embedding gradients by s_max / s * (cosh(s e) + 1) / (cosh(e) + 1), s e clamped to 50 (section 2.5)."""
        for e in self.embeddings[task]:
            numerator = torch.cosh((s * e.detach()).clamp(-50, 50)) + 1
            e.grad *= self.steepest / s * numerator / (torch.cosh(e.detach()) + 1)
            e.data.clamp_(-6, 6)

    def _open(self, name: str, p: nn.Parameter) -> Tensor:
        """How far parameter ``name`` may move: 1 - min over (output, input) of the earlier tasks' gates."""
        layer, number = self._layer_of(p)
        out = self.used[number].to(p.device)
        if p is layer.weight and number:
            columns = self.used[number - 1].to(p.device)
            columns = columns.repeat_interleave(p.shape[1] // len(columns))
            blocked = torch.minimum(out.view(-1, 1), columns.view(1, -1))
            return 1 - blocked.view(*blocked.shape, *[1] * (p.dim() - 2))
        return 1 - out.view(-1, *[1] * (p.dim() - 1))

    def _layer_of(self, p: nn.Parameter) -> tuple[nn.Module, int]:
        """The product layer that ``p`` belongs to, or that the normalisation holding ``p`` follows."""
        number, last = -1, None
        for module in self.network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module in self.layers:
                number, last = number + 1, module
            if any(p is own for own in module.parameters(recurse=False)):
                return last, number
        raise InputError("a parameter outside every layer cannot be assigned to units.")

    def stored_numbers(self) -> float:
        bits = sum(e.numel() for task in self.embeddings for e in task)  # gates are binary in the end
        return super().stored_numbers() + bits / 32


def _require_chain(layers: list[nn.Module]) -> None:
    for before, after in zip(layers, layers[1:]):
        if after.weight.shape[1] % before.weight.shape[0]:
            raise InputError(
                "HAT here takes chains of layers (mlp, convnet), each reading the one before; this network has others."
            )
