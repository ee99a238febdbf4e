"""Staircase convolution and segmented BatchNorm in one: act(norm(conv2d(x, W) + b) + residual) for all segments.

    y[:, segment s] = act((conv2d(x[:, reads of s], W_s) + b_s) * scale_s + shift_s + residual)      frozen
    y[:, live]      = act(batch norm of (conv2d(x[:, reads of live], W) + b) + residual)             live

Contract: arguments and gradients as :mod:`.conv2d` and :mod:`.batch_norm` have them, one after the other. A faster
implementation does all that follows a frozen convolution in its own pass. Live segments are always the library's
convolution, then the normalisation by whoever runs that. On the torch backend the bits are those of the two ops in
sequence. The gradients, and what is kept for the backward pass: see :mod:`.product_norm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.arguments import Epilogue, Norm, Weights
from ..layout import Geometry, Staircase
from . import batch_norm
from .batch_norm import add_and_activate, segmented_batch_norm_oracle
from .batch_norm_torch import statistics_dtype
from .conv2d import GEOMETRY, Convolution, frozen_implementation, staircase_conv2d_oracle
from .product_norm import Arguments, Results, define, one_after_the_other
from .registration import decoded, structure
from .staircase import has_live_rows, live_product


def staircase_conv2d_norm(
    x: Tensor,
    weights: Weights,
    staircase: Staircase,
    norm: Norm,
    geometry: Geometry,
    residual: Tensor | None = None,
    full_input_grad: bool = False,
    num_frozen_elsewhere: int = 0,
) -> Tensor:
    """The module's contract. Callers check shapes.

    ``norm.frozen_scale`` is as long as the staircase has frozen rows. ``residual`` is shaped as the output
    [N, rows, H', W']; one of another dtype is added, and ``num_frozen_elsewhere`` is, as :func:`.segmented_batch_norm`
    has it.
    """
    if residual is not None and residual.dtype != x.dtype:
        promoted = torch.promote_types(x.dtype, residual.dtype)
        if promoted != x.dtype:
            plain = Norm(*norm[:-1])  # without the activation, which follows the addition
            y = staircase_conv2d_norm(
                x, weights, staircase, plain, geometry, None, full_input_grad, num_frozen_elsewhere
            )
            frozen = staircase.frozen_rows
            return add_and_activate(y.to(promoted), residual.to(promoted), frozen, norm.activation, full_input_grad)
        residual = residual.to(x.dtype)
    return OP(x, *weights, *structure(staircase), *norm, full_input_grad, num_frozen_elsewhere, residual, *geometry)[0]


def staircase_conv2d_norm_oracle(
    x: Tensor,
    weights: Weights,
    staircase: Staircase,
    norm: Norm,
    geometry: Geometry,
    residual: Tensor | None = None,
    full_input_grad: bool = False,
) -> Tensor:
    """The definitions of the two ops, one after the other, by plain autograd."""
    z = staircase_conv2d_oracle(x, weights, staircase, geometry, full_input_grad)
    return segmented_batch_norm_oracle(z, norm, residual, full_input_grad)


def _forward(given: Arguments, convolution: Convolution) -> Results:
    x, weights, norm, residual = given.x, given.weights, given.norm, given.residual
    staircase = decoded(given.staircase)
    fast = frozen_implementation("staircase_conv2d_norm", x, weights, staircase, convolution.geometry)
    if fast is None:
        return one_after_the_other(given, staircase, convolution)

    y = convolution.empty(x, given.weight, given.rows)
    epilogue = Epilogue(norm.frozen_scale, norm.frozen_shift, residual, norm.activation)
    fast.staircase_conv2d_frozen_forward(y, x, weights, staircase, convolution.geometry, epilogue)

    pre = convolution.arranged(live_product(x, weights, staircase, convolution), x, given.weight)
    if not has_live_rows(staircase):
        return y, pre, x.new_empty(0, dtype=statistics_dtype(x)), x.new_empty(0, dtype=statistics_dtype(x))
    frozen = staircase.frozen_rows
    its_residual = None if residual is None else residual[:, frozen:]
    live, mean, rstd = batch_norm.forward(pre, its_residual, norm.live(), frozen + given.num_frozen_elsewhere)
    y[:, frozen:] = live
    return y, pre, mean, rstd


OP, BACKWARD_OP = define("staircase_conv2d_norm", _forward, Convolution, GEOMETRY)
