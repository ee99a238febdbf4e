"""Hard attention to the task (Serra et al., 2018)."""

from __future__ import annotations

from collections.abc import Sized

import torch
from torch import Tensor, nn

from eidetic_kernels.errors import InputError

from .base import Conditions, Hooks, fit
from .simple import Shared


class HAT(Shared):
    """Every task learns, beside the weights, a nearly binary gate for each unit; earlier tasks' gates block its moves.

    A gate is sigmoid(s * e) with an embedding e per task and unit; s rises from 1 / ``steepest`` to ``steepest`` within
    every epoch and is ``steepest`` afterwards (the paper's s_max, 400). ``sparsity`` (the paper's c, 0.75) weighs the
    share of units, not yet used by earlier tasks, that the task takes. Embeddings' gradients are compensated for the
    annealing (the paper's section 2.5). A weight makes 1 - min(gate of its output, gate of its input) over all earlier
    tasks of its move. There this multiplies the gradient, which for SGD is the same; Adam would divide it out again, so
    here it multiplies the move. Adam's moves are all about as large as its rate, too small for an embedding to cross
    zero: embeddings have a rate of their own, ``gate_lr``. BatchNorm's scale and shift count as weights of their unit.
    Chains of layers only (MLP, ConvNet): a gate multiplies what the next layer reads.
    """

    def __init__(self, conditions: Conditions, sparsity: float = 0.75, steepest: float = 400.0, gate_lr: float = 0.1):
        super().__init__(conditions)
        self.sparsity, self.steepest, self.gate_lr = sparsity, steepest, gate_lr
        self.layers = [m for m in self.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        self._require_chain()
        self.embeddings: list[list[nn.Parameter]] = []
        self.used = [torch.zeros(layer.weight.shape[0]) for layer in self.layers]  # greatest gate of earlier tasks
        self._gates: list[Tensor] = []
        for number, layer in enumerate(self.layers[1:], start=1):
            layer.register_forward_pre_hook(lambda module, inputs, n=number: (self._gated(n - 1, inputs[0]),))

    def gates(self, task: int, steepness: float) -> list[Tensor]:
        """The gates of ``task``, a tensor [units] a layer."""
        return [torch.sigmoid(steepness * e) for e in self.embeddings[task]]

    def answer(self, x: Tensor, task: int) -> Tensor:
        return self.gated_answer(x, task, self.steepest)

    def gated_answer(self, x: Tensor, task: int, steepness: float) -> Tensor:
        """Logits with gates as steep as asked for."""
        self._gates = self.gates(task, steepness)
        return self.network.task_heads[task](self._gated(-1, self.network.features(x)))

    def _gated(self, number: int, x: Tensor) -> Tensor:
        gates = self._gates[number]
        gates = gates.repeat_interleave(x.shape[1] // len(gates))  # flattened images: a channel's pixels in a row
        return x * gates.view(-1, *[1] * (x.dim() - 2))

    def _learn(self, task: int, loader: Sized, num_classes: int) -> None:
        head = self.network.add_head(num_classes)
        self.embeddings.append([nn.Parameter(torch.randn(len(u), device=head.weight.device)) for u in self.used])
        self.network.train()
        weights = [p for _, p in self.network.body_parameters()] + list(head.parameters())
        gates = {"params": self.embeddings[task], "lr": self.gate_lr}
        optimizer = self.conditions.make_optimizer([{"params": weights}, gates])
        hooks = _Attention(self, task, len(loader))
        schedule = self.conditions.schedule(optimizer)
        fit(lambda x: self.gated_answer(x, task, hooks.steepness), loader, optimizer, schedule, hooks)
        for e in self.embeddings[task]:
            e.requires_grad_(False)
        self.used = [torch.maximum(u, gate.cpu()) for u, gate in zip(self.used, self.gates(task, self.steepest))]
        self.statistics.keep(task)

    def taken(self) -> Tensor:
        """The share of units free of earlier tasks that the latest answer's gates open."""
        free = [1 - u.to(gate.device) for u, gate in zip(self.used, self._gates)]
        opened = sum((gate * f).sum() for gate, f in zip(self._gates, free))
        return opened / sum(f.sum() for f in free).clamp_min(1e-6)

    def open(self, p: nn.Parameter) -> Tensor:
        """How far a parameter of the body may move: 1 - min over (output, input) of the earlier tasks' gates."""
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
        for module in self.network.body.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                number, last = number + 1, module
            if any(p is own for own in module.parameters(recurse=False)):
                return last, number
        raise InputError("a parameter outside every layer cannot be assigned to units.")

    def _require_chain(self) -> None:
        follows = all(b.weight.shape[1] % a.weight.shape[0] == 0 for a, b in zip(self.layers, self.layers[1:]))
        if self.network.tied or not follows:
            raise InputError(
                "HAT here takes chains of layers (mlp, convnet), each reading the one before; this network has others."
            )

    def stored_numbers(self) -> float:
        bits = sum(e.numel() for task in self.embeddings for e in task)  # gates are binary in the end
        return super().stored_numbers() + bits / 32


class _Attention(Hooks):
    """One task's training: the annealing, and how far each weight may move."""

    def __init__(self, method: HAT, task: int, batches: int):
        self.method, self.embeddings, self.batches, self.batch = method, method.embeddings[task], batches, 0
        self.body = [p for _, p in method.network.body_parameters()]
        self.open = [method.open(p) for p in self.body]

    @property
    def steepness(self) -> float:
        steepest = self.method.steepest
        share = self.batch % self.batches / max(1, self.batches - 1)
        return 1 / steepest + (steepest - 1 / steepest) * share

    def penalty(self) -> Tensor:
        return self.method.sparsity * self.method.taken()

    def after_backward(self) -> None:
        s, steepest = self.steepness, self.method.steepest
        for e in self.embeddings:
            numerator = torch.cosh((s * e.detach()).clamp(-50, 50)) + 1
            e.grad *= steepest / s * numerator / (torch.cosh(e.detach()) + 1)
        self.before = [p.detach().clone() for p in self.body]

    @torch.no_grad()
    def after_step(self) -> None:
        for p, before, share in zip(self.body, self.before, self.open):
            p.copy_(torch.lerp(before, p, share))
        for e in self.embeddings:
            e.clamp_(-6, 6)  # keeps gates plastic, as in the paper
        self.batch += 1
