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

from .. import backends
from ..layout import Staircase
from .registration import Op, decoded, encoded
from .staircase import StaircaseFunction, fake_gradients, gradients, oracle, products


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
    return OP(x, weight, bias, frozen_weight, frozen_bias, encoded(staircase), staircase.rows, exact)


def staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, exact=False) -> Tensor:
    """The paper's dense masked layer, by plain autograd."""
    return oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, F.linear, exact)


class Linear:
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

    @staticmethod
    def arranged(y, x, weight):
        return y

    @staticmethod
    def empty(x, weight, rows):
        return x.new_empty(x.shape[0], rows)


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, exact):
    staircase = decoded(numbers)
    twin = backends.implementation("staircase_linear", x, weight, frozen_weight, staircase)
    if twin is not None:
        return twin.staircase_linear_forward(x, weight, bias, frozen_weight, frozen_bias, staircase)
    return products(x, weight, bias, frozen_weight, frozen_bias, staircase, Linear)


def _backward(dy, x, weight, frozen_weight, numbers, exact, *needed):
    staircase = decoded(numbers)
    dy_frozen, dy_live = dy[:, : staircase.frozen_rows], dy[:, staircase.frozen_rows :]
    return gradients(
        dy_frozen if exact else None, dy_live, x, weight, frozen_weight, staircase, Linear, *needed
    )  # fmt: skip


OP = Op(
    "staircase_linear(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, SymInt rows, bool exact) -> Tensor",
    _forward,
    lambda x, weight, bias, frozen_weight, frozen_bias, numbers, rows, exact: Linear.empty(x, weight, rows),
)
BACKWARD_OP = Op(
    "staircase_linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, bool exact, "
    "bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda dy, x, weight, frozen_weight, numbers, exact, *needed: fake_gradients(x, weight, *needed),
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
