"""Methods that penalise moves of important weights: elastic weight consolidation and synaptic intelligence."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels.checking import real_number, whole_number

from .base import Conditions, Hooks, gradient
from .simple import Shared


class _Quadratic(Hooks):
    """strength / 2 * sum over weights of importance * (weight - anchor)^2"""

    def __init__(self, method: Penalised):
        self.method = method

    def penalty(self) -> Tensor | float:
        method = self.method
        if not method.importance:
            return 0.0
        terms = [
            (method.importance[name] * (p - method.anchor[name]).square()).sum()
            for name, p in method.network.body_parameters()
        ]
        return method.strength / 2 * sum(terms)


class Penalised(Shared):
    """Abstract. A quadratic penalty pulls each weight towards its ``anchor``, by its ``importance``."""

    strength: float

    def __init__(self, conditions: Conditions):
        super().__init__(conditions)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    def hooks(self, task: int) -> Hooks:
        return _Quadratic(self)

    def stored_numbers(self) -> float:
        kept = [*self.importance.values(), *self.anchor.values()]
        return super().stored_numbers() + sum(t.numel() for t in kept)


class EWC(Penalised):
    """Elastic weight consolidation (Kirkpatrick et al., 2017).

    After each task, importance grows by the diagonal of the Fisher information at the task's solution, expected over
    the model's own predictions (labels are drawn from its output). The paper keeps one quadratic for each task. Their
    sum is one quadratic again, so only the sum of importances and the weighted mean of anchors are kept: the same
    penalty up to a constant.

    Args:
        strength: of the penalty.
        samples: how many of a task's samples estimate the Fisher information.
    """

    def __init__(self, conditions: Conditions, strength: float = 1000.0, samples: int = 1000):
        super().__init__(conditions)
        self.strength = real_number("strength", strength, 0.0)
        self.samples = whole_number("samples", samples, 1)

    def after_task(self, task: int, loader: Iterable) -> None:
        fisher = self.fisher(task, loader)
        for name, p in self.network.body_parameters():
            total = self.importance.get(name, 0) + fisher[name]
            weight = torch.where(total > 0, fisher[name] / total, 1)
            self.anchor[name] = torch.lerp(self.anchor.get(name, p.detach()), p.detach(), weight)
            self.importance[name] = total

    def fisher(self, task: int, loader: Iterable) -> dict[str, Tensor]:
        """Mean over samples of the squared gradient of log p(label | x), by the parameter's name.

        Labels are drawn from the model. torch.func computes gradients sample by sample, in evaluation mode.
        """
        network = self.network.eval()
        body = {name: p.detach() for name, p in network.body_parameters()}
        total = {name: torch.zeros_like(p) for name, p in body.items()}
        seen = 0

        def log_likelihood(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
            logits = torch.func.functional_call(network, parameters, (x[None], task))
            return -F.cross_entropy(logits, label[None])

        gradients = torch.func.vmap(torch.func.grad(log_likelihood), in_dims=(None, 0, 0))
        for x, _ in loader:
            for part in x[: self.samples - seen].split(16):  # each sample's gradient takes memory
                with torch.no_grad():
                    labels = torch.multinomial(network(part, task).softmax(1), 1)[:, 0]
                for name, g in gradients(body, part, labels).items():
                    total[name] += g.detach().square().sum(0)  # detached: heads require gradients
                seen += len(part)
            if seen >= self.samples:
                break
        return {name: value / seen for name, value in total.items()}


class SynapticIntelligence(Penalised):
    """Synaptic intelligence (Zenke, Poole and Ganguli, 2017).

    While a task is learned, every weight sums up how much its moves lowered the loss (-gradient * move). At the end,
    this sum over the squared distance from start to end (plus ``damping``) is added to the weight's importance.
    ``strength`` is twice the paper's c.
    """

    def __init__(self, conditions: Conditions, strength: float = 0.2, damping: float = 1e-3):
        super().__init__(conditions)
        self.strength = real_number("strength", strength, 0.0)
        self.damping = real_number("damping", damping, above=0.0)
        self._path: _Path | None = None

    def hooks(self, task: int) -> Hooks:
        self._path = _Path(self)
        return self._path

    def after_task(self, task: int, loader: Iterable) -> None:
        path = self._path
        assert path is not None, "hooks() made it before training"
        for name, p in self.network.body_parameters():
            way = p.detach() - path.start[name]
            gained = path.contribution[name].clamp_min(0) / (way.square() + self.damping)
            self.importance[name] = self.importance.get(name, torch.zeros_like(p)) + gained
            self.anchor[name] = p.detach().clone()


class _Path(_Quadratic):
    """Sums up how much each weight lowered the task's own loss, that is, without the penalty's part of the gradient."""

    def __init__(self, method: SynapticIntelligence):
        super().__init__(method)
        body = method.network.body_parameters()
        self.start = {name: p.detach().clone() for name, p in body}
        self.contribution = {name: torch.zeros_like(p) for name, p in body}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def after_backward(self) -> None:
        method = self.method
        for name, p in method.network.body_parameters():
            own = gradient(p)
            if method.importance:
                own = own - method.strength * method.importance[name] * (p.detach() - method.anchor[name])
            self._before[name] = p.detach().clone(), own.clone()

    def after_step(self) -> None:
        for name, p in self.method.network.body_parameters():
            before, own = self._before[name]
            self.contribution[name] -= own * (p.detach() - before)
