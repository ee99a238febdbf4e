"""Tokens mixed without attention, and gated MLPs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, Tokens, topology


@topology("tokens mixed by an MLP", other=None)
class MixedByMlp(Tokens):
    def middle(self):
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.units = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def run(self, x):
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.units(self.second(x))


@topology("tokens gate each other", other=None)
class GatedBySpace(Tokens):
    def middle(self):
        self.first, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(24, 16)
        self.gate_norm, self.places = nn.LayerNorm(24), nn.Linear(16, 16)

    def run(self, x):
        u, v = F.gelu(self.up(self.first(x))).chunk(2, -1)
        v = self.places(self.gate_norm(v).mT).mT
        return x + self.down(u * v)


@topology("tokens mixed by pooling")
class MixedByPooling(Images):
    def middle(self):
        self.first, self.second = nn.GroupNorm(1, 16), nn.GroupNorm(1, 16)
        self.up, self.down = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)

    def run(self, x):
        y = self.first(x)
        x = x + F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y
        return x + self.down(F.gelu(self.up(self.second(x))))


@topology("RMSNorm and a gated MLP")
class GatedMlp(Tokens):
    def middle(self):
        self.weight = nn.Parameter(torch.full((16,), 1.1))
        self.gate, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((16, 40), (16, 40), (40, 16)))

    def run(self, x):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


@topology("shifted tokens")
class Shifted(Tokens):
    def middle(self):
        self.mix, self.first = nn.Parameter(torch.rand(16)), nn.LayerNorm(16)
        self.key, self.value = nn.Linear(16, 32), nn.Linear(32, 16)

    def run(self, x):
        y = self.first(x)
        before = F.pad(y, (0, 0, 1, -1))
        y = y * self.mix + before * (1 - self.mix)
        return x + self.value(F.relu(self.key(y)).square())
