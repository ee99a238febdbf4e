"""Staircase linear: every segment's product in one call, and a backward pass for live units only.

    y[:, segment s] = x[:, reads of s] @ W_s^T + b_s

Contract (what any faster twin is held to):

    x             [N, K]   floating point; K is staircase.columns
    weight        [L, K_l] the live segment's rows over the K_l columns it reads; trainable
    bias          [L] or None; trainable
    frozen_weight flat, the blocks [rows_s, columns_s] of the frozen segments end to end; never trainable
    frozen_bias   [F] or None (given exactly when bias is)
    returns y     [N, rows of the staircase], frozen segments first

Backward writes: the gradients of ``weight`` and ``bias``; the gradient of ``x`` at the trainable columns, as the
live rows cause it, and zeros elsewhere. Frozen rows reach nothing trainable, so nothing is computed for them. With
``exact=True`` the gradient of ``x`` is complete instead: all rows, all columns (saliency, adversarial inputs).

A frozen segment's product has the same shape, and an input that lies the same way in memory, in training, in recall
and for ever after: that keeps its bits (P1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..layout import Staircase
from .staircase import StaircaseFunction, oracle


def staircase_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    exact: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes and dtypes; ``x`` is two-dimensional."""
    return StaircaseFunction.apply(x, weight, bias, frozen_weight, frozen_bias, staircase, _Linear, exact)


def staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, exact=False) -> Tensor:
    """The paper's dense masked layer, by plain autograd."""
    return oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, F.linear, exact)


class _Linear:
    """The dense product of one segment; stateless, see :class:`.staircase.Product`."""

    @staticmethod
    def forward(x, weight, bias):
        return F.linear(x, weight, bias)

    @staticmethod
    def weight_gradient(dy, x, weight):
        return dy.t() @ x

    @staticmethod
    def input_gradient(dy, x, weight):
        return dy @ weight
