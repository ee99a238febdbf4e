"""Staircase convolution: each segment on the library convolution, with exactly the gradients that are needed.

    y[:, segment s] = conv2d(x[:, reads of s], W_s) + b_s

Contract: as :mod:`.linear`, with x [N, K, H, W], weight [L, K_l, kh, kw], frozen_weight the flat blocks
[rows_s, columns_s, kh, kw], y [N, rows, H', W']. ``groups`` is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import Staircase
from .staircase import StaircaseFunction, oracle


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
    product = _Convolution(geometry)
    return StaircaseFunction.apply(x, weight, bias, frozen_weight, frozen_bias, staircase, product, exact)


def staircase_conv2d_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, exact=False) -> Tensor:
    """The paper's dense masked convolution, by plain autograd."""

    def convolve(x, weight, bias):
        return F.conv2d(x, weight, bias, *geometry)

    return oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, convolve, exact)


class _Convolution:
    """The dense convolution of one segment; see :class:`.staircase.Product`. The library refuses empty tensors."""

    def __init__(self, geometry: Geometry):
        self.geometry = geometry

    def forward(self, x, weight, bias):
        if x.shape[1] and weight.shape[0]:
            return F.conv2d(x, weight, bias, *self.geometry)
        y = x.new_zeros(self._output_shape(x, weight))
        return y if bias is None else y + bias.view(-1, 1, 1)

    def weight_gradient(self, dy, x, weight):
        if not weight.numel():
            return torch.zeros_like(weight)
        return self._backward(dy, x, weight, [False, True, False])[1]

    def input_gradient(self, dy, x, weight):
        shape = (x.shape[0], weight.shape[1], *x.shape[2:])
        if not weight.numel():
            return x.new_zeros(shape)
        return self._backward(dy, x.new_empty(1).expand(shape), weight, [True, False, False])[0]

    def _backward(self, dy, x, weight, needed):
        stride, padding, dilation = self.geometry
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, needed
        )

    def _output_shape(self, x, weight) -> tuple[int, ...]:
        sizes = [
            (size + 2 * padding - dilation * (side - 1) - 1) // stride + 1
            for size, side, stride, padding, dilation in zip(x.shape[2:], weight.shape[2:], *self.geometry)
        ]
        return (x.shape[0], weight.shape[0], *sizes)
