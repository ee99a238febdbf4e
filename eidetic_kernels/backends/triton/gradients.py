"""The backward pass of segmented BatchNorm: sums over the live channels, then gradients of all channels.

See :mod:`.batch_norm` for what is computed, :mod:`.blocks` for how the kernels see a tensor.
"""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import AppliedNorm, NormGradients
from .activations import activation_gradient
from .blocks import (
    SIZES,
    WARPS,
    Layout,
    Reduction,
    Sweep,
    by_channel,
    positions,
    total_by_channel,
    whole_sixteens,
)
from .launch import OPTIONS, on_device


@triton.jit(do_not_specialize=SIZES)
def gradient_sums_kernel(
    dy,
    x,
    residual,
    weight,
    bias,
    mean,
    rstd,
    sum_dz,
    sum_dz_normalised,
    outer,
    channels,
    frozen,
    inner,
    dy_stride,
    x_stride,
    residual_stride,
    rows,
    ACTIVATION: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Sums of dz and of dz * (x - mean) * rstd over each block's ``rows`` of the live channels, [blocks, live]."""
    block = tl.program_id(0)
    channels = whole_sixteens(channels, ALIGNED and BLOCK_INNER == 1)
    frozen = whole_sixteens(frozen, ALIGNED and BLOCK_INNER == 1)
    dy_stride = whole_sixteens(dy_stride, ALIGNED)
    x_stride = whole_sixteens(x_stride, ALIGNED)
    residual_stride = whole_sixteens(residual_stride, ALIGNED)
    live = channels - frozen
    unit = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_live = unit < live
    column = ((frozen + unit).to(tl.int64) * inner)[None, :, None]
    first = block.to(tl.int64) * rows
    here = tl.minimum(outer - first, rows).to(tl.int32)
    mu = by_channel(mean, unit, is_live, 0.0)
    r = by_channel(rstd, unit, is_live, 0.0)
    gain = by_channel(weight, unit, is_live, 1.0)
    move = by_channel(bias, unit, is_live, 0.0)
    shape: tl.constexpr = (BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER)
    lane_dz = tl.zeros(shape, tl.float32)
    lane_dz_normalised = tl.zeros(shape, tl.float32)

    for tile in range(0, tl.cdiv(here, BLOCK_OUTER) * tl.cdiv(inner, BLOCK_INNER)):
        row, place = positions(tile, inner, BLOCK_OUTER, BLOCK_INNER)
        inside = (row < here) & is_live[None, :, None] & (place < inner)
        row += first
        column_place = column + place
        value = tl.load(x + row * x_stride + column_place, mask=inside, other=0.0).to(tl.float32)
        upstream = tl.load(dy + row * dy_stride + column_place, mask=inside, other=0.0).to(tl.float32)
        normalised = (value - mu) * r
        z = normalised * gain + move
        if residual is not None:
            z += tl.load(residual + row * residual_stride + column_place, mask=inside, other=0.0).to(tl.float32)
        dz = tl.where(inside, activation_gradient(z, upstream, ACTIVATION), 0.0)
        lane_dz += dz
        lane_dz_normalised += tl.where(inside, dz * normalised, 0.0)

    place = block.to(tl.int64) * live + unit
    tl.store(sum_dz + place, total_by_channel(lane_dz), mask=is_live)
    tl.store(sum_dz_normalised + place, total_by_channel(lane_dz_normalised), mask=is_live)


@triton.jit(do_not_specialize=SIZES)
def gradients_kernel(
    dy,
    x,
    residual,
    dx,
    dresidual,
    weight,
    bias,
    mean,
    rstd,
    sum_dz,
    sum_dz_normalised,
    frozen_scale,
    frozen_shift,
    outer,
    channels,
    frozen,
    inner,
    dy_stride,
    x_stride,
    residual_stride,
    steps,
    count,
    ACTIVATION: tl.constexpr,
    FULL_INPUT_GRAD: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """dx and dresidual, each where given, of all channels: zeros at frozen ones unless FULL_INPUT_GRAD.

    Without ``sum_dz`` the statistics were constants (evaluation)."""
    first = tl.program_id(0) * steps
    channels = whole_sixteens(channels, ALIGNED and BLOCK_INNER == 1)
    frozen = whole_sixteens(frozen, ALIGNED and BLOCK_INNER == 1)
    dy_stride = whole_sixteens(dy_stride, ALIGNED)
    x_stride = whole_sixteens(x_stride, ALIGNED)
    residual_stride = whole_sixteens(residual_stride, ALIGNED)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    unit = channel - frozen
    is_frozen = channel < frozen
    is_live = (channel >= frozen) & (channel < channels)
    mu = by_channel(mean, unit, is_live, 0.0)
    r = by_channel(rstd, unit, is_live, 0.0)
    gain = by_channel(weight, unit, is_live, 1.0)
    move = by_channel(bias, unit, is_live, 0.0)
    if FULL_INPUT_GRAD:
        scale = by_channel(frozen_scale, channel, is_frozen, 0.0)
        shift = by_channel(frozen_shift, channel, is_frozen, 0.0)
    if sum_dz is not None:
        values = count.to(tl.float32)
        mean_dz = by_channel(sum_dz, unit, is_live, 0.0) / values
        mean_dz_normalised = by_channel(sum_dz_normalised, unit, is_live, 0.0) / values

    for tile in range(first, first + steps):
        row, place = positions(tile, inner, BLOCK_OUTER, BLOCK_INNER)
        inside = (row < outer) & (channel < channels)[None, :, None] & (place < inner)
        wanted = inside
        if not FULL_INPUT_GRAD:
            wanted = inside & is_live[None, :, None]
        column = (channel.to(tl.int64) * inner)[None, :, None] + place
        value = tl.load(x + row * x_stride + column, mask=wanted, other=0.0).to(tl.float32)
        upstream = tl.load(dy + row * dy_stride + column, mask=wanted, other=0.0).to(tl.float32)
        normalised = (value - mu) * r
        z = normalised * gain + move
        if FULL_INPUT_GRAD:
            z = tl.where(is_frozen[None, :, None], tl.fma(value, scale, shift), z)
        if residual is not None:
            z += tl.load(residual + row * residual_stride + column, mask=wanted, other=0.0).to(tl.float32)

        dz = tl.where(wanted, activation_gradient(z, upstream, ACTIVATION), 0.0)
        out = row * (channels.to(tl.int64) * inner) + column
        if dresidual is not None:
            tl.store(dresidual + out, dz.to(dresidual.dtype.element_ty), mask=inside)
        if dx is not None:
            through = dz
            if sum_dz is not None:
                through = dz - mean_dz - normalised * mean_dz_normalised
            through = tl.where(is_live[None, :, None], through * (gain * r), 0.0)
            if FULL_INPUT_GRAD:
                through = tl.where(is_frozen[None, :, None], dz * scale, through)
            tl.store(dx + out, through.to(dx.dtype.element_ty), mask=inside)


class Given(NamedTuple):
    """The big tensors of a backward pass, as the kernels read them."""

    dy: Tensor
    x: Tensor
    residual: Tensor | None
    sizes: tuple[int, ...]  # outer, channels, frozen, inner, and the strides of dy, x and residual
    aligned: bool

    @classmethod
    def of(cls, layout: Layout, dy: Tensor, x: Tensor, residual: Tensor | None, frozen: int) -> Given:
        dy, x = layout.arrange(dy), layout.arrange(x)
        residual = None if residual is None else layout.arrange(residual)
        strides = layout.stride(dy), layout.stride(x), 0 if residual is None else layout.stride(residual)
        sizes = layout.outer, layout.channels, frozen, layout.inner, *strides
        return cls(dy, x, residual, sizes, layout.aligned(frozen, *strides))


def segmented_batch_norm_backward(
    dy: Tensor, x: Tensor, residual: Tensor | None, norm: AppliedNorm, wanted: NormGradients
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dresidual, dweight, dbias); dx and dresidual as wanted, dweight and dbias as weight and bias are given.

    At frozen channels dx and dresidual are zeros, with ``full_input_grad`` the true gradients.
    """
    layout = Layout.of(x)
    frozen, live = len(norm.frozen_scale), x.shape[1] - len(norm.frozen_scale)
    dx = layout.empty_like(x) if wanted.x else None
    dresidual = layout.empty_like(x) if wanted.residual else None
    sums = None, None
    if x.numel():
        given = Given.of(layout, dy, x, residual, frozen)
        learns = norm.weight is not None or norm.bias is not None
        with on_device(x):
            if live and ((norm.training and wanted.x) or learns):
                sums = _gradient_sums(layout, given, norm)
            if wanted.x or wanted.residual:
                through = sums if norm.training else (None, None)
                _gradients(layout, given, norm, through, (dx, dresidual), wanted.full_input_grad)

    dbias, dweight = (
        None if numbers is None else torch.zeros_like(numbers) if found is None else found.to(numbers.dtype)
        for numbers, found in zip((norm.bias, norm.weight), sums)
    )
    return dx, dresidual, dweight, dbias


def _gradient_sums(layout: Layout, given: Given, norm: AppliedNorm) -> tuple[Tensor, Tensor]:
    """The sums over each live channel of dz and of dz times the normalised input, [L] float32 each."""
    live = len(norm.mean)
    block, rows, blocks, grid = Reduction.of(layout, live)
    parts = [given.x.new_empty(blocks, live, dtype=torch.float32) for _ in range(2)]

    gradient_sums_kernel[grid](
        given.dy,
        given.x,
        given.residual,
        norm.weight,
        norm.bias,
        norm.mean,
        norm.rstd,
        *parts,
        *given.sizes,
        rows,
        ACTIVATION=norm.activation,
        **block.constants(),
        ALIGNED=given.aligned,
        num_warps=WARPS,
        **OPTIONS,
    )
    sum_dz, sum_dz_normalised = (part.sum(0) if blocks > 1 else part[0] for part in parts)
    return sum_dz, sum_dz_normalised


def _gradients(
    layout: Layout,
    given: Given,
    norm: AppliedNorm,
    sums: tuple[Tensor | None, Tensor | None],
    results: tuple[Tensor | None, Tensor | None],
    full_input_grad: bool,
) -> None:
    """Write ``results``, dx and dresidual where they are given. ``sums`` are None where statistics were constants."""
    block, steps, grid = Sweep.of(layout)
    gradients_kernel[grid](
        given.dy,
        given.x,
        given.residual,
        *results,
        norm.weight,
        norm.bias,
        norm.mean,
        norm.rstd,
        *sums,
        norm.frozen_scale,
        norm.frozen_shift,
        *given.sizes,
        steps,
        layout.outer * layout.inner,
        ACTIVATION=norm.activation,
        FULL_INPUT_GRAD=full_input_grad,
        **block.constants(),
        ALIGNED=given.aligned,
        num_warps=WARPS,
        **OPTIONS,
    )
