"""One task's attention in plain torch: modules that are traced, so that what is extracted needs this package no more.

Each is given its projections and numbers; ``heads`` may be zero. Heads are computed together, since no head reads
another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..wiring.tracing import OwnThread


class _OneLevel(OwnThread):
    """Traces a module's own forward, and into no other module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def traced(module: nn.Module) -> fx.GraphModule:
    """``module`` as a graph of its parts, which can be pickled without this package."""
    graph = fx.Graph()  # without the tracer, which a pickle would need
    graph.output(graph.graph_copy(_OneLevel().trace(module), {}))
    for node in graph.nodes:
        node.type = None  # an annotation, which cannot be pickled
    return fx.GraphModule(module, graph, type(module).__name__).eval()


class Attention(nn.Module):
    """Abstract. ``query``, ``key`` and ``value`` make ``heads`` heads of ``head_dim`` units, which ``out_proj`` reads.

    Args:
        projections: plain modules named "query", "key", "value" and "out_proj".
        tensors: parameters (floating point) and buffers by name.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    out_proj: nn.Module

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

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads [*, heads, T, head_dim] of each, in memory of their own as in the network."""
        return self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))

    def joined(self, y: Tensor) -> Tensor:
        """The output [*, T, C] for heads [*, heads, T, head_dim]."""
        return self.out_proj(y.transpose(-3, -2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(-3, -2).contiguous()


class MultiheadAttention(Attention):
    """Query, key and value [N, T, C] each (or [T, N, C]) to ([N, T, C], None)."""

    def __init__(self, heads: int, head_dim: int, projections: dict[str, nn.Module], *, batch_first: bool):
        super().__init__(heads, head_dim, projections)
        self.batch_first = batch_first

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1).contiguous() for x in (query, key, value))
        q, k, v = self.projected(query, key, value)
        y = self.joined(F.scaled_dot_product_attention(q, k, v))
        return (y if self.batch_first else y.transpose(0, 1)), None


class RelativeAttention(Attention):
    """[N, G, P, C]: attention in each of G parts, with a bias ``position_bias`` [positions, heads] on the scores."""

    position_bias: Tensor
    positions: Tensor

    def __init__(
        self, heads: int, head_dim: int, projections: dict[str, nn.Module], *, scale: float, **tensors: Tensor
    ):
        super().__init__(heads, head_dim, projections, **tensors)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x, x, x)
        bias = self.position_bias[self.positions].movedim(-1, 0)
        weights = torch.einsum("nghid,nghjd->nghij", q, k * self.scale) + bias
        return self.joined(torch.einsum("nghij,nghjd->nghid", weights.softmax(-1), v))


class WindowAttention(Attention):
    """[N, H, W, C]: attention in windows, which are shifted by ``shift`` where the image is larger than a window."""

    position_bias: Tensor
    positions: Tensor

    def __init__(
        self,
        heads: int,
        head_dim: int,
        projections: dict[str, nn.Module],
        *,
        window: tuple[int, int],
        shift: tuple[int, int],
        **tensors: Tensor,
    ):
        super().__init__(heads, head_dim, projections, **tensors)
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
            mask = self._neighbours(x, padded, (rows, columns), shift)
            weights = (weights.unflatten(0, (n, rows * columns)) + mask.unsqueeze(1)).flatten(0, 1)
        x = self.joined(weights.softmax(-1).matmul(v))

        x = x.reshape(n, rows, columns, down, across, x.shape[2]).transpose(2, 3)
        x = x.reshape(n, padded[0], padded[1], x.shape[5])
        if any(self.shift):
            x = torch.roll(x, (shift[0], shift[1]), (1, 2))
        return x[:, :height, :width].contiguous()

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        """The scores [*, T, T] of queries and keys."""
        return (q * self.head_dim**-0.5).matmul(k.transpose(-2, -1))

    def _neighbours(self, x: Tensor, padded: tuple[int, int], windows: tuple[int, int], shift: Sequence[int]) -> Tensor:
        """[windows, tokens, tokens]: 0 where two tokens of a window lay side by side before the shift, else -100."""
        rows, columns = windows
        sides: list[Tensor] = []
        for whole, side, by in zip(padded, self.window, shift):
            regions = F.pad(x.new_zeros(whole - side), (0, side - by), value=1.0)
            sides.append(F.pad(regions, (0, by), value=2.0))
        down, across = self.window
        regions = sides[0].unsqueeze(1) * 3 + sides[1].unsqueeze(0)
        regions = regions.reshape(rows, down, columns, across).transpose(1, 2).reshape(rows * columns, down * across)
        return (regions.unsqueeze(1) != regions.unsqueeze(2)).type_as(x) * -100.0


class CosineWindowAttention(WindowAttention):
    """Window attention whose scores are cosines, times ``logit_scale`` [heads, 1, 1]."""

    logit_scale: Tensor

    def similarity(self, q: Tensor, k: Tensor) -> Tensor:
        scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
