"""What the staircase ops share: reading spans of an input, and cutting the frozen weights into their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..layout import Span, Stair, Staircase


def read(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The columns (dimension 1) of ``x`` [N, K, *] inside ``spans``; a view when they are one span."""
    if len(spans) == 1:
        return x.narrow(1, spans[0].start, spans[0].stop - spans[0].start)
    if not spans:
        return x.narrow(1, 0, 0)
    return torch.cat([x.narrow(1, start, stop - start) for start, stop in spans], 1)


def canonical(x: Tensor) -> Tensor:
    """``x`` in memory of its own, aligned to a cache line; ``x`` itself where it is that already.

    A library product's bits depend on where its input lies: of 4,000 random products on a CPU, 17 % changed bits when
    the input was a slice of something wider, and 22 % when it began off a 64-byte line (mostly small batches). Frozen
    segments therefore read a copy wherever it could matter; it costs one pass over the input, the product hundreds.
    """
    layout = torch.contiguous_format
    if x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1:
        layout = torch.channels_last
    if x.is_contiguous(memory_format=layout) and x.data_ptr() % 64 == 0:
        return x
    return x.clone(memory_format=layout)


def write(x: Tensor, spans: Sequence[Span], values: Tensor, accumulate: bool = False) -> None:
    """The reverse of :func:`read`: put (or add) ``values`` [N, sum of spans, *] into ``x`` at ``spans``."""
    offset = 0
    for start, stop in spans:
        part = values.narrow(1, offset, stop - start)
        into = x.narrow(1, start, stop - start)
        into.add_(part) if accumulate else into.copy_(part)
        offset += stop - start


def frozen_blocks(frozen_weight: Tensor, stairs: Sequence[Stair], kernel: Sequence[int] = ()) -> list[Tensor]:
    """The blocks [rows, columns, *kernel] that lie end to end, one a segment, in the flat ``frozen_weight``."""
    blocks, offset = [], 0
    for stair in stairs:
        size = stair.rows * stair.columns * prod(kernel)
        blocks.append(frozen_weight[offset : offset + size].view(stair.rows, stair.columns, *kernel))
        offset += size
    return blocks


def positions(spans: Sequence[Span], inside: Sequence[Span]) -> tuple[Span, ...]:
    """Where the columns ``inside`` (each within one of ``spans``) lie once ``spans`` are read end to end."""
    found, offset = [], 0
    for start, stop in spans:
        for a, b in inside:
            a, b = max(a, start), min(b, stop)
            if a < b:
                found.append(Span(offset + a - start, offset + b - start))
        offset += stop - start
    return tuple(found)


def dense_weight(weight: Tensor, frozen_weight: Tensor, staircase: Staircase) -> Tensor:
    """The layer's weight as one dense tensor [rows, columns, *kernel], zero where the mask is false."""
    kernel = weight.shape[2:]
    blocks = frozen_blocks(frozen_weight, staircase.frozen, kernel)
    if staircase.live is not None:
        blocks.append(weight)
    rows = []
    for stair, block in zip(staircase.stairs, blocks, strict=True):
        row = block.new_zeros(staircase.columns, stair.rows, *kernel).transpose(0, 1)
        write(row, stair.spans, block)
        rows.append(row)
    return torch.cat(rows) if rows else weight.new_zeros(0, staircase.columns, *kernel)


def oracle_input(x: Tensor, staircase: Staircase, exact: bool) -> Tensor:
    """``x`` [N, K, *] with gradient only where the contract owes one: everywhere, or the trainable columns."""
    if exact:
        return x
    trainable = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    for start, stop in staircase.trainable:
        trainable[start:stop] = True
    return torch.where(trainable.view(-1, *[1] * (x.dim() - 2)), x, x.detach())


def oracle_rows(weight: Tensor, bias: Tensor | None, frozen_weight, frozen_bias, staircase: Staircase):
    """Dense weight and bias for the oracle; frozen rows carry no gradient since they are made of buffers."""
    dense = dense_weight(weight, frozen_weight, staircase)
    if bias is None:
        return dense, None
    live = [] if staircase.live is None else [bias]
    return dense, torch.cat([frozen_bias[: staircase.frozen_rows], *live])
