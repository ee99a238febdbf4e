"""Muon, an optimizer for the weights of convolutions before BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum, every step made orthogonal, on weights of constant norm (Jordan et al., 2024).

    A weight [units, ...] is one matrix, a unit a row, kept at a mean square of 1 a row: BatchNorm after it makes its
    scale no matter. Hence one learning rate fits layers of any size; fewer steps may want a larger one (0.1 for 130
    steps of table 7's router, 0.04 for 1,800). As ``torch.optim.Muon``, but in float32: on a CPU
    without bfloat16 that took 0.025 s a step of six convolutions to 128 channels, instead of 0.35.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 0.04, momentum: float = 0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                mean.mul_(group["momentum"]).add_(weight.grad)
                direction = weight.grad.add(mean, alpha=group["momentum"]).flatten(1)
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.sub_(orthogonal(direction).view_as(weight), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Roughly the nearest matrix with orthonormal rows, or columns where these are fewer: its singular values come to
    lie in about [0.7, 1.2], after five steps of Newton and Schulz with Jordan's coefficients. Zero stays zero."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(5):
        squares = x @ x.T
        x = 3.4445 * x + (-4.7750 * squares + 2.0315 * squares @ squares) @ x
    return x.T if tall else x
