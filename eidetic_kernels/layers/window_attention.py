"""EideticWindowAttention: attention inside (shifted) windows of an image, whose heads belong to tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .attention import HeadedAttention
from .dropout import EideticDropout
from .parameter import EideticParameter
from .position_network import EideticPositionNetwork
from .segmented import SegmentedLayer


class EideticWindowAttention(HeadedAttention):
    """Stands for torchvision's ``ShiftedWindowAttention`` (Swin, Liu et al., 2021): [N, H, W, C] in and out.

    The image is cut into windows, shifted cyclically by ``shift_size`` beforehand; tokens attend to those of their
    window that were its neighbours before the shift. Windows are made of positions, so no unit notices. Each head has
    its own column of the table of relative position biases, which lives and is frozen with it.

    Args:
        dim, window_size, shift_size, num_heads, qkv_bias, proj_bias, attention_dropout, dropout: as in torchvision.
    """

    def __init__(
        self,
        dim: int,
        window_size: Sequence[int],
        shift_size: Sequence[int],
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        device=None,
        dtype=None,
        *,
        key_bias: bool = True,
    ):
        if dim % num_heads:
            raise InputError(f"dim must be a multiple of num_heads; got {dim} and {num_heads}.")
        factory = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, dim // num_heads, attention_dropout, qkv_bias, proj_bias, key_bias, **factory)
        self.dim, self.window_size, self.shift_size = dim, tuple(window_size), tuple(shift_size)
        height, width = self.window_size
        table = torch.empty((2 * height - 1) * (2 * width - 1), num_heads, **factory)
        self.position_bias: SegmentedLayer = EideticParameter(nn.init.trunc_normal_(table, std=0.02), 1, self.head_dim)
        self.drop = EideticDropout(dropout)
        self.register_buffer("positions", relative_positions(height, width).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise InputError(f"{self} expects an image [N, H, W, C], got {list(x.shape)}.")
        n, height, width, _ = x.shape
        window = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window[1], 0, -height % window[0]))
        padded = x.shape[1:3]
        shift = [0 if side >= whole else by for side, whole, by in zip(window, padded, self.shift_size)]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        grid = padded[0] // window[0], padded[1] // window[1]
        x = x.reshape(n, grid[0], window[0], grid[1], window[1], -1).transpose(2, 3)
        x = x.reshape(n * grid[0] * grid[1], window[0] * window[1], -1)
        if self.whole() and x.shape[-1] == self.dim:
            q, k, v = F.linear(x, *self.packed()).chunk(3, -1)  # one product, as torchvision has it: its bits
        else:
            q, k, v = (layer(x) for layer in self.projections())
        bias = self.position_bias()[self.positions].movedim(-1, 0)
        mask = _neighbours(padded, window, shift, x) if any(shift) else None

        def attend(q: Tensor, k: Tensor, v: Tensor, first: int, live: bool) -> Tensor:
            weights = self.similarity(q, k, first)
            weights = weights + bias[first : first + q.shape[1]]
            if mask is not None:
                weights = (weights.unflatten(0, (n, -1)) + mask.unsqueeze(1)).flatten(0, 1)
            weights = F.dropout(weights.softmax(-1), self.dropout, self.training and live)
            return weights.matmul(v)

        x = self.drop(self.out_proj(self.attended(q, k, v, attend)))
        x = x.view(n, *grid, *window, -1).transpose(2, 3).reshape(n, *padded, -1)
        if any(shift):
            x = torch.roll(x, shift, (1, 2))
        return x[:, :height, :width].contiguous()

    def similarity(self, q: Tensor, k: Tensor, first: int) -> Tensor:
        """[*, heads, T, T] of heads [*, heads, T, head_dim], ``first`` being the number of the first one."""
        return (q * self.head_dim**-0.5).matmul(k.transpose(-2, -1))

    def adopt_window(self, old: nn.Module) -> None:
        """Take over the parameters of torchvision's module."""
        self.adopt(old.qkv.weight, old.qkv.bias, old.proj)
        self.position_bias = EideticParameter(old.relative_position_bias_table, 1, self.head_dim)

    def extra_repr(self) -> str:
        return f"{self.dim}, window_size={self.window_size}, shift_size={self.shift_size}, num_heads={self.num_heads}"


class EideticWindowAttentionV2(EideticWindowAttention):
    """Stands for torchvision's ``ShiftedWindowAttentionV2`` (Liu et al., 2022): similarity is the cosine times a scale
    of each head's own, and a small network makes the position biases (:class:`.EideticPositionNetwork`). Keys have no
    bias: torchvision sets it to zero in each pass.

    Args:
        old: torchvision's module, whose parameters are taken over.
    """

    def __init__(self, old: nn.Module, device=None, dtype=None):
        super().__init__(
            old.qkv.in_features,
            old.window_size,
            old.shift_size,
            old.num_heads,
            old.qkv.bias is not None,
            old.proj.bias is not None,
            old.attention_dropout,
            old.dropout,
            device,
            dtype,
            key_bias=False,
        )
        self.adopt(old.qkv.weight, old.qkv.bias, old.proj)
        coordinates = old.relative_coords_table.detach().clone().flatten(0, 2)
        self.position_bias = EideticPositionNetwork(coordinates, old.cpb_mlp, self.head_dim)
        self.logit_scale = EideticParameter(old.logit_scale, 0, self.head_dim)

    def similarity(self, q: Tensor, k: Tensor, first: int) -> Tensor:
        scale = torch.clamp(self.logit_scale(), max=math.log(100.0)).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale[first : first + q.shape[1]]


def relative_positions(height: int, width: int) -> Tensor:
    """For each pair of a window's tokens, which row of the table of biases is theirs: [tokens, tokens]."""
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    down = rows[:, None] - rows[None, :] + height - 1
    across = columns[:, None] - columns[None, :] + width - 1
    return down * (2 * width - 1) + across


def _neighbours(padded: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor:
    """[windows, tokens, tokens]: 0 where two tokens of a shifted window lay side by side before, else -100."""
    regions = like.new_zeros(*padded)
    edges = [((0, -side), (-side, -by), (-by, None)) for side, by in zip(window, shift)]
    number = 0
    for top, bottom in edges[0]:
        for left, right in edges[1]:
            regions[top:bottom, left:right] = number
            number += 1
    grid = padded[0] // window[0], padded[1] // window[1]
    regions = regions.view(grid[0], window[0], grid[1], window[1]).transpose(1, 2).reshape(grid[0] * grid[1], -1)
    return (regions.unsqueeze(1) != regions.unsqueeze(2)).to(like.dtype) * -100.0
