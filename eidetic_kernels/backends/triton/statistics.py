"""The statistics of a batch's live channels: mean, 1 / deviation, and what they move the running ones to.

They are Welford's: each lane of a block keeps (count, mean, sum of squared deviations) of what it has seen, and lanes
and blocks are merged by Chan's formula. A plain sum of squares is 13 % off in the variance where the mean is 1,000
deviations. Nothing is added in an order that depends on timing, so equal inputs give equal bits.
"""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..arguments import Norm
from .blocks import SIZES, WARPS, Layout, Reduction, positions, total_by_channel, whole_sixteens
from .launch import OPTIONS


@triton.jit
def combine(count, mean, m2, more_count, more_mean, more_m2):
    """Chan's formula, value by value: (count, mean, sum of squared deviations) of two samples taken together."""
    total = count + more_count
    share = more_count / tl.maximum(total, 1.0)
    delta = more_mean - mean
    return total, mean + delta * share, m2 + more_m2 + delta * delta * share * count


@triton.jit
def merge_lanes(count, mean, m2):
    """Chan's formula for all lanes of a block at once: (mean, m2) [channels] of blocks [outer, channels, inner]."""
    total = tl.maximum(total_by_channel(count), 1.0)
    centre = total_by_channel(count * mean) / total
    # A second pass around the first result removes most of the rounding that a large mean causes.
    centre += total_by_channel(count * (mean - centre[None, :, None])) / total
    delta = mean - centre[None, :, None]
    return centre, total_by_channel(m2 + count * delta * delta)


@triton.jit
def reciprocal_deviation(variance, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(variance + eps))


@triton.jit
def keep_statistics(batch_mean, m2, count, mean, rstd, running_mean, running_var, unit, inside, eps, momentum):
    """Write the batch's mean and reciprocal deviation, and move the running ones, of the channels ``unit``."""
    values = count.to(tl.float32)
    tl.store(mean + unit, batch_mean, mask=inside)
    tl.store(rstd + unit, reciprocal_deviation(m2 / values, eps), mask=inside)
    old_mean = tl.load(running_mean + unit, mask=inside, other=0.0).to(tl.float32)
    old_var = tl.load(running_var + unit, mask=inside, other=0.0).to(tl.float32)
    unbiased = m2 / tl.maximum(values - 1.0, 1.0)
    new_mean = (1.0 - momentum) * old_mean + momentum * batch_mean
    new_var = (1.0 - momentum) * old_var + momentum * unbiased
    tl.store(running_mean + unit, new_mean.to(running_mean.dtype.element_ty), mask=inside)
    tl.store(running_var + unit, new_var.to(running_var.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    x,
    block_mean,
    block_m2,
    mean,
    rstd,
    running_mean,
    running_var,
    outer,
    channels,
    frozen,
    inner,
    x_stride,
    rows,
    eps,
    momentum,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Mean and m2 of the live channels, each block its ``rows``; finished at once where ``block_mean`` is None."""
    block = tl.program_id(0)
    channels = whole_sixteens(channels, ALIGNED and BLOCK_INNER == 1)
    frozen = whole_sixteens(frozen, ALIGNED and BLOCK_INNER == 1)
    x_stride = whole_sixteens(x_stride, ALIGNED)
    live = channels - frozen
    unit = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    column = (frozen + unit).to(tl.int64) * inner
    first = block.to(tl.int64) * rows
    here = tl.minimum(outer - first, rows).to(tl.int32)
    shape: tl.constexpr = (BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER)
    lane_count = tl.zeros(shape, tl.float32)
    lane_mean = tl.zeros(shape, tl.float32)
    lane_m2 = tl.zeros(shape, tl.float32)

    for tile in range(0, tl.cdiv(here, BLOCK_OUTER) * tl.cdiv(inner, BLOCK_INNER)):
        row, place = positions(tile, inner, BLOCK_OUTER, BLOCK_INNER)
        inside = (row < here) & (unit < live)[None, :, None] & (place < inner)
        offsets = (first + row) * x_stride + column[None, :, None] + place
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        one = inside.to(tl.float32)
        lane_count, lane_mean, lane_m2 = combine(lane_count, lane_mean, lane_m2, one, value, 0.0)

    its_mean, its_m2 = merge_lanes(lane_count, lane_mean, lane_m2)
    if block_mean is None:
        count = outer.to(tl.int64) * inner
        keep_statistics(
            its_mean, its_m2, count, mean, rstd, running_mean, running_var, unit, unit < live, eps, momentum
        )
    else:
        tl.store(block_mean + block.to(tl.int64) * live + unit, its_mean, mask=unit < live)
        tl.store(block_m2 + block.to(tl.int64) * live + unit, its_m2, mask=unit < live)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    block_mean,
    block_m2,
    mean,
    rstd,
    running_mean,
    running_var,
    live,
    blocks,
    group,
    count,
    eps,
    momentum,
    BLOCK_BLOCKS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Merge the (mean, m2) [blocks, live] of ``blocks`` blocks: ``group`` values each, fewer in the last."""
    unit = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    shape: tl.constexpr = (BLOCK_BLOCKS, BLOCK_CHANNELS, 1)
    lane_count = tl.zeros(shape, tl.float32)
    lane_mean = tl.zeros(shape, tl.float32)
    lane_m2 = tl.zeros(shape, tl.float32)
    for first in range(0, blocks, BLOCK_BLOCKS):
        block = (first + tl.arange(0, BLOCK_BLOCKS)).to(tl.int64)[:, None, None]
        inside = (block < blocks) & (unit < live)[None, :, None]
        offsets = block * live + unit[None, :, None]
        its_count = tl.where(inside, tl.minimum(count - block * group, group), 0).to(tl.float32)
        its_mean = tl.load(block_mean + offsets, mask=inside, other=0.0)
        its_m2 = tl.load(block_m2 + offsets, mask=inside, other=0.0)
        lane_count, lane_mean, lane_m2 = combine(lane_count, lane_mean, lane_m2, its_count, its_mean, its_m2)
    batch_mean, m2 = merge_lanes(lane_count, lane_mean, lane_m2)
    keep_statistics(batch_mean, m2, count, mean, rstd, running_mean, running_var, unit, unit < live, eps, momentum)


class Blocks(NamedTuple):
    """The statistics of blocks of values, before they are merged."""

    mean: Tensor  # [blocks, L] float32
    m2: Tensor  # [blocks, L] float32; sums of squared deviations
    group: int  # how many values a channel has in each block, the last of which may have fewer
    count: int  # how many it has in all


def batch_statistics(layout: Layout, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> None:
    """Fill ``mean`` and ``rstd`` [L] float32 with those of the live channels of x; move the running statistics."""
    frozen, live = len(norm.frozen_scale), len(mean)
    block, rows, blocks, grid = Reduction.of(layout, live)
    # Two allocations: the rows of one may begin off 16 bytes, and a kernel is compiled once for each alignment.
    parts = [x.new_empty(blocks, live, dtype=mean.dtype) for _ in range(2 if blocks > 1 else 0)]
    stride = layout.stride(x)

    statistics_kernel[grid](
        x,
        *(parts or (None, None)),
        mean,
        rstd,
        norm.running_mean,
        norm.running_var,
        layout.outer,
        layout.channels,
        frozen,
        layout.inner,
        stride,
        rows,
        norm.eps,
        norm.momentum,
        **block.constants(),
        ALIGNED=layout.aligned(frozen, stride),
        num_warps=WARPS,
        **OPTIONS,
    )

    if blocks > 1:
        merge_statistics(Blocks(*parts, rows * layout.inner, layout.outer * layout.inner), norm, mean, rstd)


def merge_statistics(blocks: Blocks, norm: Norm, mean: Tensor, rstd: Tensor) -> None:
    """Fill ``mean`` and ``rstd`` [L] float32 with those of all ``blocks``; move the running statistics."""
    count, live = blocks.mean.shape
    wide = 32
    merge_kernel[(triton.cdiv(live, wide),)](
        blocks.mean,
        blocks.m2,
        mean,
        rstd,
        norm.running_mean,
        norm.running_var,
        live,
        count,
        blocks.group,
        blocks.count,
        norm.eps,
        norm.momentum,
        BLOCK_BLOCKS=32,
        BLOCK_CHANNELS=wide,
        num_warps=WARPS,
        **OPTIONS,
    )
