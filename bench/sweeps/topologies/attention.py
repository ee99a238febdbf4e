"""Attention in several spellings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Tokens, topology


@topology("attention by torch's module")
class ByModule(Tokens):
    def middle(self):
        self.first = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def run(self, x):
        y = self.first(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


@topology("encoder layers, a class token, positions", other=None)
class EncoderLayers(Tokens):
    def middle(self):
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def run(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.encoder(x)[:, :1]


@topology("attention by products and softmax")
class ByHand(Tokens):
    def middle(self):
        self.first, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def run(self, x):
        samples, tokens, units = x.shape
        parts = self.qkv(self.first(x)).reshape(samples, tokens, 3, 4, units // 4).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(units // 4)).softmax(-1)
        return x + self.project((weights @ v).transpose(1, 2).reshape(samples, tokens, units))


@topology("attention by einsum")
class ByEinsum(Tokens):
    def middle(self):
        self.first = nn.LayerNorm(16)
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16, bias=False) for _ in range(4))

    def run(self, x):
        y = self.first(x)
        q, k, v = (layer(y).unflatten(-1, (4, 4)) for layer in (self.q, self.k, self.v))
        weights = torch.einsum("nqhd,nkhd->nhqk", q, k).mul(0.5).softmax(-1)
        return x + self.project(torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2))


@topology("attention by chunks and torch's function")
class ByFunction(Tokens):
    def middle(self):
        self.drop_rate = 0.1
        self.first, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def run(self, x):
        q, k, v = (each.view(x.shape[0], -1, 4, 4).transpose(1, 2) for each in self.qkv(self.first(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop_rate if self.training else 0.0)
        return x + self.project(y.transpose(1, 2).flatten(2))


@topology("queries and keys normalised")
class Normalised(Tokens):
    def middle(self):
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.scale = nn.Parameter(torch.full((4, 1, 1), 2.0))

    def run(self, x):
        q, k, v = (layer(x).view(x.shape[0], -1, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.scale
        return x + self.project((weights.softmax(-1) @ v).transpose(1, 2).flatten(2))


@topology("few keys for many queries")
class FewKeys(Tokens):
    def middle(self):
        self.first = nn.RMSNorm(16)
        self.q, self.kv, self.project = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def run(self, x):
        y = self.first(x)
        q = self.q(y).view(x.shape[0], -1, 4, 4).transpose(1, 2)
        k, v = self.kv(y).view(x.shape[0], -1, 2, 2, 4).permute(2, 0, 3, 1, 4)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.project(y.transpose(1, 2).reshape(x.shape[0], -1, 16))


@topology("rotated positions")
class Rotated(Tokens):
    def middle(self):
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))
        self.register_buffer("frequencies", 10.0 ** -torch.arange(2), persistent=False)

    def rotated(self, x):
        angles = torch.arange(x.shape[2], device=x.device)[:, None] * self.frequencies
        cosines, sines = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat([-second, first], -1) * sines

    def run(self, x):
        q, k, v = (layer(x).view(x.shape[0], -1, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v)
        return x + self.project(y.transpose(1, 2).flatten(2))


@topology("windows, rolled, with relative positions", (3, 32, 32), None)
class Windows(Tokens):
    def middle(self):
        self.first, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.randn(49, 4) * 0.1)
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        apart = places[:, None] - places[None] + 3
        self.register_buffer("index", apart[..., 0] * 7 + apart[..., 1])

    def attend(self, x):
        q, k, v = self.qkv(x).view(-1, 16, 3, 4, 4).permute(2, 0, 3, 1, 4)
        weights = q @ k.transpose(2, 3) * 0.5 + self.table[self.index].permute(2, 0, 1)
        return self.project((weights.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, 16))

    def run(self, x):
        samples = x.shape[0]
        y = torch.roll(self.first(x).view(samples, 8, 8, 16), (-2, -2), (1, 2))
        y = y.view(samples, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16)
        y = self.attend(y).view(samples, 2, 2, 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(samples, 8, 8, 16)
        return x + torch.roll(y, (2, 2), (1, 2)).view(samples, 64, 16)


@topology("linear attention")
class LinearAttention(Tokens):
    def middle(self):
        self.first, self.qkv, self.project = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def run(self, x):
        q, k, v = self.qkv(self.first(x)).view(x.shape[0], -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        made = q @ (k.transpose(-2, -1) @ v)
        made = made / (q @ k.sum(2).unsqueeze(-1) + 1e-6)
        return x + self.project(made.transpose(1, 2).flatten(2))


@topology("learned queries read the tokens")
class LearnedQueries(Tokens):
    def middle(self):
        self.queries = nn.Parameter(torch.randn(3, 16))
        self.q, self.k, self.v, self.project = (nn.Linear(16, 16) for _ in range(4))

    def run(self, x):
        q = self.q(self.queries).view(1, 3, 4, 4).transpose(1, 2).expand(len(x), -1, -1, -1)
        k, v = (layer(x).view(len(x), -1, 4, 4).transpose(1, 2) for layer in (self.k, self.v))
        return self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@topology("tokens averaged by a learned score")
class Scored(Tokens):
    def middle(self):
        self.hidden, self.score = nn.Linear(16, 24), nn.Linear(24, 1)

    def run(self, x):
        weights = self.score(torch.tanh(self.hidden(x))).softmax(1)
        return (weights * x).sum(1, keepdim=True)


@topology("attention and MLP side by side")
class SideBySide(Tokens):
    def middle(self):
        self.first, self.all, self.project = nn.LayerNorm(16), nn.Linear(16, 48 + 32), nn.Linear(16 + 32, 16)

    def run(self, x):
        q, k, v, hidden = self.all(self.first(x)).split((16, 16, 16, 32), -1)
        q, k, v = (each.view(x.shape[0], -1, 4, 4).transpose(1, 2) for each in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.project(torch.cat([y, F.gelu(hidden)], -1))
