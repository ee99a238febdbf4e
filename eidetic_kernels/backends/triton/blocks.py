"""How the kernels of segmented BatchNorm see a tensor, and in which blocks they go over it.

Every memory format is seen as x[outer, channels, inner]: [N, C], [N, C, L] and [N, C, H, W] have their space as
``inner``; in channels_last memory every pixel is an ``outer`` row and ``inner`` is 1. Neighbours in ``inner``, then in
``channels``, are neighbours in memory; ``outer`` has a stride of its own, so a slice of columns runs as it lies. All
kernels work on blocks of these three dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ALIGNMENT = 16  # elements: sizes and strides that divide by it let 16 bytes be moved at once, whatever the dtype
BLOCK = 2048  # values in a block; not yet measured on a GPU, nor are the numbers below
WARPS = 8
APPLY_RUN = 128  # values side by side in a block that computes each value alone
REDUCE_RUN = 32  # the same in a block that sums over rows; fewer, so that there are enough blocks
SPLIT_AFTER = 4  # a block makes at least this many steps over rows; more rows may be split among several blocks
SPLITS = 256  # rows are split among at most this many blocks
PROGRAMS = 1024  # this many programs keep a GPU busy: beyond it, rows are not split any further
STEPS = 8  # where there are more programs, one does up to this many blocks and loads its channels' numbers once

# Triton must not compile again when one of these changes: pruning changes them at every step.
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
def total_by_channel(values):
    """The sum of a block [outer, channels, inner] over everything but its channels."""
    return tl.sum(tl.sum(values, 2), 0)


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
    """How one pass covers all channels: each program does ``steps`` blocks of its channels.

    The last program may be given blocks beyond the end. It loads and stores nothing of these.
    """

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
