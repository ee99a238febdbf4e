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

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layout import Staircase
from .staircase import canonical, frozen_blocks, oracle_input, oracle_rows, positions, read, write


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
    return _StaircaseLinear.apply(x, weight, bias, frozen_weight, frozen_bias, staircase, exact)


def staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, exact=False) -> Tensor:
    """The paper's dense masked layer, by plain autograd: the definition the op is tested against."""
    dense, all_bias = oracle_rows(weight, bias, frozen_weight, frozen_bias, staircase)
    y_live = F.linear(oracle_input(x, staircase, exact), dense, all_bias)
    if exact:
        return y_live
    y_frozen = F.linear(x.detach(), dense, all_bias)
    frozen = torch.arange(staircase.rows, device=x.device) < staircase.frozen_rows
    return torch.where(frozen, y_frozen, y_live)


class _StaircaseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, frozen_weight, frozen_bias, staircase, exact):
        ctx.save_for_backward(x, weight, frozen_weight)
        ctx.staircase, ctx.exact, ctx.has_bias = staircase, exact, bias is not None
        parts, row = [], 0
        for stair, block in zip(staircase.frozen, frozen_blocks(frozen_weight, staircase.frozen)):
            if stair.rows:
                its_bias = None if frozen_bias is None else frozen_bias[row : row + stair.rows]
                parts.append(F.linear(canonical(read(x, stair.spans)), block, its_bias))
            row += stair.rows
        if staircase.live is not None and staircase.live.rows:
            parts.append(F.linear(read(x, staircase.live.spans), weight, bias))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, 1) if parts else x.new_empty(x.shape[0], 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, frozen_weight = ctx.saved_tensors
        staircase = ctx.staircase
        dx = dweight = dbias = None
        live = staircase.live
        if live is not None:
            dy_live = dy[:, staircase.frozen_rows :]
            if ctx.needs_input_grad[1]:
                dweight = dy_live.t() @ read(x, live.spans)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                dbias = dy_live.sum(0)
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            if ctx.exact:
                _exact_input_gradient(dx, dy, weight, frozen_weight, staircase)
            elif live is not None and staircase.trainable:
                columns = read(weight, positions(live.spans, staircase.trainable))
                write(dx, staircase.trainable, dy_live @ columns)
        return dx, dweight, dbias, None, None, None, None


def _exact_input_gradient(dx, dy, weight, frozen_weight, staircase):
    blocks = frozen_blocks(frozen_weight, staircase.frozen)
    if staircase.live is not None:
        blocks.append(weight)
    row = 0
    for stair, block in zip(staircase.stairs, blocks, strict=True):
        write(dx, stair.spans, dy[:, row : row + stair.rows] @ block, accumulate=True)
        row += stair.rows
