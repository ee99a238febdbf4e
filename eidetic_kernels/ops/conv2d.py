"""Staircase convolution: each segment on the library convolution, with exactly the gradients that are needed.

    y[:, segment s] = conv2d(x[:, reads of s], W_s) + b_s

Contract: as :mod:`.linear`, with x [N, K, H, W], weight [L, K_l, kh, kw], frozen_weight the flat blocks
[rows_s, columns_s, kh, kw], y [N, rows, H', W']. ``groups`` is 1. A faster twin computes the frozen segments; live ones
are always the library's, whose gradients they need.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import backends
from ..layout import Geometry, Staircase
from ..memory import memory_format
from .registration import Op, decoded, encoded
from .staircase import StaircaseFunction, fake_gradients, gradients, has_live_rows, live_product, oracle, products


def staircase_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    geometry: Geometry,
    full_input_grad: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes and dtypes."""
    return OP(
        x, weight, bias, frozen_weight, frozen_bias, encoded(staircase), staircase.rows, full_input_grad, *geometry
    )


def staircase_conv2d_oracle(
    x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, full_input_grad=False
) -> Tensor:
    """The paper's dense masked convolution, by plain autograd."""

    def convolve(x, weight, bias):
        return F.conv2d(x, weight, bias, *geometry)

    return oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, convolve, full_input_grad)


class Convolution:
    """The dense convolution of one segment; see :class:`.staircase.Product`. The library refuses empty tensors.

    Outputs and the weight's gradient lie channels_last where the input or the weights do, as the library has it.
    """

    def __init__(self, *geometry):
        self.geometry = Geometry(*geometry)

    def forward(self, x, weight, bias, out=None):
        if x.shape[1] and weight.shape[0]:
            return F.conv2d(x, weight, bias, *self.geometry)
        y = x.new_zeros(output_shape(x, weight, len(weight), self.geometry))
        return y if bias is None else y + bias.view(-1, 1, 1)

    def out_buffer(self, x, rows):
        return None

    def weight_gradient(self, dy, x, weight):
        if not weight.numel():
            return torch.zeros_like(weight)
        dweight = self._backward(dy, x, weight, [False, True, False])[1]
        return dweight.contiguous(memory_format=memory_format(weight))

    def input_gradient(self, dy, x, weight):
        shape = (x.shape[0], weight.shape[1], *x.shape[2:])
        if not weight.numel():
            return x.new_zeros(shape)
        return self._backward(dy, x.new_empty(1).expand(shape), weight, [True, False, False])[0]

    def arranged(self, y, x, weight):
        return y.contiguous(memory_format=_format(x, weight))

    def empty(self, x, weight, rows):
        shape = output_shape(x, weight, rows, self.geometry)
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x, weight))

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


def _forward(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, *geometry):
    staircase, convolution = decoded(numbers), Convolution(*geometry)
    fast = frozen_implementation("staircase_conv2d", x, weight, frozen_weight, staircase, convolution)
    if fast is None:
        y = products(x, weight, bias, frozen_weight, frozen_bias, staircase, convolution)
        return convolution.arranged(y, x, weight)
    y = convolution.empty(x, weight, rows)
    fast.staircase_conv2d_frozen_forward(
        y,
        x,
        frozen_weight,
        frozen_bias,
        None,
        None,
        None,
        tuple(weight.shape[2:]),
        staircase,
        convolution.geometry,
        "none",
    )
    if has_live_rows(staircase):
        y[:, staircase.frozen_rows :] = live_product(x, weight, bias, staircase, convolution)
    return y


def frozen_implementation(
    op: str, x, weight, frozen_weight, staircase: Staircase, convolution: Convolution
) -> ModuleType | None:
    """The backend that computes the frozen segments for ``op``; None: the library, which always has the live ones."""
    if not staircase.frozen_rows:
        return None
    return backends.implementation(op, x, frozen_weight, tuple(weight.shape[2:]), staircase, convolution.geometry)


def _backward(dy, x, weight, frozen_weight, numbers, full_input_grad, need_x, need_weight, need_bias, *geometry):
    staircase = decoded(numbers)
    dy_frozen, dy_live = dy[:, : staircase.frozen_rows], dy[:, staircase.frozen_rows :]
    return gradients(
        dy_frozen if full_input_grad else None,
        dy_live,
        x,
        weight,
        frozen_weight,
        staircase,
        Convolution(*geometry),
        need_x,
        need_weight,
        need_bias,
    )


def _format(x: Tensor, weight: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if last in (memory_format(x), memory_format(weight)) else torch.contiguous_format


GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"

OP = Op(
    "staircase_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    f"Tensor staircase, SymInt rows, bool full_input_grad, {GEOMETRY}) -> Tensor",
    _forward,
    lambda x, weight, bias, frozen_weight, frozen_bias, numbers, rows, full_input_grad, *geometry: Convolution(
        *geometry
    ).empty(x, weight, rows),
)
BACKWARD_OP = Op(
    "staircase_conv2d_backward(Tensor dy, Tensor x, Tensor weight, Tensor frozen_weight, Tensor staircase, bool full_input_grad, "
    f"bool need_x, bool need_weight, bool need_bias, {GEOMETRY}) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda dy, x, weight, frozen_weight, numbers, full_input_grad, *rest: fake_gradients(x, weight, *rest[:3]),
)


class _Function(StaircaseFunction):
    op, backward_op = OP, BACKWARD_OP


OP.differentiate(_Function)
