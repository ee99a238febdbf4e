"""Staircase convolution: each segment on the library convolution, with exactly the gradients that are needed.

    y[:, segment s] = conv2d(x[:, reads of s], W_s) + b_s

Contract: as :mod:`.linear`, with x [N, K, H, W], weight [L, K_l, kh, kw], frozen_weight the flat blocks
[rows_s, columns_s, kh, kw], y [N, rows, H', W']. ``groups`` is 1. A faster twin computes the frozen segments; live ones
are always the library's, whose gradients they need.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..layout import Staircase
from .registration import Op, decoded, encoded, memory_format
from .staircase import StaircaseFunction, fake_gradients, gradients, oracle, products, read_alone


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
    return OP(x, weight, bias, frozen_weight, frozen_bias, encoded(staircase), staircase.rows, exact, *geometry)


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
        y = x.new_zeros(output_shape(x, weight, len(weight), self.geometry))
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


def output_shape(x: Tensor, weight: Tensor, rows: int, geometry: Geometry) -> tuple[int, ...]:
    """The shape [N, rows, H', W'] of the convolution of ``x`` [N, K, H, W] by kernels as large as ``weight``'s."""
    sizes = [
        (size + 2 * padding - dilation * (side - 1) - 1) // stride + 1
        for size, side, stride, padding, dilation in zip(x.shape[2:], weight.shape[2:], *geometry)
    ]
    return (x.shape[0], rows, *sizes)


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, exact, *geometry):
    geometry = Geometry(*geometry)
    staircase, convolution, kernel = decoded(numbers), _Convolution(geometry), tuple(weight.shape[2:])
    twin = None
    if staircase.frozen_rows:
        twin = backends.implementation("staircase_conv2d", x, frozen_weight, kernel, staircase, geometry)
    if twin is None:
        y = products(x, weight, bias, frozen_weight, frozen_bias, staircase, convolution)
    else:
        y = twin.staircase_conv2d_frozen_forward(
            x, frozen_weight, frozen_bias, None, None, kernel, staircase, geometry, "none"
        )
        if staircase.live is not None and staircase.live.rows:
            y = torch.cat([y, convolution.forward(read_alone(x, staircase.live.spans), weight, bias)], 1)
    return y.contiguous(memory_format=_format(x, weight))


def _fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, exact, *geometry):
    shape = output_shape(x, weight, rows, Geometry(*geometry))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x, weight))


def _backward(dy, x, weight, frozen_weight, numbers, exact, need_x, need_weight, need_bias, *geometry):
    staircase = decoded(numbers)
    dy_frozen, dy_live = dy[:, : staircase.frozen_rows], dy[:, staircase.frozen_rows :]
    dx, dweight, dbias = gradients(
        dy_frozen if exact else None, dy_live, x, weight, frozen_weight, staircase, _Convolution(Geometry(*geometry)),
        need_x, need_weight, need_bias,
    )  # fmt: skip
    return dx, dweight.contiguous(memory_format=memory_format(weight)) if need_weight else None, dbias


def _format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """How the output lies: channels_last where the input or the weights do, as the library has it."""
    last = torch.channels_last
    return last if last in (memory_format(x), memory_format(weight)) else torch.contiguous_format


GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"

OP = Op(
    "staircase_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    f"Tensor staircase, SymInt rows, bool exact, {GEOMETRY}) -> Tensor",
    _forward,
    _fake,
)
BACKWARD_OP = Op(
    "staircase_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, bool exact, "
    f"bool need_x, bool need_weight, bool need_bias, {GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda dy, x, weight, frozen_weight, numbers, exact, *rest: fake_gradients(x, weight, *rest[:3]),
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
