"""Staircase linear: every segment's product in one call, and a backward pass for live units only.

    y[:, segment s] = x[:, reads of s] @ W_s^T + b_s

Contract, which every backend is held to:

    x             [N, K]   floating point; K is staircase.columns
    weight        [L, K_l] the live segment's rows over the K_l columns it reads; trainable
    bias          [L] or None; trainable
    frozen_weight flat, the blocks [rows_s, columns_s] of the frozen segments end to end; never trainable
    frozen_bias   [F] or None (given exactly when bias is)
    returns y     [N, rows of the staircase], frozen segments first

Backward writes the gradients of ``weight`` and ``bias``; the gradient of ``x`` at the trainable columns, as the
live rows cause it, and zeros elsewhere. Frozen rows reach nothing trainable, so nothing is computed for them. With
``full_input_grad=True`` the gradient of ``x`` is complete instead, of all rows at all columns (for saliency maps and
adversarial inputs).

A frozen segment's product has the same shape, and an input that lies the same way in memory, in training, in recall
and for ever after: that keeps its bits (P1).

With ``unit_major=True`` y lies in memory unit by unit: [N, rows] of strides (1, N). Every segment's product then writes
its own part of one allocation. The next layer's segments read the first units of it as they lie: a prefix is no slice,
so nothing is copied. On a CPU layers ask for it once a task is finished; until then they have torch's bits.

From top to bottom: the function that layers call, the definition it is tested against, the product of one segment, and
the registered op with its gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..backends.arguments import Weights
from ..layout import Staircase
from ..memory import is_unit_major
from .registration import Op, decoded, structure
from .staircase import Needed, StaircaseFunction, fake_gradients, gradients, oracle, products


def staircase_linear(
    x: Tensor, weights: Weights, staircase: Staircase, full_input_grad: bool = False, unit_major: bool = False
) -> Tensor:
    """The module's contract. Callers check shapes and dtypes; ``x`` is two-dimensional."""
    return OP(x, *weights, *structure(staircase), full_input_grad, unit_major)


def staircase_linear_oracle(x: Tensor, weights: Weights, staircase: Staircase, full_input_grad: bool = False) -> Tensor:
    """The paper's dense masked layer, by plain autograd."""
    return oracle(x, weights, staircase, F.linear, full_input_grad)


class Linear:
    """The dense product of one segment; see :class:`.staircase.Product`."""

    def __init__(self, unit_major: bool = False):
        self.unit_major = unit_major

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
        if not (self.unit_major or is_unit_major(x)):
            return F.linear(x, weight, bias)
        out = None if out is None else out.t()
        if bias is None:
            y = torch.mm(weight, x.t(), out=out).t()
        else:
            y = torch.addmm(bias.unsqueeze(1), weight, x.t(), out=out).t()
        return y if self.unit_major else y.clone(memory_format=torch.contiguous_format)

    def out_buffer(self, x: Tensor, rows: int) -> Tensor | None:
        return self.empty(x, None, rows) if self.unit_major else None

    @staticmethod
    def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return dy.t() @ x

    @staticmethod
    def input_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return (weight.t() @ dy.t()).t() if is_unit_major(x) else dy @ weight

    def arranged(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return y.t().contiguous().t() if self.unit_major else y

    def empty(self, x: Tensor, weight: Tensor | None, rows: int) -> Tensor:
        return x.new_empty(rows, x.shape[0]).t() if self.unit_major else x.new_empty(x.shape[0], rows)


# ---- the registered op and its gradients


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, unit_major):
    weights = Weights(weight, bias, frozen_weight, frozen_bias)
    staircase, product = decoded(numbers), Linear(unit_major)
    fast = backends.implementation("staircase_linear", x, weight, frozen_weight, staircase)
    if fast is None:
        return products(x, weights, staircase, product)
    return product.arranged(fast.staircase_linear_forward(x, weights, staircase), x, weight)


def _fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, unit_major):
    return Linear(unit_major).empty(x, weight, rows)


def _backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, unit_major):
    staircase, needed = decoded(numbers), Needed(need_x, need_weight, need_bias)
    frozen = staircase.frozen_rows
    dy_frozen = dy[:, :frozen] if full_input_grad else None
    return gradients(dy_frozen, dy[:, frozen:], x, weight, frozen_weight, staircase, Linear(unit_major), needed)


def _fake_backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, unit_major):
    return fake_gradients(x, weight, Needed(need_x, need_weight, need_bias))


OP = Op(
    "staircase_linear(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, SymInt rows, bool full_input_grad, bool unit_major) -> Tensor",
    _forward,
    _fake,
)
BACKWARD_OP = Op(
    "staircase_linear_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, "
    "bool full_input_grad, bool need_x, bool need_weight, bool need_bias, bool unit_major) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
