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
``full_input_grad=True`` the gradient of ``x`` is complete instead: all rows, all columns (saliency, adversarial inputs).

A frozen segment's product has the same shape, and an input that lies the same way in memory, in training, in recall
and for ever after: that keeps its bits (P1).

With ``unit_major=True`` y lies in memory unit by unit: [N, rows] of strides (1, N). Every segment's product then writes
its own part of one allocation, and the next layer's segments read the first units of it as they lie, without a copy,
since a prefix is no slice. On a CPU layers ask for it once a task is finished; until then they have torch's bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..layout import Staircase
from ..memory import unit_major
from .registration import Op, decoded, encoded
from .staircase import StaircaseFunction, fake_gradients, gradients, oracle, products


def staircase_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    full_input_grad: bool = False,
    unit_major: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes and dtypes; ``x`` is two-dimensional."""
    return OP(
        x, weight, bias, frozen_weight, frozen_bias, encoded(staircase), staircase.rows, full_input_grad, unit_major
    )


def staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, full_input_grad=False) -> Tensor:
    """The paper's dense masked layer, by plain autograd."""
    return oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, F.linear, full_input_grad)


class Linear:
    """The dense product of one segment; see :class:`.staircase.Product`."""

    def __init__(self, unit_major: bool = False):
        self.unit_major = unit_major

    def forward(self, x, weight, bias, out=None):
        if not (self.unit_major or unit_major(x)):
            return F.linear(x, weight, bias)
        out = None if out is None else out.t()
        if bias is None:
            y = torch.mm(weight, x.t(), out=out).t()
        else:
            y = torch.addmm(bias.unsqueeze(1), weight, x.t(), out=out).t()
        return y if self.unit_major else y.clone(memory_format=torch.contiguous_format)

    def out_buffer(self, x, rows):
        return self.empty(x, None, rows) if self.unit_major else None

    @staticmethod
    def weight_gradient(dy, x, weight):
        return dy.t() @ x

    @staticmethod
    def input_gradient(dy, x, weight):
        return (weight.t() @ dy.t()).t() if unit_major(x) else dy @ weight

    def arranged(self, y, x, weight):
        return y.t().contiguous().t() if self.unit_major else y

    def empty(self, x, weight, rows):
        return x.new_empty(rows, x.shape[0]).t() if self.unit_major else x.new_empty(x.shape[0], rows)


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, unit_major):
    staircase, product = decoded(numbers), Linear(unit_major)
    fast = backends.implementation("staircase_linear", x, weight, frozen_weight, staircase)
    if fast is None:
        return products(x, weight, bias, frozen_weight, frozen_bias, staircase, product)
    y = fast.staircase_linear_forward(x, weight, bias, frozen_weight, frozen_bias, staircase)
    return product.arranged(y, x, weight)


def _backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, unit_major):
    staircase = decoded(numbers)
    dy_frozen, dy_live = dy[:, : staircase.frozen_rows], dy[:, staircase.frozen_rows :]
    return gradients(
        dy_frozen if full_input_grad else None,
        dy_live,
        x,
        weight,
        frozen_weight,
        staircase,
        Linear(unit_major),
        need_x,
        need_weight,
        need_bias,
    )


def _fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, unit_major):
    return Linear(unit_major).empty(x, weight, rows)


OP = Op(
    "staircase_linear(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, SymInt rows, bool full_input_grad, bool unit_major) -> Tensor",
    _forward,
    _fake,
)
BACKWARD_OP = Op(
    "staircase_linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, bool full_input_grad, "
    "bool need_x, bool need_weight, bool need_bias, bool unit_major) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda dy, x, weight, frozen_weight, numbers, full_input_grad, *needed: fake_gradients(x, weight, *needed[:3]),
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
