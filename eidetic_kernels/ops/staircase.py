"""What the staircase ops share: spans of an input, blocks of frozen weights, and the passes over segments.

An op brings a :class:`Product`, the dense product of one segment and its two gradients; the staircase around it is
written once, here. This is the torch backend of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends.arguments import Weights
from ..layout import Span, Stair, Staircase, positions
from ..memory import arranged_as, canonical, is_unit_major
from .registration import Op, placed


def read(x: Tensor, spans: Sequence[Span], dim: int = 1) -> Tensor:
    """The columns (dimension ``dim``) of ``x`` inside ``spans``; a view when they are one span."""
    if len(spans) == 1:
        return x.narrow(dim, spans[0].start, spans[0].stop - spans[0].start)
    if not spans:
        return x.narrow(dim, 0, 0)
    return concatenate_like([x.narrow(dim, start, stop - start) for start, stop in spans], x, dim)


def concatenate_like(parts: Sequence[Tensor], x: Tensor, dim: int = 1) -> Tensor:
    """``parts`` one after the other along ``dim``, lying in memory as ``x`` does.

    The bits of a product depend on how its input lies, and a part of one unit does not show it.
    """
    if dim == 1 and is_unit_major(x):
        return torch.cat([part.t() for part in parts]).t()
    return arranged_as(torch.cat(tuple(parts), dim), x)


def read_alone(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """As :func:`read`, with a part of ``x`` copied: so no product with it depends on what lies beside it."""
    part = read(x, spans)
    return part if part.shape[1] == x.shape[1] else canonical(part)


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


class Product(Protocol):
    """One segment's dense product of x [N, K, *] and weight [R, K, *kernel], any of N, K, R possibly zero."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
        """The product, in ``out`` where that is given."""
        ...

    def out_buffer(self, x: Tensor, rows: int) -> Tensor | None:
        """Memory [N, rows, *] that all segments' products can be written to; None if that would change their bits."""
        ...

    def weight_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of ``weight``, for x [N, K, *] that has the columns it reads."""
        ...

    def input_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient [N, K, *] of the columns that ``weight`` reads; of ``x`` only the other sizes matter."""
        ...

    def arranged(self, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Rows ``y`` lying in memory as the layer's output does, given its whole input and its live weight."""
        ...

    def empty(self, x: Tensor, weight: Tensor, rows: int) -> Tensor:
        """Memory for ``rows`` rows that lie so."""
        ...


class Needed(NamedTuple):
    """Which gradients of a product are asked for."""

    x: bool
    weight: bool
    bias: bool


def products(x: Tensor, weights: Weights, staircase: Staircase, product: Product) -> Tensor:
    """Every segment's product, one after the other."""
    out_buffer = product.out_buffer(x, staircase.rows)
    parts = frozen_products(x, weights, staircase, product, out_buffer)
    if has_live_rows(staircase) or not parts:
        parts.append(live_product(x, weights, staircase, product, out_buffer))
    return joined(parts, out_buffer)


def joined(parts: Sequence[Tensor], out_buffer: Tensor | None = None) -> Tensor:
    """The rows of all ``parts`` (at least one), side by side: ``out_buffer``, where they were written to one."""
    if out_buffer is not None:
        return out_buffer
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


def has_live_rows(staircase: Staircase) -> bool:
    return staircase.live is not None and bool(staircase.live.rows)


def live_product(
    x: Tensor, weights: Weights, staircase: Staircase, product: Product, out_buffer: Tensor | None = None
) -> Tensor:
    """The live segment's product, in the last rows of ``out_buffer`` if that is given; [N, 0, *] without live rows."""
    live = staircase.live
    if live is None or not live.rows:
        return product.forward(x[:, :0], weights.weight[:0, :0], None, None)
    out = None if out_buffer is None else out_buffer[:, staircase.frozen_rows :]
    return product.forward(read_alone(x, live.spans), weights.weight, weights.bias, out)


def frozen_products(
    x: Tensor, weights: Weights, staircase: Staircase, product: Product, out_buffer: Tensor | None = None
) -> list[Tensor]:
    """The products of the frozen segments that have rows, in the first rows of ``out_buffer`` if that is given."""
    parts, row = [], 0
    blocks = frozen_blocks(weights.frozen_weight, staircase.frozen, weights.kernel)
    for stair, block in zip(staircase.frozen, blocks):
        if stair.rows:
            rows = slice(row, row + stair.rows)
            bias = None if weights.frozen_bias is None else weights.frozen_bias[rows]
            out = None if out_buffer is None else out_buffer[:, rows]
            parts.append(product.forward(canonical(read(x, stair.spans)), block, bias, out))
        row += stair.rows
    return parts


def gradients(
    dy_frozen: Tensor | None,
    dy_live: Tensor,
    x: Tensor,
    weight: Tensor,
    frozen_weight: Tensor,
    staircase: Staircase,
    product: Product,
    needed: Needed,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What a backward pass owes: gradients of x, weight and bias, each None where it is not needed.

    ``dy_frozen``: the frozen rows' gradient where the input's is owed in full, else None.
    """
    live = staircase.live
    dx = dweight = dbias = None
    if live is None:  # nothing that learns is part of this pass
        dweight = torch.zeros_like(weight) if needed.weight else None
        dbias = weight.new_zeros(len(weight)) if needed.bias else None
    else:
        dy_live = canonical(dy_live)
        dweight = product.weight_gradient(dy_live, read_alone(x, live.spans), weight) if needed.weight else None
        dbias = dy_live.sum((0, *range(2, dy_live.dim()))) if needed.bias else None

    if needed.x and dy_frozen is None and live is not None and staircase.trainable == (Span(0, x.shape[1]),):
        # All of the input leads to something trainable: the product is the gradient as it comes.
        dx = product.input_gradient(dy_live, x, read(weight, positions(live.spans, staircase.trainable)))
        dx = arranged_as(dx, x)
    elif needed.x:
        dx = torch.zeros_like(x)
        if dy_frozen is not None:
            row = 0
            for stair, block in zip(staircase.frozen, frozen_blocks(frozen_weight, staircase.frozen, weight.shape[2:])):
                part = product.input_gradient(dy_frozen[:, row : row + stair.rows], x, block)
                write(dx, stair.spans, part, accumulate=True)
                row += stair.rows
            if live is not None:
                write(dx, live.spans, product.input_gradient(dy_live, x, weight), accumulate=True)
        elif live is not None and staircase.trainable:
            columns = read(weight, positions(live.spans, staircase.trainable))
            write(dx, staircase.trainable, product.input_gradient(dy_live, x, columns))
    return dx, dweight, dbias


def fake_gradients(x: Tensor, weight: Tensor, needed: Needed) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Tensors like those that :func:`gradients` returns."""
    return (
        torch.empty_like(x) if needed.x else None,
        torch.empty_like(weight) if needed.weight else None,
        weight.new_empty(weight.shape[0]) if needed.bias else None,
    )


class StaircaseFunction(torch.autograd.Function):
    """Gradients of a staircase op; subclasses name it and its backward op.

    ``geometry`` is what its product needs to know.
    """

    op: Op
    backward_op: Op

    @classmethod
    def forward(cls, ctx, x, weight, bias, frozen_weight, frozen_bias, staircase, rows, full_input_grad, *geometry):
        ctx.save_for_backward(x, weight, frozen_weight, staircase)
        ctx.full_input_grad, ctx.geometry, ctx.backward_op = full_input_grad, geometry, cls.backward_op
        return cls.op.below_autograd(
            x, weight, bias, frozen_weight, frozen_bias, staircase, rows, full_input_grad, *geometry
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        needed = Needed(*ctx.needs_input_grad[:3])
        found = ctx.backward_op.below_autograd(dy, *ctx.saved_tensors, ctx.full_input_grad, *needed, *ctx.geometry)
        return placed(found, (0, 1, 2), ctx.needs_input_grad)


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


def oracle_input(x: Tensor, staircase: Staircase, full_input_grad: bool) -> Tensor:
    """``x`` [N, K, *] with gradient only where the contract owes one: everywhere, or the trainable columns."""
    if full_input_grad:
        return x
    trainable = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    for start, stop in staircase.trainable:
        trainable[start:stop] = True
    return torch.where(trainable.view(-1, *[1] * (x.dim() - 2)), x, x.detach())


def oracle(
    x: Tensor, weights: Weights, staircase: Staircase, product: Callable[..., Tensor], full_input_grad: bool
) -> Tensor:
    """The paper's dense masked layer, by plain autograd: the definition that the ops are tested against.

    ``product`` is a differentiable function of (x, dense weight, dense bias).
    """
    dense, bias = oracle_rows(weights, staircase)
    y_live = product(oracle_input(x, staircase, full_input_grad), dense, bias)
    if full_input_grad:
        return y_live
    y_frozen = product(x.detach(), dense, bias)
    frozen = torch.arange(staircase.rows, device=x.device) < staircase.frozen_rows
    return torch.where(frozen.view(-1, *[1] * (x.dim() - 2)), y_frozen, y_live)


def oracle_rows(weights: Weights, staircase: Staircase) -> tuple[Tensor, Tensor | None]:
    """Dense weight and bias for the oracle; frozen rows carry no gradient since they are made of buffers."""
    dense = dense_weight(weights.weight, weights.frozen_weight, staircase)
    if weights.bias is None or weights.frozen_bias is None:
        return dense, None
    live = [] if staircase.live is None else [weights.bias]
    return dense, torch.cat([weights.frozen_bias[: staircase.frozen_rows], *live])
