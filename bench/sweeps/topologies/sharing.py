"""Layers and weights that are used more than once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, Tokens, classifier, conv, pooled, topology


@topology("a block called three times")
class CalledThreeTimes(Images):
    def middle(self):
        self.block = nn.Sequential(conv(16, 16), nn.ReLU(), conv(16, 16))

    def run(self, x):
        for _ in range(3):
            x = F.relu(x + self.block(x))
        return x


@topology("one encoder for two halves of an image", (3, 16, 32), (3, 16, 48))
class TwoHalves(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 16, stride=2), nn.ReLU())
        self.last, self.head = nn.Linear(48, 16), classifier(16)

    def forward(self, x):
        left, right = (pooled(self.encoder(half)) for half in x.chunk(2, -1))
        return self.head(F.relu(self.last(torch.cat([left, right, (left - right).abs()], 1))))


@topology("one convolution at several scales")
class SeveralScales(Images):
    def middle(self):
        self.shared, self.after = conv(16, 16), conv(16, 16, 1)

    def run(self, x):
        fine, coarse = self.shared(x), self.shared(F.avg_pool2d(x, 2))
        return F.relu(self.after(fine + F.interpolate(coarse, x.shape[-2:], mode="nearest")))


@topology("an encoder's weights as a decoder's", (24,), None)
class TiedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.encoder, self.head = nn.Linear(24, 32), nn.Linear(32, 12), classifier(32)

    def forward(self, x):
        x = F.relu(self.first(x))
        code = torch.tanh(self.encoder(x))
        return self.head(x + F.linear(code, self.encoder.weight.t()))


@topology("one parameter in two layers")
class OneParameter(Images):
    def middle(self):
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b.weight = self.a.weight

    def run(self, x):
        return x + F.relu(self.b(F.relu(self.a(x))))


@topology("functions within functions")
class Nested(Images):
    def middle(self):
        self.weight, self.bias = nn.Parameter(torch.randn(20, 16, 3, 3) * 0.1), nn.Parameter(torch.randn(20) * 0.1)
        self.back, self.temperature = nn.Parameter(torch.randn(16, 20) * 0.2), nn.Parameter(torch.tensor(1.5))

    @staticmethod
    def smooth(x, times=2):
        return x if times == 0 else Nested.smooth(F.avg_pool2d(x, 3, 1, 1), times - 1)

    def run(self, x):
        y = F.mish(F.conv2d(self.smooth(x), self.weight, self.bias, padding="same"))
        y = torch.einsum("nchw,oc->nohw", y, self.back)
        return torch.addcmul(x, y, self.temperature.sigmoid())


@topology("layers in a dictionary, in another order")
class InADictionary(Tokens):
    def middle(self):
        sizes = {"down": (32, 16), "norm": None, "up": (16, 32)}
        self.layers = nn.ModuleDict(
            {name: nn.Linear(*size) if size else nn.LayerNorm(16) for name, size in sizes.items()}
        )
        self.drop = nn.Dropout(0.1)

    def run(self, x):
        y = x
        for name in ("norm", "up", "down", "norm"):
            y = self.layers[name](y)
            y = self.drop(F.gelu(y)) if name == "up" else y
        return x + y
