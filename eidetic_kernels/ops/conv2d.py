"""Staircase convolution: each segment on the library convolution, with exactly the gradients that are needed.

    y[:, segment s] = conv2d(x[:, reads of s], W_s) + b_s

Contract: as :mod:`.linear`, with x [N, K, H, W], weight [L, K_l, kh, kw], frozen_weight the flat blocks
[rows_s, columns_s, kh, kw], y [N, rows, H', W']. ``groups`` is 1. A faster implementation computes the frozen segments.
Live ones are always the library's, whose gradients they need.

From top to bottom: the function that layers call, the definition it is tested against, the convolution of one segment,
and the registered op with its gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..backends.arguments import Epilogue, Weights
from ..layout import Geometry, Staircase
from ..memory import memory_format
from .registration import Op, decoded, structure
from .staircase import (
    Needed,
    StaircaseFunction,
    fake_gradients,
    gradients,
    has_live_rows,
    live_product,
    oracle,
    products,
)


def staircase_conv2d(
    x: Tensor, weights: Weights, staircase: Staircase, geometry: Geometry, full_input_grad: bool = False
) -> Tensor:
    """The module's contract. Callers check shapes and dtypes."""
    return OP(x, *weights, *structure(staircase), full_input_grad, *geometry)


def staircase_conv2d_oracle(
    x: Tensor, weights: Weights, staircase: Staircase, geometry: Geometry, full_input_grad: bool = False
) -> Tensor:
    """The paper's dense masked convolution, by plain autograd."""

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *geometry)

    return oracle(x, weights, staircase, convolve, full_input_grad)


class Convolution:
    """The dense convolution of one segment; see :class:`.staircase.Product`. The library refuses empty tensors.

    Outputs and the weight's gradient lie channels_last where the input or the weights do, as the library has it.
    """

    def __init__(self, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]):
        self.geometry = Geometry(stride, padding, dilation)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
        if x.shape[1] and weight.shape[0]:
            return F.conv2d(x, weight, bias, *self.geometry)
        y = x.new_zeros(output_shape(x, weight.shape[2:], len(weight), self.geometry))
        return y if bias is None else y + bias.view(-1, 1, 1)

    def out_buffer(self, x: Tensor, rows: int) -> Tensor | None:
        return None

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        if not weight.numel():
            return torch.zeros_like(weight)
        dweight = self._backward(dy, x, weight, [False, True, False])[1]
        return dweight.contiguous(memory_format=memory_format(weight))

    def input_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        shape = (x.shape[0], weight.shape[1], *x.shape[2:])
        if not weight.numel():
            return x.new_zeros(shape)
        return self._backward(dy, x.new_empty(1).expand(shape), weight, [True, False, False])[0]

    def arranged(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return y.contiguous(memory_format=_format(x, weight))

    def empty(self, x: Tensor, weight: Tensor, rows: int) -> Tensor:
        shape = output_shape(x, weight.shape[2:], rows, self.geometry)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x, weight))

    def _backward(self, dy: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
        stride, padding, dilation = self.geometry
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, needed
        )


def output_shape(x: Tensor, kernel: Sequence[int], rows: int, geometry: Geometry) -> tuple[int, int, int, int]:
    """The shape [N, rows, H', W'] of the convolution of ``x`` [N, K, H, W] by kernels of the sizes ``kernel``."""
    height, width = geometry.output_size(x.shape[2:], kernel)
    return x.shape[0], rows, height, width


def frozen_implementation(
    op: str, x: Tensor, weights: Weights, staircase: Staircase, geometry: Geometry
) -> ModuleType | None:
    """The backend that computes the frozen segments for ``op``; None: the library, which always has the live ones."""
    if not staircase.frozen_rows:
        return None
    return backends.implementation(op, x, weights.frozen_weight, weights.kernel, staircase, geometry)


def _format(x: Tensor, weight: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if last in (memory_format(x), memory_format(weight)) else torch.contiguous_format


# ---- the registered op and its gradients


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, *geometry):
    weights = Weights(weight, bias, frozen_weight, frozen_bias)
    staircase, convolution = decoded(numbers), Convolution(*geometry)
    fast = frozen_implementation("staircase_conv2d", x, weights, staircase, convolution.geometry)
    if fast is None:
        return convolution.arranged(products(x, weights, staircase, convolution), x, weight)

    y = convolution.empty(x, weight, rows)
    fast.staircase_conv2d_frozen_forward(y, x, weights, staircase, convolution.geometry, Epilogue())
    if has_live_rows(staircase):
        y[:, staircase.frozen_rows :] = live_product(x, weights, staircase, convolution)
    return y


def _fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, *geometry):
    return Convolution(*geometry).empty(x, weight, rows)


def _backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, *geometry):
    staircase, needed = decoded(numbers), Needed(need_x, need_weight, need_bias)
    frozen = staircase.frozen_rows
    dy_frozen = dy[:, :frozen] if full_input_grad else None
    return gradients(dy_frozen, dy[:, frozen:], x, weight, frozen_weight, staircase, Convolution(*geometry), needed)


def _fake_backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, *geometry):
    return fake_gradients(x, weight, Needed(need_x, need_weight, need_bias))


GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"

OP = Op(
    "staircase_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    f"Tensor staircase, SymInt rows, bool full_input_grad, {GEOMETRY}) -> Tensor",
    _forward,
    _fake,
)
BACKWARD_OP = Op(
    "staircase_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, "
    f"bool full_input_grad, bool need_x, bool need_weight, bool need_bias, {GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
