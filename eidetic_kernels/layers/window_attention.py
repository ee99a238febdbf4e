"""EideticWindowAttention: attention inside (shifted) windows of an image, whose heads belong to tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import flag, pair
from ..errors import InputError
from .attention import Biases, HeadedAttention, heads_divide
from .dropout import EideticDropout
from .inputs import check_dtype, check_tensor
from .parameter import EideticParameter
from .position_network import EideticPositionNetwork
from .segmented import SegmentedLayer


class ShiftedWindowAttention(Protocol):
    """torchvision's module, by its attributes: torchvision need not be installed."""

    window_size: Sequence[int]
    shift_size: Sequence[int]
    num_heads: int
    attention_dropout: float
    dropout: float
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_bias_table: nn.Parameter


class ShiftedWindowAttentionV2(ShiftedWindowAttention, Protocol):
    """torchvision's module of Swin's second version, likewise."""

    relative_coords_table: Tensor
    cpb_mlp: nn.Sequential
    logit_scale: nn.Parameter


class EideticWindowAttention(HeadedAttention):
    """Drop-in for torchvision's ``ShiftedWindowAttention`` (Swin, Liu et al., 2021): [N, H, W, C] in and out.

    The image is shifted cyclically by ``shift_size`` and cut into windows. A token attends to the tokens of its window
    that were near it before the shift. Windows are made of positions, so units stay apart. Each head has its own column
    of the table of relative position biases, which is pruned and frozen with it.

    Args:
        dim, window_size, shift_size, num_heads, qkv_bias, proj_bias, attention_dropout, dropout: as in torchvision.
        key_bias: whether keys have a bias, where ``qkv_bias`` is set.

    Raises InputError when ``num_heads`` does not divide ``dim``, and for an input that is no image.
    """

    positions: Tensor

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
        dim = heads_divide("dim", dim, "num_heads", num_heads)
        biases = Biases(flag("qkv_bias", qkv_bias), flag("proj_bias", proj_bias), flag("key_bias", key_bias))
        super().__init__(dim, num_heads, dim // num_heads, attention_dropout, biases, device, dtype)
        self.dim = dim
        (height, width), (down, across) = pair("window_size", window_size, 1), pair("shift_size", shift_size)
        self.window_size, self.shift_size = (height, width), (down, across)

        table = torch.empty((2 * height - 1) * (2 * width - 1), num_heads, device=device, dtype=dtype)
        self.position_bias: SegmentedLayer = EideticParameter(nn.init.trunc_normal_(table, std=0.02), 1, self.head_dim)
        self.drop = EideticDropout(dropout)
        self.register_buffer("positions", relative_positions(height, width).to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, self.query.weight)
        check_dtype(self, x, self.query.weight)
        if x.dim() != 4:
            raise InputError(f"{self} expects an image [N, H, W, C], got {list(x.shape)}.")
        n, height, width, _ = x.shape
        windows = Windows.of(height, width, self.window_size, self.shift_size)
        x = windows.cut(x)

        if self.whole() and x.shape[-1] == self.dim:
            q, k, v = F.linear(x, *self.packed()).chunk(3, -1)  # one product, as torchvision has it: its bits
        else:
            q, k, v = (layer(x) for layer in self.projections())
        bias = self.position_bias()[self.positions].movedim(-1, 0)
        mask = windows.mask(x) if windows.shifted else None

        def attend(q: Tensor, k: Tensor, v: Tensor, first: int, live: bool) -> Tensor:
            weights = self.similarity(q, k, first)
            weights = weights + bias[first : first + q.shape[1]]
            if mask is not None:
                weights = (weights.unflatten(0, (n, -1)) + mask.unsqueeze(1)).flatten(0, 1)
            weights = F.dropout(weights.softmax(-1), self.dropout, self.training and live)
            return weights.matmul(v)

        x = self.drop(self.out_proj(self.attended(q, k, v, attend)))
        return windows.joined(x, n)[:, :height, :width].contiguous()

    def similarity(self, q: Tensor, k: Tensor, first: int) -> Tensor:
        """[*, heads, T, T] of heads [*, heads, T, head_dim], ``first`` being the number of the first one."""
        return (q * self.head_dim**-0.5).matmul(k.transpose(-2, -1))

    def adopt_window(self, old: ShiftedWindowAttention) -> None:
        """Take over the parameters of torchvision's module."""
        self.adopt(old.qkv.weight, old.qkv.bias, old.proj)
        self.position_bias = EideticParameter(old.relative_position_bias_table, 1, self.head_dim)

    def extra_repr(self) -> str:
        return f"{self.dim}, window_size={self.window_size}, shift_size={self.shift_size}, num_heads={self.num_heads}"


class EideticWindowAttentionV2(EideticWindowAttention):
    """Drop-in for torchvision's ``ShiftedWindowAttentionV2`` (Liu et al., 2022).

    Similarity is the cosine times a scale that each head has of its own, and a small network makes the position biases
    (:class:`.EideticPositionNetwork`). Keys have no bias: torchvision sets it to zero in each pass.

    Args:
        old: torchvision's module, whose parameters are taken over.
    """

    def __init__(self, old: ShiftedWindowAttentionV2, device=None, dtype=None):
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


class Windows(NamedTuple):
    """How an image [N, H, W, C] is cut into windows: their ``size`` and ``grid``, and the cyclic ``shift`` before it.

    The image is padded at the bottom and on the right to whole windows.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    shift: tuple[int, int]
    padding: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, size: tuple[int, int], shift: tuple[int, int]) -> Windows:
        """The windows of an image of this height and width; one window alone is not shifted."""
        below, right = -height % size[0], -width % size[1]
        padded = height + below, width + right
        down, across = (0 if side >= whole else by for side, whole, by in zip(size, padded, shift))
        return cls(size, (padded[0] // size[0], padded[1] // size[1]), (down, across), (below, right))

    @property
    def shifted(self) -> bool:
        return any(self.shift)

    def cut(self, x: Tensor) -> Tensor:
        """The tokens [N * windows, tokens, C] of an image [N, H, W, C]."""
        (rows, columns), (height, width), (down, across) = self.grid, self.size, self.shift
        x = F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0]))
        if self.shifted:
            x = torch.roll(x, (-down, -across), (1, 2))
        samples = x.shape[0]
        x = x.reshape(samples, rows, height, columns, width, -1).transpose(2, 3)
        return x.reshape(samples * rows * columns, height * width, -1)

    def joined(self, x: Tensor, samples: int) -> Tensor:
        """The padded images [N, H, W, C] of tokens [N * windows, tokens, C], shifted back."""
        (rows, columns), (height, width) = self.grid, self.size
        x = x.view(samples, rows, columns, height, width, -1).transpose(2, 3)
        x = x.reshape(samples, rows * height, columns * width, -1)
        return torch.roll(x, self.shift, (1, 2)) if self.shifted else x

    def mask(self, like: Tensor) -> Tensor:
        """[windows, tokens, tokens]: 0 where two tokens of a window lay side by side before the shift, else -100."""
        (rows, columns), (height, width) = self.grid, self.size
        regions = like.new_zeros(rows * height, columns * width)
        edges = [((0, -side), (-side, -by), (-by, None)) for side, by in zip(self.size, self.shift)]
        number = 0
        for top, bottom in edges[0]:
            for left, right in edges[1]:
                regions[top:bottom, left:right] = number
                number += 1
        regions = regions.view(rows, height, columns, width).transpose(1, 2).reshape(rows * columns, -1)
        return (regions.unsqueeze(1) != regions.unsqueeze(2)).to(like.dtype) * -100.0


def relative_positions(height: int, width: int) -> Tensor:
    """For each pair of a window's tokens, which row of the table of biases is theirs: [tokens, tokens]."""
    rows, columns = torch.arange(height * width) // width, torch.arange(height * width) % width
    down = rows[:, None] - rows[None, :] + height - 1
    across = columns[:, None] - columns[None, :] + width - 1
    return down * (2 * width - 1) + across
