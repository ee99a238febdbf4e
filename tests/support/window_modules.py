"""Plain modules with attention in windows and in parts of an image, as torchvision's are, without torchvision."""

import torch
import torch.nn.functional as F
from torch import nn

WINDOW, SHIFT = (2, 2), (1, 1)


def _positions(rows, columns):
    """For each pair of places in a window the row of the table of biases, [places * places]."""
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    apart = at[:, None] - at[None] + torch.tensor([rows - 1, columns - 1])
    return (apart[..., 0] * (2 * columns - 1) + apart[..., 1]).flatten()


def _in_windows(x):
    """[N, H, W, C] as [N * windows, places, C]."""
    n, h, w, c = x.shape
    x = x.view(n, h // WINDOW[0], WINDOW[0], w // WINDOW[1], WINDOW[1], c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW[0] * WINDOW[1], c)


def _as_image(x, n, h, w):
    x = x.view(n, h // WINDOW[0], w // WINDOW[1], WINDOW[0], WINDOW[1], x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, x.shape[-1])


def _mask(h, w):
    """What keeps places apart that were not neighbours before the image was shifted, [windows, places, places]."""
    parts = torch.zeros(1, h, w, 1)
    for number, rows in enumerate((slice(0, -WINDOW[0]), slice(-WINDOW[0], -SHIFT[0]), slice(-SHIFT[0], None))):
        for other, columns in enumerate((slice(0, -WINDOW[1]), slice(-WINDOW[1], -SHIFT[1]), slice(-SHIFT[1], None))):
            parts[:, rows, columns] = 3 * number + other
    parts = _in_windows(parts)[..., 0]
    return torch.where(parts[:, None] == parts[:, :, None], 0.0, -100.0)


class ShiftedWindowAttention(nn.Module):
    """Swin's, of ``heads`` heads of ``size`` units."""

    def __init__(self, heads=3, size=2, dropout=0.0):
        super().__init__()
        width = heads * size
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.dropout = heads, dropout
        self.register_buffer("positions", _positions(*WINDOW))
        self.table(heads)

    def table(self, heads):
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, heads) * 0.3)

    def scores(self, q, k):
        places = WINDOW[0] * WINDOW[1]
        bias = self.relative_position_bias_table[self.positions].view(places, places, -1).permute(2, 0, 1)
        return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias

    def forward(self, x):
        n, h, w, c = x.shape
        x = F.pad(x, (0, 0, 0, -w % WINDOW[1], 0, -h % WINDOW[0]))
        rows, columns = x.shape[1:3]
        x = _in_windows(torch.roll(x, (-SHIFT[0], -SHIFT[1]), (1, 2)))
        q, k, v = self.qkv(x).view(x.shape[0], x.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        scores = self.scores(q, k)
        mask = _mask(rows, columns).to(x.dtype)
        scores = scores.view(n, len(mask), *scores.shape[1:]) + mask[None, :, None]
        weights = F.dropout(scores.flatten(0, 1).softmax(-1), self.dropout, self.training)
        x = self.proj((weights @ v).transpose(1, 2).reshape(x.shape))
        x = F.dropout(x, self.dropout, self.training)
        x = torch.roll(_as_image(x, n, rows, columns), SHIFT, (1, 2))
        return x[:, :h, :w].contiguous()


class ShiftedWindowAttentionV2(ShiftedWindowAttention):
    """Swin's second version: cosines, and position biases that a small network computes."""

    def table(self, heads):
        sides = torch.arange(-1.0, 2.0)
        self.register_buffer("relative_coords_table", torch.cartesian_prod(sides, sides).view(1, 3, 3, 2))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, heads, bias=False))
        self.logit_scale = nn.Parameter(torch.rand(heads, 1, 1))

    def scores(self, q, k):
        places = WINDOW[0] * WINDOW[1]
        table = self.cpb_mlp(self.relative_coords_table).view(9, -1)
        bias = 16 * torch.sigmoid(table[self.positions].view(places, places, -1).permute(2, 0, 1))
        scale = self.logit_scale.clamp(max=4.6052).exp()
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale + bias


class RelativePositionalMultiHeadAttention(nn.Module):
    """MaxViT's, on parts of four tokens."""

    def __init__(self, heads=3, size=2):
        super().__init__()
        width = heads * size
        self.to_qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, heads) * 0.3)
        self.register_buffer("positions", _positions(2, 2))

    def forward(self, x):
        n, parts, places, width = x.shape
        pieces = (each.reshape(n, parts, places, self.heads, -1) for each in self.to_qkv(x).chunk(3, -1))
        q, k, v = (each.permute(0, 1, 3, 2, 4) for each in pieces)
        bias = self.relative_position_bias_table[self.positions].view(places, places, -1).permute(2, 0, 1)
        scores = torch.einsum("ngiqd,ngikd->ngiqk", q, k * width**-0.5) + bias
        return self.merge((scores.softmax(-1) @ v).permute(0, 1, 3, 2, 4).reshape(n, parts, places, width))


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
