"""Hard attention to the task (Serra et al., 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from functools import partial

import torch
from torch import Tensor, nn

from eidetic_kernels.checking import real_number
from eidetic_kernels.errors import InputError

from .base import Conditions, Hooks, fit, gradient
from .networks import products
from .simple import Shared


class HAT(Shared):
    """Every task learns the weights and a nearly binary gate for each unit. Gates of earlier tasks block its moves.

    A gate is sigmoid(s * e), with an embedding e for each task and unit. s rises from 1 / ``steepest`` to ``steepest``
    within every epoch, and stays at ``steepest`` afterwards (the paper's s_max, 400). ``sparsity`` (the paper's c,
    0.75) weighs the fraction of units that the task takes among those not yet used. The embeddings' gradients are
    compensated for the annealing (section 2.5 of that paper).

    A weight moves by its step times 1 - min(gate of its output, gate of its input), over all earlier tasks. The paper
    multiplies the gradient, which for SGD is the same; Adam would divide it out again, so here it multiplies the move.
    Adam's moves are all about as large as its rate, too small for an embedding to cross zero: embeddings have a rate of
    their own, ``gate_lr``. BatchNorm's scale and shift count as weights of their unit.

    Chains of layers only (MLP, ConvNet), since a gate multiplies what the next layer reads. Raises InputError for
    other networks.
    """

    def __init__(self, conditions: Conditions, sparsity: float = 0.75, steepest: float = 400.0, gate_lr: float = 0.1):
        super().__init__(conditions)
        self.sparsity, self.steepest = real_number("sparsity", sparsity, 0.0), real_number("steepest", steepest, 1.0)
        self.gate_lr = real_number("gate_lr", gate_lr, 0.0)
        self.layers = products(self.network)
        self._require_chain()
        self.embeddings: list[list[nn.Parameter]] = []
        self.used = [torch.zeros(layer.weight.shape[0]) for layer in self.layers]  # greatest gate of earlier tasks
        self._gates: list[Tensor] = []
        for number, layer in enumerate(self.layers[1:]):
            layer.register_forward_pre_hook(partial(self._multiply, number))

    def gates(self, task: int, steepness: float) -> list[Tensor]:
        """The gates of ``task``: a tensor [units] for each layer."""
        return [torch.sigmoid(steepness * e) for e in self.embeddings[task]]

    def answer(self, x: Tensor, task: int) -> Tensor:
        return self.gated_answer(x, task, self.steepest)

    def gated_answer(self, x: Tensor, task: int, steepness: float) -> Tensor:
        """Logits [N, classes], with gates of this steepness."""
        self._gates = self.gates(task, steepness)
        return self.network.task_heads[task](self._gated(-1, self.network.features(x)))

    def _multiply(self, number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """A forward pre-hook of the layer after layer ``number``: its input, gated."""
        return (self._gated(number, inputs[0]),)

    def _gated(self, number: int, x: Tensor) -> Tensor:
        """What layer ``number`` computes, times its gates."""
        gates = self._gates[number]
        gates = gates.repeat_interleave(x.shape[1] // len(gates))  # flattened images: a channel's pixels in a row
        return x * gates.view(-1, *[1] * (x.dim() - 2))

    def _learn(self, task: int, loader: Iterable, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        self.embeddings.append([nn.Parameter(torch.randn(len(u), device=head.weight.device)) for u in self.used])
        if not isinstance(loader, Sized):
            raise InputError("HAT needs a loader with a length, since its gates are annealed within each epoch.")
        self.network.train()
        gates = {"params": self.embeddings[task], "lr": self.gate_lr}
        optimizer = self.conditions.make_optimizer([{"params": self.network.parameters_of(task)}, gates])
        hooks = _Attention(self, task, len(loader))
        schedule = self.conditions.schedule(optimizer)
        fit(lambda x: self.gated_answer(x, task, hooks.steepness), loader, optimizer, schedule, hooks)
        for e in self.embeddings[task]:
            e.requires_grad_(False)
        self.used = [torch.maximum(u, gate.cpu()) for u, gate in zip(self.used, self.gates(task, self.steepest))]
        self.statistics.keep(task)

    def taken(self) -> Tensor:
        """The fraction that the latest answer's gates open, of the units that earlier tasks do not use."""
        free = [1 - u.to(gate.device) for u, gate in zip(self.used, self._gates)]
        none = torch.zeros(())
        opened = sum(((gate * f).sum() for gate, f in zip(self._gates, free)), none)
        return opened / sum((f.sum() for f in free), none).clamp_min(1e-6)

    def open(self, p: nn.Parameter) -> Tensor:
        """The factor on a parameter's moves: 1 - min(gate of its output, gate of its input), of earlier tasks."""
        layer, number = self._layer_of(p)
        out = self.used[number].to(p.device)
        if p is layer.weight and number:
            columns = self.used[number - 1].to(p.device)
            columns = columns.repeat_interleave(p.shape[1] // len(columns))
            blocked = torch.minimum(out.view(-1, 1), columns.view(1, -1))
            return 1 - blocked.view(*blocked.shape, *[1] * (p.dim() - 2))
        return 1 - out.view(-1, *[1] * (p.dim() - 1))

    def _layer_of(self, p: nn.Parameter) -> tuple[nn.Linear | nn.Conv2d, int]:
        """The linear layer or convolution that ``p`` belongs to, or that comes before the BatchNorm of ``p``."""
        number = -1
        for module in self.network.body.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                number += 1
            if number >= 0 and any(p is own for own in module.parameters(recurse=False)):
                return self.layers[number], number
        raise InputError(
            "a parameter belongs to no layer, so that its units are unknown: compare HAT on a network without it."
        )

    def _require_chain(self) -> None:
        follows = all(b.weight.shape[1] % a.weight.shape[0] == 0 for a, b in zip(self.layers, self.layers[1:]))
        if self.network.tied or not follows:
            raise InputError(
                "HAT takes chains of layers (mlp, convnet), each reading the one before; this network has others."
            )

    def stored_numbers(self) -> float:
        bits = sum(e.numel() for task in self.embeddings for e in task)  # gates are binary in the end
        return super().stored_numbers() + bits / 32


class _Attention(Hooks):
    """What HAT adds to training: annealed gates, and weights that move only as far as earlier gates let them."""

    def __init__(self, method: HAT, task: int, batches: int):
        self.method, self.embeddings, self.batches, self.batch = method, method.embeddings[task], batches, 0
        self.body = [p for _, p in method.network.body_parameters()]
        self.open = [method.open(p) for p in self.body]

    @property
    def steepness(self) -> float:
        """Of the gates, at this batch of the epoch."""
        steepest = self.method.steepest
        progress = self.batch % self.batches / max(1, self.batches - 1)
        return 1 / steepest + (steepest - 1 / steepest) * progress

    def penalty(self) -> Tensor:
        return self.method.sparsity * self.method.taken()

    def after_backward(self) -> None:
        s, steepest = self.steepness, self.method.steepest
        for e in self.embeddings:
            numerator = torch.cosh((s * e.detach()).clamp(-50, 50)) + 1
            gradient(e).mul_(steepest / s * numerator / (torch.cosh(e.detach()) + 1))
        self.before = [p.detach().clone() for p in self.body]

    @torch.no_grad()
    def after_step(self) -> None:
        for p, before, factor in zip(self.body, self.before, self.open):
            p.copy_(torch.lerp(before, p, factor))
        for e in self.embeddings:
            e.clamp_(-6, 6)  # keeps gates plastic, as in the paper
        self.batch += 1
