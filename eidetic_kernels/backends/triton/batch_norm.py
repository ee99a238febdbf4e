"""Segmented BatchNorm, activation and residual in one pass: frozen channels affine, live ones by their statistics.

    y[:, c] = act(x[:, c] * scale[c] + shift[c] + residual[:, c])                              frozen c < F
    y[:, c] = act((x[:, c] - mean[c]) * rstd[c] * weight[c] + bias[c] + residual[:, c])        live c >= F

Forward in training: ``statistics_kernel`` over the live channels, ``merge_kernel`` where it was split among blocks of
rows (both in :mod:`.statistics`), and ``apply_kernel`` over all channels. Evaluation is ``apply_kernel`` alone. The
backward pass is in :mod:`.gradients`. How the kernels see a tensor: :mod:`.blocks`. Contract and oracle:
:mod:`eidetic_kernels.ops.batch_norm`.

**A frozen channel's bits never change (P1).** Its output is computed value by value, from that value, its channel's two
numbers and its residual; how values are divided among blocks cannot matter, and no operation is fused or reordered
by the compiler (``launch.OPTIONS``). What a select does not take, live numbers that are NaN included, leaves no trace.
"""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Norm
from .activations import activate
from .blocks import SIZES, WARPS, Layout, Sweep, by_channel, positions, whole_sixteens
from .gradients import segmented_batch_norm_backward
from .launch import OPTIONS, on_device, unsupported
from .statistics import batch_statistics, reciprocal_deviation

__all__ = [
    "normalise_into",
    "segmented_batch_norm_backward",
    "segmented_batch_norm_forward",
    "segmented_batch_norm_supports",
]


@triton.jit(do_not_specialize=SIZES)
def apply_kernel(
    x,
    residual,
    y,
    weight,
    bias,
    mean,
    rstd,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    outer,
    channels,
    frozen,
    inner,
    x_stride,
    residual_stride,
    y_stride,
    steps,
    eps,
    ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """y of all channels. Live ones by ``mean`` and ``rstd``; with ``running_mean`` given by the running statistics
    instead, which are then written to ``mean`` and ``rstd``."""
    first = tl.program_id(0) * steps
    channels = whole_sixteens(channels, ALIGNED and BLOCK_INNER == 1)
    frozen = whole_sixteens(frozen, ALIGNED and BLOCK_INNER == 1)
    x_stride = whole_sixteens(x_stride, ALIGNED)
    residual_stride = whole_sixteens(residual_stride, ALIGNED)
    y_stride = whole_sixteens(y_stride, ALIGNED)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    unit = channel - frozen
    is_frozen = channel < frozen
    is_live = (channel >= frozen) & (channel < channels)

    scale = by_channel(frozen_scale, channel, is_frozen, 0.0)
    shift = by_channel(frozen_shift, channel, is_frozen, 0.0)
    if running_mean is not None:
        mu = tl.load(running_mean + unit, mask=is_live, other=0.0).to(tl.float32)
        r = reciprocal_deviation(tl.load(running_var + unit, mask=is_live, other=0.0).to(tl.float32), eps)
        if first == 0:
            tl.store(mean + unit, mu, mask=is_live)
            tl.store(rstd + unit, r, mask=is_live)
        mu, r = mu[None, :, None], r[None, :, None]
    else:
        mu = by_channel(mean, unit, is_live, 0.0)
        r = by_channel(rstd, unit, is_live, 0.0)
    gain = by_channel(weight, unit, is_live, 1.0)
    move = by_channel(bias, unit, is_live, 0.0)

    for tile in range(first, first + steps):
        row, place = positions(tile, inner, BLOCK_OUTER, BLOCK_INNER)
        inside = (row < outer) & (channel < channels)[None, :, None] & (place < inner)
        column = (channel.to(tl.int64) * inner)[None, :, None] + place
        value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        z = tl.where(is_frozen[None, :, None], tl.fma(value, scale, shift), (value - mu) * r * gain + move)
        if residual is not None:
            z += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + row * y_stride + column, activate(z, ACTIVATION).to(y.dtype.element_ty), mask=inside)


def segmented_batch_norm_supports(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    frozen_scale: Tensor,
) -> str | None:
    """Why these inputs cannot be run here; None when they can."""
    if reason := unsupported(x):
        return reason
    if x.dim() < 2:
        return f"the input has {x.dim()} dimension, and [N, C] or more are needed"
    if residual is not None and (residual.dtype != x.dtype or residual.shape != x.shape):
        return f"the residual is {residual.dtype} {list(residual.shape)}, the input {x.dtype} {list(x.shape)}"
    for name, numbers in {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "frozen_scale": frozen_scale,
    }.items():
        if numbers is not None and numbers.dtype not in (torch.float32, x.dtype):
            return f"{name} is {numbers.dtype}, neither float32 nor the input's {x.dtype}"

    if not running_mean.is_contiguous():
        return "the running statistics are not contiguous"
    channels, pixels = x.shape[1], x.shape[2:].numel()
    if channels >= (2**20 if pixels == 1 else 2**16) or pixels >= 2**31 or x.numel() >= 2**37:
        return f"{list(x.shape)} is more channels, pixels or values than one launch reaches"
    return None


def segmented_batch_norm_forward(
    x: Tensor, residual: Tensor | None, norm: Norm, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd): y in x's dtype and memory format, mean and rstd [L] float32 as live channels were normalised.

    ``out``: dense memory for y, or None; x may lie in it. In training the running statistics are moved in place.
    """
    layout = Layout.of(x)
    live = x.shape[1] - len(norm.frozen_scale)
    y = layout.empty_like(x) if out is None else out
    mean, rstd = (x.new_zeros(live, dtype=torch.float32) for _ in range(2))
    if not x.numel():
        if not norm.training:
            mean.copy_(norm.running_mean)
            torch.rsqrt(norm.running_var.float() + norm.eps, out=rstd)
        return y, mean, rstd

    x = layout.arrange(x)
    with on_device(x):
        if norm.training and live:
            batch_statistics(layout, x, norm, mean, rstd)
        _apply(layout, x, residual, y, norm, mean, rstd)
    return y, mean, rstd


def normalise_into(y: Tensor, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> None:
    """Write the live channels x [M, L], normalised by ``mean`` and ``rstd`` and activated, to y [M, L].

    y may be a slice of columns. Of ``norm`` the live channels' weight, bias and activation are used.
    """
    if x.numel():
        with on_device(x):
            _apply(Layout.of(x), x, None, y, norm.live()._replace(training=True), mean, rstd)


def _apply(
    layout: Layout, x: Tensor, residual: Tensor | None, y: Tensor, norm: Norm, mean: Tensor, rstd: Tensor
) -> None:
    """Write y: live channels by ``mean`` and ``rstd`` in training, else by the running statistics, which are then
    written there."""
    residual = None if residual is None else layout.arrange(residual)
    strides = layout.stride(x), 0 if residual is None else layout.stride(residual), layout.stride(y)
    frozen = len(norm.frozen_scale)
    by_running = not norm.training and len(mean) > 0
    block, steps, grid = Sweep.of(layout)

    apply_kernel[grid](
        x,
        residual,
        y,
        norm.weight,
        norm.bias,
        mean,
        rstd,
        norm.running_mean if by_running else None,
        norm.running_var if by_running else None,
        norm.frozen_scale,
        norm.frozen_shift,
        layout.outer,
        layout.channels,
        frozen,
        layout.inner,
        *strides,
        steps,
        norm.eps,
        ACTIVATION=norm.activation,
        **block.constants(),
        ALIGNED=layout.aligned(frozen, *strides),
        num_warps=WARPS,
        **OPTIONS,
    )
