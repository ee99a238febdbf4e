"""Segmented BatchNorm: frozen channels are two numbers, live channels normalise with batch statistics.

    y[:, c] = act(x[:, c] * scale[c] + shift[c])                                   frozen c < F
    y[:, c] = act((x[:, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c])  live c >= F

Contract (what any faster twin is held to):

    x [N, C] or [N, C, *]; frozen_scale, frozen_shift [F]; weight, bias [C - F] or None; trainable
    running_mean, running_var [C - F]: read in evaluation, moved by ``momentum`` in training (biased variance
        normalises, unbiased variance is kept, as torch has it)
    returns y, shaped as x

Backward writes the gradients of weight and bias, and of the live channels of x; frozen channels of x get zeros,
or with ``exact=True`` their true gradient. The published implementation evaluates each frozen BatchNorm a second
time and applies its affine twice in training (paper, section 3.3); here it is one multiply-add.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .activations import FUNCTIONS


def segmented_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    activation: str = "none",
    exact: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes; ``frozen_scale`` may be cut to a task's prefix, in which
    case x holds that prefix only and the live arguments are not read."""
    return _SegmentedBatchNorm.apply(
        x, weight, bias, running_mean, running_var, frozen_scale, frozen_shift,
        training, momentum, eps, activation, exact,
    )  # fmt: skip


def segmented_batch_norm_oracle(
    x, weight, bias, running_mean, running_var, frozen_scale, frozen_shift,
    training, momentum, eps, activation="none", exact=False, residual=None,
) -> Tensor:  # fmt: skip
    """The definition, channel block by channel block, by plain autograd; ``residual`` is added before activating."""
    frozen = len(frozen_scale)
    columns = (-1, *[1] * (x.dim() - 2))
    x_frozen = x[:, :frozen] if exact else x[:, :frozen].detach()
    y = x_frozen * frozen_scale.view(columns) + frozen_shift.view(columns)
    if x.shape[1] > frozen:
        live = F.batch_norm(x[:, frozen:], running_mean, running_var, weight, bias, training, momentum, eps)
        y = torch.cat([y, live], 1)
    if residual is not None:
        kept = residual[:, :frozen] if exact else residual[:, :frozen].detach()
        y = y + torch.cat([kept, residual[:, frozen:]], 1)
    return FUNCTIONS[activation](y)


class _SegmentedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, weight, bias, running_mean, running_var, frozen_scale, frozen_shift,
        training, momentum, eps, activation, exact,
    ):  # fmt: skip
        frozen = len(frozen_scale)
        live = x.shape[1] - frozen
        y, mean, rstd = None, None, None
        if live:
            # The library's fast paths want whole memory; its outputs are copied beside the frozen ones below.
            y, mean, rstd = torch.native_batch_norm(
                x[:, frozen:].contiguous() if frozen else x,
                weight, bias, running_mean, running_var, training, momentum, eps,
            )  # fmt: skip
        if frozen:
            y_live, y = y, torch.empty_like(x)
            _affine(x[:, :frozen], frozen_scale, frozen_shift, y[:, :frozen])
            if live:
                y[:, frozen:] = y_live
        elif y is None:
            y = x.clone()
        if activation == "relu":
            y.relu_()
        ctx.save_for_backward(
            x, weight, running_mean, running_var, mean, rstd, frozen_scale, y if activation == "relu" else None
        )
        ctx.training, ctx.eps, ctx.exact, ctx.has_bias = training, eps, exact, bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, running_mean, running_var, mean, rstd, frozen_scale, y = ctx.saved_tensors
        if y is not None:
            dy = torch.ops.aten.threshold_backward(dy, y, 0)
        frozen = len(frozen_scale)
        dx = dweight = dbias = None
        if x.shape[1] > frozen:
            wanted = [ctx.needs_input_grad[0], weight is not None, ctx.has_bias]
            dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                dy[:, frozen:].contiguous() if frozen else dy, x[:, frozen:].contiguous() if frozen else x,
                weight, running_mean, running_var, mean, rstd, ctx.training, ctx.eps, wanted,
            )  # fmt: skip
        if ctx.needs_input_grad[0] and (frozen or dx is None):
            dx_live, dx = dx, torch.zeros_like(x)
            if dx_live is not None:
                dx[:, frozen:] = dx_live
            if ctx.exact:
                dx[:, :frozen] = dy[:, :frozen] * frozen_scale.view(-1, *[1] * (x.dim() - 2))
        return dx, dweight, dbias, None, None, None, None, None, None, None, None, None


def _affine(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    columns = (-1, *[1] * (x.dim() - 2))
    if x.dtype == scale.dtype:
        torch.addcmul(shift.view(columns), x, scale.view(columns), out=out)
    else:  # half-precision activations, float32 statistics
        out.copy_(torch.addcmul(shift.view(columns), x, scale.view(columns)))
