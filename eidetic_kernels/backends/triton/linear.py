"""Staircase linear in one launch: every segment's product, and for frozen segments all that follows it.

    y[:, segment s] = act((x[:, reads of s] @ W_s^T + b_s) * scale_s + shift_s)      frozen
    pre             = x[:, reads of live] @ W^T + b                                  live, normalised into y afterwards

The grid is (blocks of samples, tiles of units). A tile belongs to one segment; a table made once for a staircase says
where its weights lie and which columns it reads, so the paper's structured mask (section 3.1) is the bound of a loop.
Tiles that read most are launched first. Contract and oracle: :mod:`eidetic_kernels.ops.linear`.

**A frozen segment's bits never change (P1).** One element of a product is the sum over its segment's spans, each within
one source, in order, of steps of BLOCK_K columns, the last one filled up with zeros, which add nothing. BLOCK_K and the
tile's shape, and with them the machine's multiply-add instructions, come from the dtype, the precision and the number
of samples alone. Which other segments are in the table, the strides of x and y, where a segment lies in
``frozen_weight``, and ALIGNED decide which elements are loaded together and where they go, never which are added in
what order; rows beyond the segment and samples beyond the batch are other elements. The epilogue rounds as written (no
fusion, see ``OPTIONS``).
"""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...layout import Stair, Staircase
from ..arguments import Norm, Weights
from .activations import activate
from .batch_norm import normalise_into, segmented_batch_norm_forward
from .blocks import ALIGNMENT, whole_sixteens
from .launch import OPTIONS, input_precision, on_device, rows_contiguous, unsupported
from .statistics import Blocks, merge_statistics, reciprocal_deviation


class Tile(NamedTuple):
    """The shape of a block of the product and how it is run."""

    samples: int
    units: int
    columns: int
    num_warps: int
    num_stages: int


# Nothing that pruning, or where a tensor happens to lie, changes may start a compilation.
SIZES = ["samples", "frozen", "live", "x_stride", "eps"]
VECTORS = [
    "bias",
    "frozen_bias",
    "frozen_scale",
    "frozen_shift",
    "block_mean",
    "block_m2",
    "norm_weight",
    "norm_bias",
    "running_mean",
    "running_var",
    "mean",
    "rstd",
    "tiles",
    "spans",
]


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=VECTORS)
def staircase_linear_kernel(
    x,
    weight,
    bias,
    frozen_weight,
    frozen_bias,
    frozen_scale,
    frozen_shift,
    y,
    pre,
    block_mean,
    block_m2,
    norm_weight,
    norm_bias,
    running_mean,
    running_var,
    mean,
    rstd,
    tiles,
    spans,
    samples,
    frozen,
    live,
    x_stride,
    eps,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one segment for one block of samples.

    The pointers that are given say what is wanted. With ``frozen_scale``, frozen units are normalised and activated.
    With ``pre``, live ones are too, and their pre-activation is written there. If ``block_mean`` is given, they are
    normalised later by the batch's statistics, for which each block leaves its mean and sum of squared deviations.
    Otherwise they are normalised at once by the running statistics.
    """
    block = tl.program_id(0)
    entry = tiles + tl.program_id(1) * 7
    column = whole_sixteens(tl.load(entry).to(tl.int32), ALIGNED)  # of y
    units = whole_sixteens(tl.load(entry + 1).to(tl.int32), ALIGNED)
    offset = whole_sixteens(tl.load(entry + 2), ALIGNED)  # of the tile's first weight; 64 bits
    width = whole_sixteens(tl.load(entry + 3).to(tl.int32), ALIGNED)  # of its segment's weights
    is_live = tl.load(entry + 4)
    first_span = tl.load(entry + 5).to(tl.int32)
    last_span = tl.load(entry + 6).to(tl.int32)
    frozen = whole_sixteens(frozen, ALIGNED)
    live = whole_sixteens(live, ALIGNED)
    x_stride = whole_sixteens(x_stride, ALIGNED)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    first = block.to(tl.int64) * BLOCK_M
    here = tl.minimum(samples - block * BLOCK_M, BLOCK_M)
    # Samples and units beyond the end repeat the last one and are not stored: the loop below needs no mask.
    x_offsets = tl.minimum(m, here - 1)[:, None] * x_stride + k[None, :]
    w_offsets = tl.minimum(n, units - 1)[None, :] * width + k[:, None]
    x_block = x + first * x_stride
    if is_live != 0:
        w_block = weight + offset
    else:
        w_block = frozen_weight + offset

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for span in range(first_span, last_span):
        start = whole_sixteens(tl.load(spans + span * 3), ALIGNED)  # the first column of x
        length = whole_sixteens(tl.load(spans + span * 3 + 1), ALIGNED)
        w_start = whole_sixteens(tl.load(spans + span * 3 + 2), ALIGNED)  # the first column of the weights
        whole = length // BLOCK_K * BLOCK_K
        for step in range(0, whole, BLOCK_K):
            a = tl.load(x_block + (start + step) + x_offsets)
            b = tl.load(w_block + (w_start + step) + w_offsets)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        if whole < length:
            rest = length - whole
            a = tl.load(x_block + (start + whole) + x_offsets, mask=k[None, :] < rest, other=0.0)
            b = tl.load(w_block + (w_start + whole) + w_offsets, mask=k[:, None] < rest, other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    in_n = n < units
    inside = (m < here)[:, None] & in_n[None, :]
    y_block = y + first * (frozen + live) + column
    y_offsets = m[:, None] * (frozen + live) + n[None, :]
    if is_live != 0:
        unit = column - frozen + n
        if bias is not None:
            acc += tl.load(bias + unit, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if pre is None:
            tl.store(y_block + y_offsets, acc.to(y.dtype.element_ty), mask=inside)
        else:
            kept = acc.to(pre.dtype.element_ty)
            tl.store(pre + first * live + (column - frozen) + m[:, None] * live + n[None, :], kept, mask=inside)
            z = kept.to(tl.float32)  # what is normalised, and differentiated later, is what was kept
            if block_mean is not None:
                count = here.to(tl.float32)
                its_mean = tl.sum(tl.where(inside, z, 0.0), 0) / count
                deviation = tl.where(inside, z - its_mean[None, :], 0.0)
                place = block.to(tl.int64) * live + unit
                tl.store(block_mean + place, its_mean, mask=in_n)
                tl.store(block_m2 + place, tl.sum(deviation * deviation, 0), mask=in_n)
            else:
                mu = tl.load(running_mean + unit, mask=in_n, other=0.0).to(tl.float32)
                var = tl.load(running_var + unit, mask=in_n, other=0.0).to(tl.float32)
                r = reciprocal_deviation(var, eps)
                if block == 0:
                    tl.store(mean + unit, mu, mask=in_n)
                    tl.store(rstd + unit, r, mask=in_n)
                z = (z - mu[None, :]) * r[None, :]
                if norm_weight is not None:
                    gain = tl.load(norm_weight + unit, mask=in_n, other=0.0).to(tl.float32)
                    move = tl.load(norm_bias + unit, mask=in_n, other=0.0).to(tl.float32)
                    z = z * gain[None, :] + move[None, :]
                z = activate(z, ACTIVATION)
                tl.store(y_block + y_offsets, z.to(y.dtype.element_ty), mask=inside)
    else:
        unit = column + n
        if frozen_bias is not None:
            acc += tl.load(frozen_bias + unit, mask=in_n, other=0.0).to(tl.float32)[None, :]
        if frozen_scale is not None:
            scale = tl.load(frozen_scale + unit, mask=in_n, other=0.0).to(tl.float32)
            shift = tl.load(frozen_shift + unit, mask=in_n, other=0.0).to(tl.float32)
            acc = activate(tl.fma(acc, scale[None, :], shift[None, :]), ACTIVATION)
        tl.store(y_block + y_offsets, acc.to(y.dtype.element_ty), mask=inside)


class Table(NamedTuple):
    """A staircase as the kernel reads it, on a device."""

    tiles: Tensor  # [T, 7] int64: column of y, units, first weight, width of the weights, is live, spans from, to
    spans: Tensor  # [S, 3] int32: first column of x, length, first column of the weights
    aligned: bool


def table(staircase: Staircase, units: int, device: torch.device, live: bool = True) -> Table:
    """A staircase's tiles, at most ``units`` wide; those that read most columns come first.

    With ``live``, the live segment's are among them. The table depends on nothing that changes from batch to batch, so
    it is made and copied to the device once, and kept with the staircase. A captured CUDA graph reads it at its address
    as long as the layer does not change.
    """
    key = "tiles", units, device, live
    if key not in staircase.kept:
        staircase.kept[key] = _table(staircase.stairs if live else staircase.frozen, units, device)
    return staircase.kept[key]


def _table(stairs: Sequence[Stair], units: int, device: torch.device) -> Table:
    tiles, spans = [], []
    column = frozen_weights = 0
    aligned = True
    for stair in stairs:
        first_span, width = len(spans), 0
        for start, stop in stair.spans_by_source:
            spans.append((start, stop - start, width))
            width += stop - start
        base = 0 if stair.live else frozen_weights
        for row in range(0, stair.rows, units):
            tile = (min(units, stair.rows - row), base + row * width, width, stair.live, first_span, len(spans))
            tiles.append((column + row, *tile))
        if stair.rows:
            numbers = (stair.rows, *(number for span in stair.spans_by_source for number in span))
            aligned = aligned and all(number % ALIGNMENT == 0 for number in numbers)
        column += stair.rows
        frozen_weights += 0 if stair.live else stair.rows * width

    tiles.sort(key=lambda tile: -tile[3])
    with torch.inference_mode(False):  # it is kept
        return Table(
            torch.tensor(tiles, dtype=torch.int64, device=device).view(-1, 7),
            torch.tensor(spans, dtype=torch.int32, device=device).view(-1, 3),
            aligned,
        )


# The tile, by how products are computed. Few samples have smaller tiles, so that there are enough for the GPU. Not yet
# measured on a GPU. Comments say what Triton 3.9 compiles for sm_80, sm_90 and sm_100: registers of a thread / bytes
# spilled, for the product alone. Statistics and an activation in the epilogue cost up to 60 registers or 170 bytes.
TILES = {
    "half": {
        "few": Tile(64, 64, 64, 4, 4),  # aligned 124/0,  96/0,  64/0   ragged 255/0,   255/0,   255/24
        "many": Tile(128, 128, 64, 8, 3),  # 200/0, 128/0, 120/0           255/256, 255/160, 255/160
    },
    "tf32": {
        "few": Tile(64, 64, 32, 4, 4),  # aligned 125/0,  96/0,  76/0   ragged 246/0,   230/0,   208/0
        "many": Tile(128, 128, 32, 8, 3),  # 204/0, 165/0, 154/0           255/0,   234/0,   255/0
    },
    "ieee": {
        "few": Tile(64, 64, 16, 4, 3),  # aligned 128/0, 164/0, 168/0   ragged 168/0,   168/0,   162/0
        "many": Tile(64, 64, 16, 4, 3),
    },
}
FEW = 512  # samples


def choose_tile(dtype: torch.dtype, precision: str, samples: int) -> Tile:
    kind = precision if dtype == torch.float32 else "half"
    return TILES[kind]["few" if samples <= FEW else "many"]


def staircase_linear_supports(x: Tensor, weight: Tensor, frozen_weight: Tensor, staircase: Staircase) -> str | None:
    """Why these inputs cannot be run here; None when they can."""
    if x.dtype != weight.dtype or x.dtype != frozen_weight.dtype:
        return f"input and weights differ in dtype ({x.dtype}, {weight.dtype}, {frozen_weight.dtype})"
    if x.shape[0] >= 2**31 or max(x.stride(0), staircase.columns) >= 2**24 or staircase.rows >= 2**21:
        return (
            f"{x.shape[0]} samples of {staircase.columns} columns, {x.stride(0)} elements apart, for {staircase.rows} "
            "units are too large: samples must be below 2**31, columns and strides below 2**24, units below 2**21"
        )
    return unsupported(x)


def staircase_linear_forward(x: Tensor, weights: Weights, staircase: Staircase) -> Tensor:
    """y [M, F + L] of x [M, K]."""
    y = x.new_empty(x.shape[0], staircase.rows)
    tile = choose_tile(x.dtype, input_precision(x.dtype), x.shape[0])
    _launch(tile, x, weights, staircase, y, Following())
    return y


def staircase_linear_norm_forward(
    x: Tensor, weights: Weights, staircase: Staircase, norm: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y [M, F + L], pre [M, L], mean [L], rstd [L]): the product of x [M, K], normalised and activated.

    ``pre`` is the live units' pre-activation in the dtype of x, ``mean`` and ``rstd`` (float32) are what it was
    normalised by: in training its own statistics, which also move the running ones in place.
    """
    samples, frozen = x.shape[0], staircase.frozen_rows
    live = staircase.rows - frozen
    y, pre = x.new_empty(samples, frozen + live), x.new_empty(samples, live)
    if not samples:
        _, mean, rstd = segmented_batch_norm_forward(pre, None, norm.live())
        return y, pre, mean, rstd

    mean, rstd = (x.new_empty(live, dtype=torch.float32) for _ in range(2))
    tile = choose_tile(x.dtype, input_precision(x.dtype), samples)
    following = Following(norm.activation, norm.frozen_scale, norm.frozen_shift, pre, norm.weight, norm.bias)
    if not norm.training:
        running = norm.running_mean, norm.running_var
        following = following._replace(running=running, statistics=(mean, rstd), eps=norm.eps)
        _launch(tile, x, weights, staircase, y, following)
        return y, pre, mean, rstd

    block_mean, block_m2 = x.new_empty(2, triton.cdiv(samples, tile.samples), live, dtype=torch.float32)
    blocks = Blocks(block_mean, block_m2, tile.samples, samples)
    _launch(tile, x, weights, staircase, y, following._replace(blocks=(blocks.mean, blocks.m2)))
    if live:
        with on_device(x):
            merge_statistics(blocks, norm, mean, rstd)
        normalise_into(y[:, frozen:], pre, norm, mean, rstd)
    return y, pre, mean, rstd


class Following(NamedTuple):
    """What follows the product in the same launch; a tensor that is None is not wanted."""

    activation: str = "none"
    frozen_scale: Tensor | None = None
    frozen_shift: Tensor | None = None
    pre: Tensor | None = None  # where live units' pre-activations go
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    blocks: tuple[Tensor | None, Tensor | None] = (None, None)  # where each block's mean and m2 go
    running: tuple[Tensor | None, Tensor | None] = (None, None)  # the mean and variance to normalise by at once ...
    statistics: tuple[Tensor | None, Tensor | None] = (None, None)  # ... and where mean and rstd are then written
    eps: float = 0.0


def _launch(tile: Tile, x: Tensor, weights: Weights, staircase: Staircase, y: Tensor, following: Following) -> None:
    x, weight = rows_contiguous(x), weights.weight.contiguous()
    samples, (tiles, spans, aligned) = x.shape[0], table(staircase, tile.units, x.device)
    if not samples or not len(tiles):
        return
    frozen = staircase.frozen_rows

    with on_device(x):
        staircase_linear_kernel[(triton.cdiv(samples, tile.samples), len(tiles))](
            x,
            weight,
            weights.bias,
            weights.frozen_weight,
            weights.frozen_bias,
            following.frozen_scale,
            following.frozen_shift,
            y,
            following.pre,
            *following.blocks,
            following.norm_weight,
            following.norm_bias,
            *following.running,
            *following.statistics,
            tiles,
            spans,
            samples,
            frozen,
            staircase.rows - frozen,
            x.stride(0),
            following.eps,
            ACTIVATION=following.activation,
            PRECISION=input_precision(x.dtype),
            ALIGNED=aligned and x.stride(0) % ALIGNMENT == 0,
            BLOCK_M=tile.samples,
            BLOCK_N=tile.units,
            BLOCK_K=tile.columns,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **OPTIONS,
        )
