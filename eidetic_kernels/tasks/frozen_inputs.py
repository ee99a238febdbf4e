"""Inputs of layers in passes that run live units alone: live columns joined with cached frozen ones."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from ..layers import EideticLinear, StaircaseLayer
from ..layout import LIVE, Span, Staircase
from ..memory import canonical, memory_format
from ..ops.linear import Linear
from ..ops.staircase import read


class JoinedInputs:
    """Builds the input of every layer that reads frozen units, and leads its gradient back to the live columns.

    Inputs of linear layers lie in memory that is used again. Fresh memory for every step, and zeros for the gradient of
    columns that have none, would cost as much as the products of few units. There is one buffer for each batch size
    that was met; ``FrozenFeatures.bytes`` does not count them.
    """

    def __init__(self):
        self.buffers: dict[StaircaseLayer, list[_Buffer]] = {}
        self.given: dict[StaircaseLayer, tuple[Tensor, _Buffer]] = {}

    def join(
        self, layer: StaircaseLayer, given: tuple[Tensor, ...], cached: Tensor, rows: Tensor
    ) -> tuple[Tensor, ...]:
        """The arguments for ``layer``: its input's live columns ``given[0]``, joined with ``rows`` of ``cached``.

        Args:
            given: what the layer is called with; its input [N, live columns, *] comes first.
            cached: what the layer reads of frozen units, [samples, columns, *].
            rows: the batch's samples, int64 [N].
        """
        x = given[0]
        if isinstance(layer, EideticLinear):
            values = self._join_columns(layer, x, cached, rows)
            if layer.norm is None:
                return values, *given[1:]
            # The gradient is led back from the product, before the norm. The layer takes the normalised product.
            return values, layer.norm(self.lead_back(layer, (values,), layer.product(values)))

        frozen = cached.index_select(0, rows)
        pieces: list[Tensor] = []
        frozen_at = live_at = 0
        for before, size in _runs(layer.derived(LIVE)):
            pieces += [frozen.narrow(1, frozen_at, before), x.narrow(1, live_at, size)]
            frozen_at, live_at = frozen_at + before, live_at + size
        return torch.cat(pieces, 1).contiguous(memory_format=memory_format(cached)), *given[1:]

    def lead_back(self, layer: StaircaseLayer, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        """``y``, the output for the joined input, with a gradient that reaches the live columns. A forward hook.

        None where nothing was joined for ``layer``.
        """
        if layer not in self.given:
            return None
        x, buffer = self.given.pop(layer)
        trainable = layer.derived(LIVE).trainable
        led = cast(Tensor, _LeadBack.apply(y, x, layer.weight, trainable))  # pyright: ignore[reportUnknownMemberType]
        buffer.user = None if led.grad_fn is None else weakref.ref(led.grad_fn)
        return led

    def _join_columns(self, layer: StaircaseLayer, x: Tensor, cached: Tensor, rows: Tensor) -> Tensor:
        """[N, columns] as ``layer`` reads them, in a buffer and without a gradient."""
        stairs = layer.derived(LIVE)
        buffer = self._buffer(layer, x, cached, stairs.columns)
        frozen_at = live_at = at = 0
        with torch.no_grad():
            for before, size in _runs(stairs):
                if before:
                    into = buffer.values.narrow(1, at, before)
                    torch.index_select(cached.narrow(1, frozen_at, before), 0, rows, out=into)
                buffer.values.narrow(1, at + before, size).copy_(x.narrow(1, live_at, size))
                frozen_at, live_at, at = frozen_at + before, live_at + size, at + before + size
        self.given[layer] = x, buffer
        return buffer.values

    def _buffer(self, layer: StaircaseLayer, x: Tensor, cached: Tensor, columns: int) -> _Buffer:
        """A buffer that no backward pass will read any more."""
        like = _Like(len(x), columns, torch.promote_types(x.dtype, cached.dtype))
        # Buffers of other batch sizes stay: a last, smaller batch must not take memory that a captured graph writes to.
        buffers = [buffer for buffer in self.buffers.get(layer, ()) if buffer.like[1:] == like[1:]]
        for buffer in buffers:
            if buffer.like == like and (buffer.user is None or buffer.user() is None):
                break
        else:
            buffer = _Buffer(like, cached.new_empty(like.samples, like.columns, dtype=like.dtype))
            buffers.append(buffer)
        self.buffers[layer] = buffers
        return buffer


class _Like(NamedTuple):
    """What a buffer must have in common with an input to hold it."""

    samples: int
    columns: int
    dtype: torch.dtype


class _Buffer:
    """``values`` [N, columns], and the node of the autograd graph that will read them."""

    def __init__(self, like: _Like, values: Tensor):
        self.like, self.values = like, values
        self.user: weakref.ref[Node] | None = None


class _LeadBack(torch.autograd.Function):
    """A linear layer's output y, with the gradient of the live columns ``x``, which lie at ``spans`` of its input."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, spans: tuple[Span, ...]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, weight)
        ctx.spans, ctx.dtype = spans, x.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not ctx.needs_input_grad[1]:
            return dy, None, None, None
        x, weight = ctx.saved_tensors
        columns = read(weight, ctx.spans).to(dy.dtype)
        dx = Linear.input_gradient(canonical(dy), x, columns)
        return dy, dx.to(ctx.dtype), None, None


def _runs(stairs: Staircase) -> list[tuple[int, int]]:
    """(frozen columns, live columns after them) for each run of columns that the live rows read."""
    ends = [0, *(stop for _, stop in stairs.trainable)]
    runs = [(start - end, stop - start) for end, (start, stop) in zip(ends, stairs.trainable)]
    return runs if ends[-1] == stairs.columns else [*runs, (stairs.columns - ends[-1], 0)]
