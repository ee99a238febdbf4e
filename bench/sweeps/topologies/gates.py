"""Units multiplied by gates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, conv, topology


@topology("squeeze and excite")
class SqueezeExcite(Images):
    def middle(self):
        self.a, self.b = conv(16, 16), conv(16, 16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)

    def run(self, x):
        y = self.b(F.relu(self.a(x)))
        samples, units, _, _ = y.size()
        gates = F.adaptive_avg_pool2d(y, 1).view(samples, units)
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(gates)))).view(samples, units, 1, 1)
        return F.relu(x + y * gates.expand_as(y))


@topology("inverted residual, gated")
class InvertedResidual(Images):
    def middle(self):
        self.expand, self.depthwise, self.project = conv(16, 48, 1), conv(48, 48, groups=48), conv(48, 16, 1)
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 12, 1), nn.SiLU(), nn.Conv2d(12, 48, 1), nn.Hardsigmoid())
        )

    def run(self, x):
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        return x + self.project(self.gate(y) * y)


@topology("gates of channels, then of places")
class ChannelsAndPlaces(Images):
    def middle(self):
        self.shared = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
        self.a, self.places = conv(16, 16), nn.Conv2d(16, 1, 7, padding=3)

    def run(self, x):
        y = self.a(x)
        gates = self.shared(F.adaptive_avg_pool2d(y, 1)) + self.shared(F.adaptive_max_pool2d(y, 1))
        y = y * gates.sigmoid()
        return F.relu(x + y * self.places(y).sigmoid())


@topology("gates of places from means over channels")
class MeansOverChannels(Images):
    def middle(self):
        self.a, self.places = conv(16, 16), nn.Conv2d(2, 1, 7, padding=3)

    def run(self, x):
        y = self.a(x)
        both = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        return F.relu(x + y * self.places(both).sigmoid())


@topology("gates along both axes")
class BothAxes(Images):
    def middle(self):
        self.reduce, self.rows, self.columns = conv(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)

    def run(self, x):
        height, width = x.shape[2:]
        lines = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        rows, columns = torch.split(F.hardswish(self.reduce(lines)), [height, width], 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.permute(0, 1, 3, 2)).sigmoid()


@topology("gated halves of a convolution")
class GatedHalves(Images):
    def middle(self):
        self.a, self.b = conv(16, 32), conv(16, 16)

    def run(self, x):
        return F.relu(x + self.b(F.glu(self.a(x), 1)))


@topology("highway")
class Highway(Images):
    def middle(self):
        self.a, self.gate = conv(16, 16), nn.Conv2d(16, 16, 1)

    def run(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.a(x)) + (1 - gate) * x


@topology("large kernels as gates")
class LargeKernels(Images):
    def middle(self):
        self.before, self.near, self.mix = (
            nn.Conv2d(16, 16, 1),
            nn.Conv2d(16, 16, 5, padding=2, groups=16),
            conv(16, 16, 1),
        )
        self.far = nn.Conv2d(16, 16, 5, padding=6, dilation=3, groups=16)

    def run(self, x):
        y = F.gelu(self.before(x))
        return x + self.mix(self.far(self.near(y))) * y


@topology("products of two projections")
class Products(Images):
    def middle(self):
        self.a, self.b, self.back = conv(16, 24, 1), conv(16, 24, 1), conv(24, 16, 1)
        self.scale = nn.Parameter(torch.full((1, 16, 1, 1), 0.3))

    def run(self, x):
        y = F.relu6(self.a(x)) * self.b(x) + torch.square(self.a(x))
        return x + self.scale * self.back(y)


@topology("slopes learned")
class Slopes(Images):
    def middle(self):
        self.a, self.slopes, self.b, self.slope = conv(16, 16), nn.PReLU(16), conv(16, 16), nn.PReLU()

    def run(self, x):
        return self.slope(x + self.b(self.slopes(self.a(x))))
