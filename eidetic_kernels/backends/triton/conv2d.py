"""The frozen segments of a staircase convolution in one launch, as an implicit product, with all that follows it.

    y[:, segment s] = act((conv2d(x[:, reads of s], W_s) + b_s) * scale_s + shift_s + residual)

Seen as a product, a row is an output position (sample, line, column) and a column an input channel at a tap, a place
under the kernel: the unfolded input, of which each step loads what it needs and which is never written. Table, tiles
and the argument why a frozen segment's bits never change (P1) are those of :mod:`.linear`; one element is the sum
over its segment's spans, in order, over the taps, over steps of BLOCK_K channels. Made for channels_last memory, where
neighbouring channels are loaded together; NCHW runs too. Contract and oracle: :mod:`eidetic_kernels.ops.conv2d`.

Not chosen by itself: frozen segments run on the library's convolution until this is measured faster on a GPU, or the
backend is forced (EIDETIC_BACKEND=triton).
"""

# Triton's types take a kernel for the function that was decorated: without a launch's options, its constants constexpr.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...layout import Geometry, Stair, Staircase
from ..arguments import Epilogue, Weights
from .activations import activate
from .blocks import ALIGNMENT, whole_sixteens
from .launch import OPTIONS, on_device, unsupported
from .linear import Tile, table

# positions, units, channels of a tile, warps, pipeline stages. Compiled for sm_80, sm_90 and sm_100 nothing spills, in
# channels_last memory or NCHW, with sizes that divide by 16 or not; 128 x 128 tiles spilled up to 952 bytes.
# Not yet measured on a GPU.
TILES = {"half": Tile(64, 64, 64, 8, 4), "single": Tile(64, 64, 32, 8, 3)}

# These change with pruning or with the batch. Triton must not compile again when they do.
SIZES = ["positions", "x_sample", "x_channel", "x_line", "x_column", "y_sample", "y_unit", "y_position"]


@triton.jit(do_not_specialize=SIZES)
def staircase_conv2d_kernel(
    x,
    frozen_weight,
    frozen_bias,
    frozen_scale,
    frozen_shift,
    residual,
    y,
    tiles,
    spans,
    positions,
    height,
    width,
    out_height,
    out_width,
    x_sample,
    x_channel,
    x_line,
    x_column,
    y_sample,
    y_unit,
    y_position,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    WHOLE_STEPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of one segment for one block of output positions.

    ``frozen_weight`` holds each segment as [rows, KERNEL_H, KERNEL_W, columns]. Strides are in elements; those of
    channels are 1 where CHANNELS_LAST, those of columns where not; those of ``residual`` are y's. WHOLE_STEPS: BLOCK_K
    divides every span.
    """
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    entry = tiles + tl.program_id(1) * 7
    unit = tl.load(entry).to(tl.int32)
    units = tl.load(entry + 1).to(tl.int32)
    offset = tl.load(entry + 2)  # of the tile's first weight, as if there were one tap; 64 bits
    columns = tl.load(entry + 3).to(tl.int32)  # of its segment's weights, at one tap
    first_span = tl.load(entry + 5).to(tl.int32)
    last_span = tl.load(entry + 6).to(tl.int32)
    offset = whole_sixteens(offset, ALIGNED)
    columns = whole_sixteens(columns, ALIGNED)
    if CHANNELS_LAST:
        x_channel = 1
        y_unit = 1
        x_column = whole_sixteens(x_column, ALIGNED)
        y_position = whole_sixteens(y_position, ALIGNED)
        unit = whole_sixteens(unit, ALIGNED)
        units = whole_sixteens(units, ALIGNED)
    else:
        x_column = 1
        y_position = 1
    x_sample = whole_sixteens(x_sample, ALIGNED)
    y_sample = whole_sixteens(y_sample, ALIGNED)
    x_line = whole_sixteens(x_line, ALIGNED)

    k = tl.arange(0, BLOCK_K)
    n = tl.arange(0, BLOCK_N)
    first = tl.program_id(0) * BLOCK_M
    # Positions beyond the end repeat the last one, and store it again. Units beyond the end are not stored.
    position = tl.minimum(first + tl.arange(0, BLOCK_M), positions - 1)
    sample = position // (out_height * out_width)
    place = position % (out_height * out_width)
    line = place // out_width * STRIDE_H - PADDING_H
    column = place % out_width * STRIDE_W - PADDING_W
    first_sample = (first // (out_height * out_width)).to(tl.int64)
    x_block = x + first_sample * x_sample
    its_sample = sample - first_sample.to(tl.int32)
    x_offsets = (its_sample * x_sample + line * x_line + column * x_column)[:, None] + k[None, :] * x_channel
    w_block = frozen_weight + offset * TAPS
    w_offsets = tl.minimum(n, units - 1)[None, :] * (columns * TAPS) + k[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for span in range(first_span, last_span):
        start = whole_sixteens(tl.load(spans + span * 3), ALIGNED)  # the first channel of x
        length = whole_sixteens(tl.load(spans + span * 3 + 1), ALIGNED)
        w_start = whole_sixteens(tl.load(spans + span * 3 + 2), ALIGNED)  # the first column of the weights
        steps = tl.cdiv(length, BLOCK_K)
        for step in range(0, steps * TAPS):
            tap = step // steps
            channel = step % steps * BLOCK_K
            down = tap // KERNEL_W * DILATION_H
            across = tap % KERNEL_W * DILATION_W
            inside = (line + down >= 0) & (line + down < height) & (column + across >= 0) & (column + across < width)
            x_step = x_block + (start + channel).to(tl.int64) * x_channel + (down * x_line + across * x_column)
            w_step = w_block + (tap * columns + w_start + channel)
            if WHOLE_STEPS:
                a = tl.load(x_step + x_offsets, mask=inside[:, None], other=0.0)
                b = tl.load(w_step + w_offsets)
            else:
                rest = k < length - channel
                a = tl.load(x_step + x_offsets, mask=inside[:, None] & rest[None, :], other=0.0)
                b = tl.load(w_step + w_offsets, mask=rest[:, None], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)

    in_n = n < units
    if frozen_bias is not None:
        acc += tl.load(frozen_bias + unit + n, mask=in_n, other=0.0).to(tl.float32)[None, :]
    if frozen_scale is not None:
        scale = tl.load(frozen_scale + unit + n, mask=in_n, other=0.0).to(tl.float32)
        shift = tl.load(frozen_shift + unit + n, mask=in_n, other=0.0).to(tl.float32)
        acc = tl.fma(acc, scale[None, :], shift[None, :])
    y_block = first_sample * y_sample + unit.to(tl.int64) * y_unit
    y_offsets = (its_sample * y_sample + place * y_position)[:, None] + n[None, :] * y_unit
    if residual is not None:
        acc += tl.load(residual + y_block + y_offsets, mask=in_n[None, :], other=0.0).to(tl.float32)
    acc = activate(acc, ACTIVATION)
    tl.store(y + y_block + y_offsets, acc.to(y.dtype.element_ty), mask=in_n[None, :])


def choose_tile(dtype: torch.dtype) -> Tile:
    """By the dtype alone: it must not depend on what lies beside a segment (P1)."""
    return TILES["single" if dtype == torch.float32 else "half"]


def staircase_conv2d_frozen_supports(
    x: Tensor, frozen_weight: Tensor, kernel: Sequence[int], staircase: Staircase, geometry: Geometry
) -> str | None:
    """Why these inputs cannot be run here; None when they can."""
    if reason := unsupported(x):
        return reason
    if x.dtype != frozen_weight.dtype:
        return f"input and weights differ in dtype ({x.dtype}, {frozen_weight.dtype})"
    height, width = geometry.output_size(x.shape[2:], kernel)
    if min(height, width) < 1:
        return f"a kernel of {list(kernel)} leaves nothing of an input of {list(x.shape[2:])}"
    largest = 64 * max(x.stride(0), x[0:1].numel(), staircase.rows * height * width)
    if max(largest, x.shape[0] * height * width) >= 2**31:
        return "the input has samples of 2**25 values, or 2**31 output positions, or more"
    return None


def staircase_conv2d_frozen_forward(
    y: Tensor, x: Tensor, weights: Weights, staircase: Staircase, geometry: Geometry, epilogue: Epilogue
) -> None:
    """Write the frozen segments' channels of y [N, F + L, H', W'], the first F; the others are left as they are.

    ``y`` is contiguous or channels_last, of the dtype of x [N, K, H, W]. Of the live weights only the kernel's size
    matters. ``epilogue.residual`` is shaped as y.
    """
    samples, rows, height, width = y.shape
    if not samples or not staircase.frozen_rows:
        return
    channels_last = not y.is_contiguous()
    if not channels_last and y.is_contiguous(memory_format=torch.channels_last):  # a single pixel is both
        channels_last = x.stride(1) == 1 and not x.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if x.stride(1 if channels_last else 3) != 1:
        x = x.contiguous(memory_format=layout)
    residual = None if epilogue.residual is None else epilogue.residual.contiguous(memory_format=layout)

    precision = "ieee"
    if x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32":  # pyright: ignore[reportAttributeAccessIssue]
        precision = "tf32"
    tile, frozen, kernel = choose_tile(x.dtype), staircase.frozen, weights.kernel
    tiles, spans, aligned = table(staircase, tile.units, x.device, live=False)
    positions = samples * height * width
    # A size of 1 may have any stride; these are what the kernel computes with.
    x_strides = x.stride() if x.numel() else (0, 0, 0, 0)
    y_strides = rows * height * width, *((1, rows) if channels_last else (height * width, 1))
    moved = x_strides[0], x_strides[2], y_strides[0], *((x_strides[3], rows) if channels_last else ())

    with on_device(x):
        staircase_conv2d_kernel[(triton.cdiv(positions, tile.samples), len(tiles))](
            x,
            taps_outside(weights.frozen_weight, frozen, kernel),
            weights.frozen_bias,
            epilogue.scale,
            epilogue.shift,
            residual,
            y,
            tiles,
            spans,
            positions,
            *x.shape[2:],
            height,
            width,
            *x_strides,
            *y_strides,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            *kernel,
            ACTIVATION=epilogue.activation,
            PRECISION=precision,
            CHANNELS_LAST=channels_last,
            ALIGNED=aligned and all(stride % ALIGNMENT == 0 for stride in moved),
            WHOLE_STEPS=all((b - a) % tile.columns == 0 for stair in frozen for a, b in stair.spans_by_source),
            BLOCK_M=tile.samples,
            BLOCK_N=tile.units,
            BLOCK_K=tile.columns,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            **OPTIONS,
        )


class Packed(NamedTuple):
    """Frozen weights that :func:`taps_outside` rearranged, and the state of the tensor that it made them from."""

    state: tuple[Any, ...] | None
    blocks: tuple[tuple[int, int], ...]  # rows and columns of the segments that are packed so far, in order
    weights: Tensor


# By the tensor that they were made from; an entry goes when that tensor does. A layer that moves to another device or
# dtype, or freezes one more task, gets a new tensor, and so does a copy of a layer.
_packed = WeakTensorKeyDictionary()


def taps_outside(frozen_weight: Tensor, stairs: Sequence[Stair], kernel: tuple[int, ...]) -> Tensor:
    """Each segment's block as [rows, *kernel, columns], so that a tap's weights are neighbours; flat as before.

    Frozen weights do not change, so a segment is packed once, for as much memory again. If they do change
    (a checkpoint is loaded into them, a bit is flipped), torch counts the change, and they are packed anew.
    """
    if kernel == (1, 1):
        return frozen_weight
    blocks = tuple((stair.rows, stair.columns) for stair in stairs)
    state = _state(frozen_weight, kernel)
    known = None if state is None else _packed.get(frozen_weight)
    if known is None or known.state != state or known.blocks[: len(blocks)] != blocks[: len(known.blocks)]:
        with torch.inference_mode(False):  # it is kept, and added to
            known = Packed(state, (), torch.empty_like(frozen_weight))

    if len(known.blocks) < len(blocks):
        taps = kernel[0] * kernel[1]
        offset = sum(rows * columns * taps for rows, columns in known.blocks)
        for rows, columns in blocks[len(known.blocks) :]:
            place = slice(offset, offset + rows * columns * taps)
            block = frozen_weight[place].view(rows, columns, *kernel)
            known.weights[place].view(rows, *kernel, columns).copy_(block.permute(0, 2, 3, 1))
            offset = place.stop
        known = known._replace(blocks=blocks)
        if state is not None:
            _packed[frozen_weight] = known
    return known.weights


def _state(weights: Tensor, kernel: tuple[int, ...]) -> tuple | None:
    """A value that changes when ``weights`` do; None if changes are not counted, or nothing can be computed yet."""
    if weights.is_inference():  # torch does not count their changes
        return None
    if not weights.is_cuda:
        return weights._version, weights.data_ptr(), kernel
    if torch.cuda.is_current_stream_capturing():  # nothing is computed yet, and a graph packs what it will find then
        return None
    return weights._version, weights.data_ptr(), kernel, torch.cuda.current_stream(weights.device).cuda_stream
