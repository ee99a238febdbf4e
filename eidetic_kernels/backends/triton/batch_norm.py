"""Segmented BatchNorm, activation and residual in one pass: frozen channels affine, live ones by their statistics.

    y[:, c] = act(x[:, c] * scale[c] + shift[c] + residual[:, c])                              frozen c < F
    y[:, c] = act((x[:, c] - mean[c]) * rstd[c] * weight[c] + bias[c] + residual[:, c])        live c >= F

Every memory format is seen as x[outer, channels, inner]: [N, C], [N, C, L] and [N, C, H, W] have their space as
``inner``; in channels_last memory every pixel is an ``outer`` row and ``inner`` is 1. Neighbours in ``inner``, then in
``channels``, are neighbours in memory; ``outer`` has a stride of its own, so a slice of columns runs as it lies. All
kernels work on blocks of these three dimensions.

Forward: ``statistics_kernel`` over the live channels, ``merge_kernel`` where it was split among blocks of rows, and
``apply_kernel`` over all channels; evaluation is ``apply_kernel`` alone. Backward: ``gradient_sums_kernel`` over the
live channels, ``gradients_kernel`` over all. Contract and oracle: :mod:`eidetic_kernels.ops.batch_norm`.

Statistics are Welford's: each lane of a block keeps (count, mean, sum of squared deviations) of what it has seen, and
lanes and blocks are merged by Chan's formula. A plain sum of squares is 13 % off in the variance where the mean is
1,000 deviations. Nothing is added in an order that depends on timing, so equal inputs give equal bits.

**A frozen channel's bits never change (P1).** Its output is computed value by value, from that value, its channel's two
numbers and its residual; how values are shared out among blocks cannot matter, and no operation is fused or reordered
by the compiler (``launch.OPTIONS``). What a select does not take, live numbers that are NaN included, leaves no trace.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activations import activate, activation_gradient
from .launch import OPTIONS, on_device, unsupported

ALIGNMENT = 16  # elements: sizes and strides that divide by it let 16 bytes be moved at once, whatever the dtype
BLOCK = 2048  # values in a block; not yet measured on a GPU, nor are the numbers below
WARPS = 8
APPLY_RUN = 128  # values that should lie side by side in a block: where each value is on its own ...
REDUCE_RUN = 32  # ... and where a block sums over rows, so that there are enough blocks
SPLIT_AFTER = 4  # steps that a block makes alone before its rows are split
SPLITS = 256  # among at most so many blocks
PROGRAMS = 1024  # and only while there are fewer programs than this in all
STEPS = 8  # blocks that one program does in turn, its channels' numbers loaded once, where there are enough programs

# None of these may start a compilation when it changes: pruning changes them at every step.
SIZES = [
    "outer",
    "channels",
    "frozen",
    "live",
    "rows",
    "steps",
    "count",
    "blocks",
    "group",
    "eps",
    "momentum",
    "x_stride",
    "residual_stride",
    "y_stride",
    "dy_stride",
]


@triton.jit
def combine(count, mean, m2, more_count, more_mean, more_m2):
    """Chan's formula, value by value: (count, mean, sum of squared deviations) of two samples taken together."""
    total = count + more_count
    share = more_count / tl.maximum(total, 1.0)
    delta = more_mean - mean
    return total, mean + delta * share, m2 + more_m2 + delta * delta * share * count


@triton.jit
def total_by_channel(values):
    """The sum of a block [outer, channels, inner] over everything but its channels."""
    return tl.sum(tl.sum(values, 2), 0)


@triton.jit
def merge_lanes(count, mean, m2):
    """Chan's formula for all lanes of a block at once: (mean, m2) [channels] of blocks [outer, channels, inner]."""
    total = tl.maximum(total_by_channel(count), 1.0)
    centre = total_by_channel(count * mean) / total
    # Once more around the first result: what a large mean cost in rounding is small now.
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


@triton.jit
def positions(tile, inner, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    """Rows [outer, 1, 1], 64 bits, and places [1, 1, inner] inside a row, of block number ``tile``."""
    across = tl.cdiv(inner, BLOCK_INNER)
    first = (tile // across).to(tl.int64) * BLOCK_OUTER
    row = first + tl.arange(0, BLOCK_OUTER)
    place = (tile % across) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    return row[:, None, None], place[None, None, :]


@triton.jit
def whole_sixteens(number, ALIGNED: tl.constexpr):
    """``number``, known to the compiler to divide by 16 where ALIGNED says that it does."""
    if ALIGNED:
        number = number // 16 * 16
    return number


@triton.jit
def by_channel(numbers, index, inside, DEFAULT: tl.constexpr):
    """The channels' numbers as [1, channels, 1] in float32; DEFAULT where there are none."""
    if numbers is None:
        values = tl.full(index.shape, DEFAULT, tl.float32)
    else:
        values = tl.load(numbers + index, mask=inside, other=0.0).to(tl.float32)
    return values[None, :, None]


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
    """One (mean, m2) a live channel from ``blocks`` of them [blocks, live] of ``group`` values each, the last fewer."""
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
    EXACT: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """dx and dresidual, each where given, of all channels: zeros at frozen ones unless EXACT.

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
    if EXACT:
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
        if not EXACT:
            wanted = inside & is_live[None, :, None]
        column = (channel.to(tl.int64) * inner)[None, :, None] + place
        value = tl.load(x + row * x_stride + column, mask=wanted, other=0.0).to(tl.float32)
        upstream = tl.load(dy + row * dy_stride + column, mask=wanted, other=0.0).to(tl.float32)
        normalised = (value - mu) * r
        z = normalised * gain + move
        if EXACT:
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
            if EXACT:
                through = tl.where(is_frozen[None, :, None], dz * scale, through)
            tl.store(dx + out, through.to(dx.dtype.element_ty), mask=inside)


class Layout(NamedTuple):
    """How tensors of one shape are seen by the kernels."""

    outer: int
    channels: int
    inner: int
    format: torch.memory_format

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """channels_last where ``x`` lies so (or would, were it not a slice), else space inside channels."""
        samples, channels, space = x.shape[0], x.shape[1], x.shape[2:].numel()
        if x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1:
            return cls(samples * space, channels, 1, torch.channels_last)
        return cls(samples, channels, space, torch.contiguous_format)

    def arrange(self, tensor: Tensor) -> Tensor:
        """``tensor`` itself where the kernels can read it, else a copy in this layout."""
        if tensor.dim() == 2 and (tensor.stride(1) == 1 or tensor.shape[1] == 1):
            return tensor
        return tensor.contiguous(memory_format=self.format)

    def stride(self, tensor: Tensor) -> int:
        """Elements between two outer rows of an arranged tensor."""
        return tensor.stride(0) if tensor.dim() == 2 else self.channels * self.inner

    def empty_like(self, tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, memory_format=self.format)

    def aligned(self, frozen: int, *strides: int) -> bool:
        """Whether whole blocks of sixteen elements can be moved at once."""
        sizes = (self.channels, frozen) if self.inner == 1 else ()
        return all(number % ALIGNMENT == 0 for number in (*sizes, *strides))


class Block(NamedTuple):
    """The sizes of a block: powers of two."""

    outer: int
    channels: int
    inner: int

    @classmethod
    def of(cls, layout: Layout, channels: int, run: int) -> Block:
        """For ``channels`` of a layout: ``run`` values side by side at least, where there are as many."""
        inner = min(triton.next_power_of_2(layout.inner), BLOCK // 2)
        wide = min(triton.next_power_of_2(channels), max(1, run // inner))
        # At least 16 where memory has channels side by side: fewer variants to compile, at no cost in memory traffic.
        wide = max(wide, 16) if layout.inner == 1 else wide
        outer = min(triton.next_power_of_2(layout.outer), max(1, BLOCK // (wide * inner)))
        return cls(outer, wide, inner)

    def constants(self) -> dict[str, int]:
        return {"BLOCK_OUTER": self.outer, "BLOCK_CHANNELS": self.channels, "BLOCK_INNER": self.inner}


class Sweep(NamedTuple):
    """How all channels are gone over once: each program does ``steps`` blocks of its channels, the last one perhaps
    some beyond the end, of which nothing is loaded or stored."""

    block: Block
    steps: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, layout: Layout) -> Sweep:
        block = Block.of(layout, layout.channels, APPLY_RUN)
        wide = triton.cdiv(layout.channels, block.channels)
        tiles = triton.cdiv(layout.outer, block.outer) * triton.cdiv(layout.inner, block.inner)
        steps = min(STEPS, max(1, tiles * wide // PROGRAMS))
        return cls(block, steps, (triton.cdiv(tiles, steps), wide))


class Reduction(NamedTuple):
    """How sums over the live channels are split: ``blocks`` of ``rows`` each."""

    block: Block
    rows: int
    blocks: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, layout: Layout, live: int) -> Reduction:
        block = Block.of(layout, live, REDUCE_RUN)
        wide = triton.cdiv(live, block.channels)
        most = min(SPLITS, triton.cdiv(PROGRAMS, wide), triton.cdiv(layout.outer, SPLIT_AFTER * block.outer))
        rows = triton.cdiv(triton.cdiv(layout.outer, most), block.outer) * block.outer
        blocks = triton.cdiv(layout.outer, rows)
        return cls(block, rows, blocks, (blocks, wide))


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
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd): y in x's dtype and memory format, mean and rstd [L] float32 as live channels were normalised.
    ``out``: dense memory for y, or None; x may lie in it.

    In training the running statistics are moved in place.
    """
    layout = Layout.of(x)
    frozen, live = len(frozen_scale), x.shape[1] - len(frozen_scale)
    y = layout.empty_like(x) if out is None else out
    mean, rstd = (x.new_zeros(live, dtype=torch.float32) for _ in range(2))
    if not x.numel():
        if not training:
            mean.copy_(running_mean)
            torch.rsqrt(running_var.float() + eps, out=rstd)
        return y, mean, rstd
    x = layout.arrange(x)
    with on_device(x):
        if training and live:
            _statistics(layout, x, mean, rstd, running_mean, running_var, frozen, momentum, eps)
        running = (None, None) if training or not live else (running_mean, running_var)
        _apply(layout, x, residual, y, weight, bias, mean, rstd, *running, frozen_scale, frozen_shift, eps, activation)
    return y, mean, rstd


def _statistics(layout, x, mean, rstd, running_mean, running_var, frozen, momentum, eps) -> None:
    live = layout.channels - frozen
    block, rows, blocks, grid = Reduction.of(layout, live)
    # Two allocations: the rows of one may begin off 16 bytes, and a kernel is compiled once for each alignment.
    parts = [x.new_empty(blocks, live, dtype=torch.float32) if blocks > 1 else None for _ in range(2)]
    stride = layout.stride(x)
    statistics_kernel[grid](
        x,
        *parts,
        mean,
        rstd,
        running_mean,
        running_var,
        layout.outer,
        layout.channels,
        frozen,
        layout.inner,
        stride,
        rows,
        eps,
        momentum,
        **block.constants(),
        ALIGNED=layout.aligned(frozen, stride),
        num_warps=WARPS,
        **OPTIONS,
    )
    if blocks > 1:
        count = layout.outer * layout.inner
        merge_statistics(*parts, rows * layout.inner, count, mean, rstd, running_mean, running_var, momentum, eps)


def merge_statistics(
    block_mean: Tensor,
    block_m2: Tensor,
    group: int,
    count: int,
    mean: Tensor,
    rstd: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> None:
    """Fill ``mean`` and ``rstd`` [L] and move the running statistics, from each block's mean and sum of squared
    deviations [blocks, L] float32; blocks have ``group`` values a channel, the last what is left of ``count``."""
    blocks, live = block_mean.shape
    wide = 32
    merge_kernel[(triton.cdiv(live, wide),)](
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
        BLOCK_BLOCKS=32,
        BLOCK_CHANNELS=wide,
        num_warps=WARPS,
        **OPTIONS,
    )


def _apply(
    layout,
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
    eps,
    activation,
) -> None:
    residual = None if residual is None else layout.arrange(residual)
    strides = layout.stride(x), 0 if residual is None else layout.stride(residual), layout.stride(y)
    frozen = 0 if frozen_scale is None else len(frozen_scale)
    block, steps, grid = Sweep.of(layout)
    apply_kernel[grid](
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
        layout.outer,
        layout.channels,
        frozen,
        layout.inner,
        *strides,
        steps,
        eps,
        ACTIVATION=activation,
        **block.constants(),
        ALIGNED=layout.aligned(frozen, *strides),
        num_warps=WARPS,
        **OPTIONS,
    )


def normalise_into(
    y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, activation: str
) -> None:
    """y = act((x - mean) * rstd * weight + bias) for x [M, L], all of it live; y [M, L] may be a slice of columns."""
    if x.numel():
        with on_device(x):
            _apply(Layout.of(x), x, None, y, weight, bias, mean, rstd, None, None, None, None, 0.0, activation)


def segmented_batch_norm_backward(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    activation: str,
    full_input_grad: bool,
    need_dx: bool,
    need_dresidual: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dresidual, dweight, dbias); dx and dresidual as asked for, dweight and dbias as weight and bias are given.

    At frozen channels dx and dresidual are zeros, with ``full_input_grad`` the true gradients.
    """
    layout = Layout.of(x)
    frozen, live = len(frozen_scale), x.shape[1] - len(frozen_scale)
    dx = layout.empty_like(x) if need_dx else None
    dresidual = layout.empty_like(x) if need_dresidual else None
    sums = None, None
    if x.numel():
        dy, x = layout.arrange(dy), layout.arrange(x)
        residual = None if residual is None else layout.arrange(residual)
        strides = layout.stride(dy), layout.stride(x), 0 if residual is None else layout.stride(residual)
        aligned = layout.aligned(frozen, *strides)
        sizes = layout.outer, layout.channels, frozen, layout.inner, *strides
        with on_device(x):
            if live and ((training and need_dx) or weight is not None or bias is not None):
                sums = _gradient_sums(layout, dy, x, residual, weight, bias, mean, rstd, sizes, activation, aligned)
            if need_dx or need_dresidual:
                block, steps, grid = Sweep.of(layout)
                gradients_kernel[grid](
                    dy,
                    x,
                    residual,
                    dx,
                    dresidual,
                    weight,
                    bias,
                    mean,
                    rstd,
                    *(sums if training else (None, None)),
                    frozen_scale,
                    frozen_shift,
                    *sizes,
                    steps,
                    layout.outer * layout.inner,
                    ACTIVATION=activation,
                    EXACT=full_input_grad,
                    **block.constants(),
                    ALIGNED=aligned,
                    num_warps=WARPS,
                    **OPTIONS,
                )
    dbias, dweight = (
        None if numbers is None else torch.zeros_like(numbers) if found is None else found.to(numbers.dtype)
        for numbers, found in zip((bias, weight), sums)
    )
    return dx, dresidual, dweight, dbias


def _gradient_sums(layout, dy, x, residual, weight, bias, mean, rstd, sizes, activation, aligned):
    """The sums over each live channel of dz and of dz times the normalised input, [L] float32 each."""
    live = len(mean)
    block, rows, blocks, grid = Reduction.of(layout, live)
    parts = [x.new_empty(blocks, live, dtype=torch.float32) for _ in range(2)]
    gradient_sums_kernel[grid](
        dy,
        x,
        residual,
        weight,
        bias,
        mean,
        rstd,
        *parts,
        *sizes,
        rows,
        ACTIVATION=activation,
        **block.constants(),
        ALIGNED=aligned,
        num_warps=WARPS,
        **OPTIONS,
    )
    return [part.sum(0) if blocks > 1 else part[0] for part in parts]
