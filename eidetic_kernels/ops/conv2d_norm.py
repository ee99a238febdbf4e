"""Staircase convolution and segmented BatchNorm in one: act(norm(conv2d(x, W) + b) + residual) for all segments.

    y[:, segment s] = act((conv2d(x[:, reads of s], W_s) + b_s) * scale_s + shift_s + residual)      frozen
    y[:, live]      = act(batch norm of (conv2d(x[:, reads of live], W) + b) + residual)             live

Contract: arguments and gradients as :mod:`.conv2d` and :mod:`.batch_norm` have them, one after the other; a faster twin
does all that follows a frozen convolution in its own pass. Live segments are always the library's convolution, then the
normalisation by whoever runs that. On the torch backend the bits are those of the two ops in sequence. What is kept for
the backward pass: see :mod:`.product_norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import Geometry, Staircase
from . import batch_norm
from .batch_norm import add_and_activate, segmented_batch_norm_oracle, statistics_dtype
from .conv2d import GEOMETRY, Convolution, frozen_implementation, staircase_conv2d_oracle
from .product_norm import define, one_after_the_other
from .registration import decoded, encoded
from .staircase import has_live_rows, live_product


def staircase_conv2d_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    geometry: Geometry,
    full_input_grad: bool = False,
    residual: Tensor | None = None,
    num_frozen_elsewhere: int = 0,
) -> Tensor:
    """See the module's contract. Callers check shapes; ``frozen_scale`` is as long as the staircase has frozen rows,
    ``residual`` is shaped as the output [N, rows, H', W']; one of another dtype is added as
    :func:`.segmented_batch_norm` does. ``num_frozen_elsewhere``: as :mod:`.batch_norm` has it."""
    if residual is not None and residual.dtype != x.dtype:
        promoted = torch.promote_types(x.dtype, residual.dtype)
        if promoted != x.dtype:
            y = staircase_conv2d_norm(
                x,
                weight,
                bias,
                frozen_weight,
                frozen_bias,
                staircase,
                norm_weight,
                norm_bias,
                running_mean,
                running_var,
                frozen_scale,
                frozen_shift,
                training,
                momentum,
                eps,
                "none",
                geometry,
                full_input_grad,
                num_frozen_elsewhere=num_frozen_elsewhere,
            )
            frozen = staircase.frozen_rows
            return add_and_activate(y.to(promoted), residual.to(promoted), frozen, activation, full_input_grad)
        residual = residual.to(x.dtype)
    return OP(
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        encoded(staircase),
        staircase.rows,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        full_input_grad,
        num_frozen_elsewhere,
        residual,
        *geometry,
    )[0]


def staircase_conv2d_norm_oracle(
    x,
    weight,
    bias,
    frozen_weight,
    frozen_bias,
    staircase,
    norm_weight,
    norm_bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation,
    geometry,
    full_input_grad=False,
    residual=None,
) -> Tensor:
    """The definitions of the two ops, one after the other, by plain autograd."""
    z = staircase_conv2d_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, geometry, full_input_grad)
    return segmented_batch_norm_oracle(
        z,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        full_input_grad,
        residual,
    )


def _forward(
    x,
    weight,
    bias,
    frozen_weight,
    frozen_bias,
    numbers,
    rows,
    norm_weight,
    norm_bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation,
    full_input_grad,
    num_frozen_elsewhere,
    residual,
    *geometry,
):
    staircase, convolution = decoded(numbers), Convolution(*geometry)
    fast = frozen_implementation("staircase_conv2d_norm", x, weight, frozen_weight, staircase, convolution)
    if fast is None:
        return one_after_the_other(
            convolution,
            x,
            weight,
            bias,
            frozen_weight,
            frozen_bias,
            staircase,
            norm_weight,
            norm_bias,
            running_mean,
            running_var,
            frozen_scale,
            frozen_shift,
            training,
            momentum,
            eps,
            activation,
            residual,
            num_frozen_elsewhere,
        )
    frozen, y = staircase.frozen_rows, convolution.empty(x, weight, rows)
    fast.staircase_conv2d_frozen_forward(
        y,
        x,
        frozen_weight,
        frozen_bias,
        frozen_scale,
        frozen_shift,
        residual,
        tuple(weight.shape[2:]),
        staircase,
        convolution.geometry,
        activation,
    )
    pre = convolution.arranged(live_product(x, weight, bias, staircase, convolution), x, weight)
    if not has_live_rows(staircase):
        return y, pre, *(x.new_empty(0, dtype=statistics_dtype(x)) for _ in range(2))
    live, mean, rstd = batch_norm.forward(
        pre,
        None if residual is None else residual[:, frozen:],
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        frozen_scale[:0],
        frozen_shift[:0],
        training,
        momentum,
        eps,
        activation,
        num_frozen_elsewhere=frozen + num_frozen_elsewhere,
    )
    y[:, frozen:] = live
    return y, pre, mean, rstd


OP, BACKWARD_OP = define("staircase_conv2d_norm", _forward, Convolution, GEOMETRY)
