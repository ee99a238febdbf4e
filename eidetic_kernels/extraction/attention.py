"""Attention of one task in plain torch: modules that are traced, so that what is extracted needs this package no more.

Each is given its projections and numbers; ``heads`` may be zero. Heads are computed together: no head reads another.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class _Whole(fx.Tracer):
    """Looks into no module but the one that is traced."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return True


def traced(module: nn.Module) -> fx.GraphModule:
    """``module`` as a graph of its parts."""
    graph = fx.Graph()  # without the tracer, which a pickle would need
    graph.output(graph.graph_copy(_Whole().trace(module), {}))
    for node in graph.nodes:
        node.type = None  # an annotation, which cannot be pickled
    return fx.GraphModule(module, graph, type(module).__name__).eval()


class Attention(nn.Module):
    """``query``, ``key`` and ``value`` make ``heads`` heads of ``head_dim`` units, which ``out_proj`` reads."""

    def __init__(self, heads: int, head_dim: int, projections: dict[str, nn.Module], **tensors: Tensor):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        for name, module in projections.items():
            self.add_module(name, module)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self.register_parameter(name, nn.Parameter(tensor.detach().clone()))
            else:
                self.register_buffer(name, tensor)

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Heads [*, heads, T, head_dim], in memory of their own as in the network."""
        made = self.query(query), self.key(key), self.value(value)
        return [x.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2).contiguous() for x in made]

    def joined(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(-3, -2).flatten(-2))


class MultiheadAttention(Attention):
    """[N, T, C] each (or [T, N, C]) to ([N, T, C], None)."""

    def __init__(self, *given, batch_first: bool):
        super().__init__(*given)
        self.batch_first = batch_first

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1).contiguous() for x in (query, key, value))
        y = self.joined(F.scaled_dot_product_attention(*self.projected(query, key, value)))
        return (y if self.batch_first else y.transpose(0, 1)), None


class RelativeAttention(Attention):
    """[N, G, P, C]: attention in each of G parts, with a bias ``position_bias`` [positions, heads] a head."""

    def __init__(self, *given, scale: float, **tensors):
        super().__init__(*given, **tensors)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x, x, x)
        bias = self.position_bias[self.positions].movedim(-1, 0)
        weights = torch.einsum("nghid,nghjd->nghij", q, k * self.scale) + bias
        return self.joined(torch.einsum("nghij,nghjd->nghid", weights.softmax(-1), v))


class WindowAttention(Attention):
    """[N, H, W, C]: attention in windows, shifted by ``shift`` where the image is larger than a window."""

    def __init__(self, *given, window: tuple[int, int], shift: tuple[int, int], **tensors):
        super().__init__(*given, **tensors)
        self.window, self.shift = window, shift

    def forward(self, x: Tensor) -> Tensor:
        (down, across), n, height, width = self.window, x.shape[0], x.shape[1], x.shape[2]
        x = F.pad(x, (0, 0, 0, -width % across, 0, -height % down))
        padded = x.shape[1], x.shape[2]
        shift = [by * (side > least) for by, side, least in zip(self.shift, padded, self.window)]  # a bool is 0 or 1
        if any(self.shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        rows, columns = padded[0] // down, padded[1] // across
        x = x.reshape(n, rows, down, columns, across, x.shape[3]).transpose(2, 3)
        x = x.reshape(n * rows * columns, down * across, x.shape[5])
        q, k, v = self.projected(x, x, x)
        weights = self.similarity(q, k) + self.position_bias[self.positions].movedim(-1, 0)
        if any(self.shift):
            mask = self._neighbours(x, padded, rows, columns, shift)
            weights = (weights.unflatten(0, (n, rows * columns)) + mask.unsqueeze(1)).flatten(0, 1)
        x = self.joined(weights.softmax(-1).matmul(v))
        x = x.reshape(n, rows, columns, down, across, x.shape[2]).transpose(2, 3)
        x = x.reshape(n, padded[0], padded[1], x.shape[5])
        if any(self.shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.head_dim**-0.5).matmul(k.transpose(-2, -1))

    def _neighbours(self, x: Tensor, padded, rows, columns, shift) -> Tensor:
        """[windows, tokens, tokens]: 0 where two tokens of a window lay side by side before the shift, else -100."""
        sides = []
        for whole, side, by in zip(padded, self.window, shift):
            regions = F.pad(x.new_zeros(whole - side), (0, side - by), value=1.0)
            sides.append(F.pad(regions, (0, by), value=2.0))
        down, across = self.window
        regions = sides[0].unsqueeze(1) * 3 + sides[1].unsqueeze(0)
        regions = regions.reshape(rows, down, columns, across).transpose(1, 2).reshape(rows * columns, down * across)
        return (regions.unsqueeze(1) != regions.unsqueeze(2)).type_as(x) * -100.0


class CosineWindowAttention(WindowAttention):
    """The same by cosines, times ``logit_scale`` [heads, 1, 1]."""

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
