"""Attention whose heads belong to tasks: EideticMultiheadAttention, and what it shares with windowed attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..checking import flag, real_number, whole_number
from ..errors import InputError
from ..layout import Segments, Source
from ..memory import canonical
from .inputs import check_dtype, check_tensor
from .linear import EideticLinear
from .scope import Scope
from .succession import joined

# The names of the layers that make queries, keys and values.
PROJECTIONS = ("query", "key", "value")

# Attention within one segment. Given its queries, keys and values [*, heads, T, head_dim], the index of its first head,
# and whether it is live, this returns the heads' outputs, shaped like the queries.
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, int, bool], Tensor]


def by_segment(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, task: int | None, full_input_grad: bool, attend: Attend
) -> Tensor:
    """Attention of heads [*, heads, T, head_dim], segment by segment, whose units are ``segments``.

    Frozen heads are computed in memory of their own, without gradient unless ``full_input_grad``.
    """
    parts = []
    units = segments.present(task) // max(q.shape[-3], 1)  # of each head
    for segment in range((segments.tasks if task is None else task) + 1):
        size, live = segments.size(segment) // max(units, 1), segment == segments.tasks
        if size:
            first = segments.start(segment) // units
            heads = [x.narrow(-3, first, size) for x in (q, k, v)]
            if not live:
                heads = [_apart(x if full_input_grad else x.detach()) for x in heads]
            parts.append(attend(heads[0], heads[1], heads[2], first, live))
    return torch.cat(parts, -3) if len(parts) > 1 else parts[0] if parts else q


def _apart(x: Tensor) -> Tensor:
    return canonical(x.flatten(0, -2)).view(x.shape)


class Biases(NamedTuple):
    """Which of an attention's layers add a bias. ``key`` has one only if ``projections`` have."""

    projections: bool
    output: bool
    key: bool = True


class HeadedAttention(nn.Module):
    """Abstract. ``query``, ``key``, ``value`` [heads * head_dim, columns] make heads, ``out_proj`` reads them.

    A head's query, key and value rows are ``head_dim`` units of one group that live, are pruned and frozen together
    (its grain). Heads never mix: each segment's heads are computed by themselves, so a frozen head's bits depend on
    nothing beside it, and what ``out_proj``'s segments read keeps Resistance.
    """

    def __init__(
        self, columns: int, num_heads: int, head_dim: int, dropout: float, biases: Biases, device=None, dtype=None
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.dropout = num_heads, head_dim, real_number("dropout", dropout, 0.0, 1.0)
        units, bias = num_heads * head_dim, biases.projections
        self.query = EideticLinear(columns, units, bias, device=device, dtype=dtype)
        self.key = EideticLinear(columns, units, bias and biases.key, device=device, dtype=dtype)
        self.value = EideticLinear(columns, units, bias, device=device, dtype=dtype)
        self.out_proj = EideticLinear(units, columns, biases.output, device=device, dtype=dtype)

    def projections(self) -> tuple[EideticLinear, EideticLinear, EideticLinear]:
        return self.query, self.key, self.value

    def adopt(self, weight: Tensor, bias: Tensor | None, out_proj: nn.Linear) -> None:
        """Take over a plain module's packed projections: ``weight`` [3 * units, columns], ``bias`` [3 * units]."""
        for layer, rows in zip(self.projections(), weight.detach().chunk(3)):
            layer.weight = nn.Parameter(rows.clone(), weight.requires_grad)
        if bias is not None:
            for layer, rows in zip(self.projections(), bias.detach().chunk(3)):
                if layer.bias is not None:
                    layer.bias = nn.Parameter(rows.clone(), bias.requires_grad)

        # torch declares these as tensors; they are parameters.
        self.out_proj.weight = cast(nn.Parameter, out_proj.weight)
        if out_proj.bias is not None:
            self.out_proj.bias = cast(nn.Parameter, out_proj.bias)

    def whole(self) -> bool:
        """Whether the plain module's computation may run: nothing was frozen or pruned, no layer inside has hooks."""
        layers = (*self.projections(), self.out_proj)
        segments = self.query.segments
        return (
            segments.tasks == self.out_proj.segments.tasks == 0
            and segments.live == self.num_heads * self.head_dim
            and self.out_proj.segments.live == self.out_proj.out_features
            and self.query.scope.task is None
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        )

    def packed(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the three projections as one, as plain modules keep them; for what is :meth:`whole`."""
        weight = joined([layer.weight for layer in self.projections()])
        if self.query.bias is None:
            return weight, None
        none = torch.zeros_like(self.query.bias)
        return weight, torch.cat([none if layer.bias is None else layer.bias for layer in self.projections()])

    def attended(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """The heads' outputs [*, T, units], of queries [*, T, units] and keys and values [*, S, units]."""
        full_input_grad = self.query.scope.full_input_grad or (not self.query.owned and q.requires_grad)
        q, k, v = (x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim)).transpose(-3, -2) for x in (q, k, v))
        y = by_segment(q, k, v, self.query.segments, self.query.scope.task, full_input_grad, attend)
        return y.transpose(-3, -2).flatten(-2)


def heads_divide(name: str, columns: object, heads_name: str, heads: object) -> int:
    """``columns`` as an int, if it is a positive multiple of ``heads``. Raises InputError."""
    columns, heads = whole_number(name, columns, 1), whole_number(heads_name, heads, 1)
    if columns % heads:
        raise InputError(f"{name} must be a multiple of {heads_name}; got {columns} and {heads}.")
    return columns


class EideticMultiheadAttention(HeadedAttention):
    """Drop-in for :class:`torch.nn.MultiheadAttention`: the same arguments, initialisation and numbers, no masks.

    ``forward(query, key, value)``, [N, T, embed_dim] each (or [T, N, embed_dim] without ``batch_first``), returns
    (output, None). Attention weights are not given: those of several tasks' heads would mean nothing. Dropout of
    attention weights leaves frozen heads alone.

    As long as nothing is frozen or pruned, torch's own function computes it, with torch's bits. That includes its fast
    path for inference, whose bits are not those of its path for training.

    Raises InputError when ``num_heads`` does not divide ``embed_dim``, for a mask, and for inputs of another shape.
    """

    _plain: nn.MultiheadAttention

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        batch_first: bool = False,
        device=None,
        dtype=None,
    ):
        embed_dim = heads_divide("embed_dim", embed_dim, "num_heads", num_heads)
        super().__init__(embed_dim, num_heads, embed_dim // num_heads, dropout, Biases(bias, bias), device, dtype)
        self.embed_dim, self.batch_first = embed_dim, flag("batch_first", batch_first)

        plain = nn.MultiheadAttention(
            embed_dim, num_heads, dropout, bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self.adopt(plain.in_proj_weight, plain.in_proj_bias, plain.out_proj)
        self.__dict__["_plain"] = plain.to("meta")  # not registered: its parameters are not the network's

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        if key_padding_mask is not None or attn_mask is not None or flag("is_causal", is_causal):
            raise InputError("EideticMultiheadAttention takes no masks.")
        self._check(query, key, value)
        flag("need_weights", need_weights)
        if self.whole() and query.shape[-1] == self.embed_dim:
            return self._as_torch(query, key, value, need_weights), None

        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        y = self.out_proj(self.attended(self.query(query), self.key(key), self.value(value), self._attend))
        return (y if self.batch_first else y.transpose(0, 1)), None

    def _check(self, *given: Tensor) -> None:
        """Raise InputError unless queries, keys and values are batches that fit each other and the layer."""
        for x, layer in zip(given, self.projections()):
            check_tensor(self, x, layer.weight)
            check_dtype(self, x, layer.weight)
            if x.dim() != 3:
                raise InputError(f"queries, keys and values are [N, T, C], a batch; got {list(x.shape)}.")
        (query, key, value), samples = given, 0 if self.batch_first else 1
        if key.shape[:2] != value.shape[:2] or query.shape[samples] != key.shape[samples]:
            shapes = ", ".join(str(list(x.shape)) for x in given)
            raise InputError(f"queries, keys and values must be of one batch, a value for each key; got {shapes}.")
        if self.whole() and any(x.shape[2] != self.embed_dim for x in given):
            shapes = ", ".join(str(list(x.shape)) for x in given)
            raise InputError(f"{self} expects {self.embed_dim} columns; got {shapes}.")

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, first: int, live: bool) -> Tensor:
        dropout = self.dropout if live and self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)

    def _as_torch(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool) -> Tensor:
        self._plain.train(self.training)
        weight, bias = self.packed()
        tensors: dict[str, Tensor] = {"in_proj_weight": weight, "out_proj.weight": self.out_proj.weight}
        if bias is not None and self.out_proj.bias is not None:
            tensors |= {"in_proj_bias": bias, "out_proj.bias": self.out_proj.bias}
        return functional_call(self._plain, tensors, (query, key, value), {"need_weights": need_weights})[0]

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


class EideticScaledDotProduct(nn.Module):
    """Stands for a call of ``F.scaled_dot_product_attention`` on heads [N, heads, T, head_dim]: segment by segment.

    ``dropout`` is that of the live heads' attention weights, in training.
    """

    unit_dim = -3

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.sources: tuple[Source, ...] = ()
        self.scope = Scope()

    def wire(self, sources: tuple[Source, ...], scope: Scope) -> None:
        """Learn whose heads these are."""
        self.sources, self.scope = sources, scope

    def forward(self, q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, scale: float | None = None) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor, first: int, live: bool) -> Tensor:
            dropout = self.dropout if live and self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, None, dropout, is_causal, scale=scale)

        (source,) = self.sources
        segments = cast(Segments, source.group)  # heads are made by layers, never by the network's input
        return by_segment(q, k, v, segments, self.scope.task, self.scope.full_input_grad, attend)

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}"
