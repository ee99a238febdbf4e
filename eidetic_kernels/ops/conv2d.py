"""Staircase convolution: each segment on the library convolution, with exactly the gradients that are needed.

    y[:, segment s] = conv2d(x[:, reads of s], W_s) + b_s

Contract: as :mod:`.linear`, with x [N, K, H, W], weight [L, K_l, kh, kw], frozen_weight the flat blocks
[rows_s, columns_s, kh, kw], y [N, rows, H', W']. ``groups`` is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layout import Staircase
from .staircase import canonical, frozen_blocks, oracle_input, oracle_rows, positions, read, write


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, (vertical, horizontal) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def staircase_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    geometry: Geometry,
    exact: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes and dtypes."""
    return _StaircaseConv2d.apply(x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, exact)


def staircase_conv2d_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, exact=False) -> Tensor:
    """The paper's dense masked convolution, by plain autograd."""
    dense, all_bias = oracle_rows(weight, bias, frozen_weight, frozen_bias, staircase)
    y_live = F.conv2d(oracle_input(x, staircase, exact), dense, all_bias, *geometry)
    if exact:
        return y_live
    y_frozen = F.conv2d(x.detach(), dense, all_bias, *geometry)
    frozen = torch.arange(staircase.rows, device=x.device) < staircase.frozen_rows
    return torch.where(frozen.view(-1, 1, 1), y_frozen, y_live)


class _StaircaseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, exact):
        ctx.save_for_backward(x, weight, frozen_weight)
        ctx.staircase, ctx.geometry, ctx.exact, ctx.has_bias = staircase, geometry, exact, bias is not None
        blocks = frozen_blocks(frozen_weight, staircase.frozen, weight.shape[2:])
        parts, row = [], 0
        for stair, block in zip(staircase.frozen, blocks):
            if stair.rows:
                its_bias = None if frozen_bias is None else frozen_bias[row : row + stair.rows]
                parts.append(_convolve(canonical(read(x, stair.spans)), block, its_bias, geometry))
            row += stair.rows
        if staircase.live is not None and staircase.live.rows:
            parts.append(_convolve(read(x, staircase.live.spans), weight, bias, geometry))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, 1) if parts else x.new_empty(output_shape(x, 0, weight.shape[2:], geometry))

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
                dweight = _weight_gradient(dy_live, read(x, live.spans), weight, ctx.geometry)
            if ctx.has_bias and ctx.needs_input_grad[2]:
                dbias = dy_live.sum((0, 2, 3))
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(x)
            if ctx.exact:
                _exact_input_gradient(dx, dy, x, weight, frozen_weight, staircase, ctx.geometry)
            elif live is not None and staircase.trainable:
                columns = read(weight, positions(live.spans, staircase.trainable))
                write(dx, staircase.trainable, _input_gradient(dy_live, x, columns, ctx.geometry))
        return dx, dweight, dbias, None, None, None, None, None


def output_shape(x: Tensor, rows: int, kernel: Sequence[int], geometry: Geometry) -> tuple[int, int, int, int]:
    """[N, rows, H', W'] of convolving ``x`` [N, K, H, W] with a weight [rows, K, *kernel]."""
    sizes = [
        (size + 2 * padding - dilation * (side - 1) - 1) // stride + 1
        for size, side, stride, padding, dilation in zip(x.shape[2:], kernel, *geometry, strict=True)
    ]
    return (x.shape[0], rows, *sizes)


def _convolve(x, weight, bias, geometry):
    if x.shape[1]:
        return F.conv2d(x, weight, bias, *geometry)
    # The library refuses an input without channels; what is left is the bias everywhere.
    y = x.new_zeros(output_shape(x, weight.shape[0], weight.shape[2:], geometry))
    return y if bias is None else y + bias.view(-1, 1, 1)


def _weight_gradient(dy, x, weight, geometry):
    if not weight.numel():
        return torch.zeros_like(weight)
    return _library_backward(dy, x, weight, geometry, [False, True, False])[1]


def _input_gradient(dy, x, weight, geometry):
    shape = (x.shape[0], weight.shape[1], *x.shape[2:])
    if not weight.numel():
        return x.new_zeros(shape)
    # Only the shape of the input matters for this gradient.
    return _library_backward(dy, x.new_empty(1).expand(shape), weight, geometry, [True, False, False])[0]


def _library_backward(dy, x, weight, geometry, needed):
    stride, padding, dilation = geometry
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, needed
    )


def _exact_input_gradient(dx, dy, x, weight, frozen_weight, staircase, geometry):
    blocks = frozen_blocks(frozen_weight, staircase.frozen, weight.shape[2:])
    if staircase.live is not None:
        blocks.append(weight)
    row = 0
    for stair, block in zip(staircase.stairs, blocks, strict=True):
        part = _input_gradient(dy[:, row : row + stair.rows], x, block, geometry)
        write(dx, stair.spans, part, accumulate=True)
        row += stair.rows
