"""Normalisations, by modules and by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, classifier, conv, topology


@topology("channels last, LayerNorm, layer scale")
class ChannelsLast(Images):
    def middle(self):
        self.depthwise, self.norm = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.LayerNorm(16)
        self.up, self.down, self.scale = nn.Linear(16, 32), nn.Linear(32, 16), nn.Parameter(torch.full((16,), 0.1))

    def run(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


@topology("global response normalisation")
class GlobalResponse(Images):
    def middle(self):
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.gamma, self.beta = nn.Parameter(torch.full((32,), 0.2)), nn.Parameter(torch.full((32,), 0.1))

    def run(self, x):
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        norm = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        y = y + self.gamma * (y * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.beta
        return x + self.down(y).permute(0, 3, 1, 2)


@topology("LayerNorm of channels by hand")
class LayerNormByHand(Images):
    def middle(self):
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 1)
        self.weight, self.bias = nn.Parameter(torch.full((24,), 1.2)), nn.Parameter(torch.full((24,), 0.1))

    def run(self, x):
        y = self.a(x)
        mean = y.mean(1, keepdim=True)
        variance = (y - mean).pow(2).mean(1, keepdim=True)
        y = (y - mean) / torch.sqrt(variance + 1e-6)
        return x + self.b(F.gelu(self.weight[:, None, None] * y + self.bias[:, None, None]))


@topology("GroupNorm and InstanceNorm")
class GroupsAndInstances(Images):
    def middle(self):
        self.a, self.norm = nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(4, 24)
        self.b, self.instance = nn.Conv2d(24, 16, 3, padding=1), nn.InstanceNorm2d(16, affine=True)

    def run(self, x):
        return F.relu(x + self.instance(self.b(F.silu(self.norm(self.a(x))))))


@topology("weights standardised")
class Standardised(Images):
    def middle(self):
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)

    @staticmethod
    def standard(layer, x):
        mean = layer.weight.mean((1, 2, 3), keepdim=True)
        deviation = layer.weight.std((1, 2, 3), keepdim=True, unbiased=False) + 1e-5
        return F.conv2d(x, (layer.weight - mean) / deviation, layer.bias, padding=1)

    def run(self, x):
        return x + 0.2 * self.standard(self.b, F.relu(self.standard(self.a, x)))


@topology("weights scaled by gains")
class Gains(Images):
    def middle(self):
        self.a, self.gain = nn.Conv2d(16, 16, 3, padding=1), nn.Parameter(torch.full((16, 1, 1, 1), 0.9))
        self.strength = nn.Parameter(torch.tensor(0.4))

    def run(self, x):
        y = F.conv2d(F.gelu(x) * 1.7, self.a.weight * self.gain, self.a.bias, padding=1)
        return x + y * self.strength


@topology("root mean squares of channels")
class RootMeanSquares(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = conv(3, 16), nn.RMSNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), classifier(16)

    def forward(self, x):
        x = F.relu(self.stem(x)).flatten(2).mean(2)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
