"""Plain modules with attention in windows and in parts of an image, without torchvision.

Conversion knows torchvision's attention modules by their names and attributes. These have both. They compute by this
package's own layers: torchvision's numbers are compared elsewhere, where it is installed.
"""

import torch
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.layers import EideticWindowAttentionV2

WINDOW, SHIFT = (2, 2), (1, 1)


class ShiftedWindowAttention(nn.Module):
    """Swin's, of ``heads`` heads of ``size`` units."""

    def __init__(self, heads=3, size=2, dropout=0.0):
        super().__init__()
        width = heads * size
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.window_size, self.shift_size, self.num_heads = WINDOW, SHIFT, heads
        self.attention_dropout = self.dropout = dropout
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, heads) * 0.3)

    def forward(self, x):
        made = ek.EideticWindowAttention(x.shape[-1], WINDOW, SHIFT, self.num_heads, True, True, self.dropout)
        made.drop.p = self.dropout
        made.adopt_window(self)
        return made.train(self.training)(x)


class ShiftedWindowAttentionV2(ShiftedWindowAttention):
    """Swin's second version, whose position biases a small network computes."""

    def __init__(self, heads=3, size=2, dropout=0.0):
        super().__init__(heads, size, dropout)
        del self.relative_position_bias_table
        sides = torch.arange(-1.0, 2.0)
        self.register_buffer("relative_coords_table", torch.cartesian_prod(sides, sides).view(1, 3, 3, 2))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, heads, bias=False))
        self.logit_scale = nn.Parameter(torch.rand(heads, 1, 1))

    def forward(self, x):
        dtype = self.qkv.weight.dtype
        return EideticWindowAttentionV2(self, dtype=dtype).train(self.training)(x)


class RelativePositionalMultiHeadAttention(nn.Module):
    """MaxViT's, on parts of four tokens."""

    def __init__(self, heads=3, size=2):
        super().__init__()
        width = heads * size
        self.to_qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head_dim, self.max_seq_len = size, 4
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, heads) * 0.3)

    def forward(self, x):
        made = ek.EideticRelativeAttention(x.shape[-1], self.head_dim, 4)
        made.adopt_relative(self)
        return made.train(self.training)(x)


for _kind in (ShiftedWindowAttention, ShiftedWindowAttentionV2):
    _kind.__module__ = "torchvision.models.swin_transformer"
RelativePositionalMultiHeadAttention.__module__ = "torchvision.models.maxvit"


class InWindows(nn.Module):
    """A residual block of window attention on images [N, 2, 3, 5], by a table of position biases or a network."""

    example = (2, 3, 5)

    def __init__(self, heads=3, size=2, second=False, dropout=0.0):
        super().__init__()
        width = heads * size
        self.stem, self.norm, self.head = nn.Conv2d(2, width, 1), nn.LayerNorm(width), nn.Linear(width, 3)
        self.attention = (ShiftedWindowAttentionV2 if second else ShiftedWindowAttention)(heads, size, dropout)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head((x + self.attention(self.norm(x))).mean((1, 2)))


class InParts(nn.Module):
    """A residual block of attention in three parts of four tokens each, [N, 3, 4, 5]."""

    example = (3, 4, 5)

    def __init__(self, heads=3, size=2):
        super().__init__()
        width = heads * size
        self.embed, self.norm, self.head = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 3)
        self.attention = RelativePositionalMultiHeadAttention(heads, size)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.attention(self.norm(x))).mean((1, 2)))
