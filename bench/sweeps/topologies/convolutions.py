"""Convolutional blocks, one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, classifier, conv, pooled, topology


@topology("plain convolutions", other=None)
class PlainConvolutions(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(conv(3, 12), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(conv(12, 20), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(320, 24), nn.ReLU(), nn.Dropout(0.2), classifier(24)),
        )


@topology("residual")
class Residual(Images):
    def middle(self):
        self.a, self.b, self.c, self.d = (conv(16, 16) for _ in range(4))

    def run(self, x):
        x = F.relu(x + self.b(F.relu(self.a(x))))
        return F.relu(x + self.d(F.relu(self.c(x))))


@topology("residual, normalised first")
class NormalisedFirst(Images):
    def middle(self):
        self.norm, self.first = nn.BatchNorm2d(16), nn.Conv2d(16, 24, 3, 2, 1, bias=False)
        self.second_norm, self.second = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.shortcut, self.last = nn.Conv2d(16, 24, 1, 2, bias=False), nn.BatchNorm2d(24)

    def out(self):
        return 24

    def run(self, x):
        y = F.relu(self.norm(x))
        x = self.shortcut(y) + self.second(F.relu(self.second_norm(self.first(y))))
        return F.relu(self.last(x))


@topology("bottleneck with a projection")
class Bottleneck(Images):
    def middle(self):
        self.reduce, self.inner, self.expand = conv(16, 8, 1), conv(8, 8, stride=2), conv(8, 32, 1)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), conv(16, 32, 1))

    def out(self):
        return 32

    def run(self, x):
        y = self.expand(F.relu(self.inner(F.relu(self.reduce(x)))))
        y += self.shortcut(x)
        return F.relu_(y)


@topology("grouped convolutions")
class Grouped(Images):
    def middle(self):
        self.reduce, self.grouped, self.expand = conv(16, 24, 1), conv(24, 24, groups=4), conv(24, 16, 1)

    def run(self, x):
        return F.relu(x + self.expand(F.relu(self.grouped(F.relu(self.reduce(x))))))


@topology("depthwise separable")
class DepthwiseSeparable(Images):
    def middle(self):
        self.depthwise, self.pointwise = conv(16, 16, groups=16), conv(16, 28, 1)
        self.strided, self.last = conv(28, 28, 5, groups=28, stride=2), conv(28, 16, 1)

    def run(self, x):
        x = F.relu6(self.pointwise(F.relu6(self.depthwise(x))))
        return F.relu6(self.last(F.relu6(self.strided(x))))


@topology("depthwise with a multiplier")
class Multiplied(Images):
    def middle(self):
        self.more, self.fewer = conv(16, 32, groups=16), conv(32, 16, 1)

    def run(self, x):
        return F.silu(self.fewer(F.silu(self.more(x))) + x)


@topology("cheap features joined to costly ones")
class Cheap(Images):
    def middle(self):
        self.costly, self.cheap = conv(16, 12, 1), conv(12, 12, groups=12)

    def out(self):
        return 20

    def run(self, x):
        x = F.relu(self.costly(x))
        return torch.cat([x, F.relu(self.cheap(x))], 1)[:, :20]


@topology("channels shuffled by views")
class ShuffledByViews(Images):
    def middle(self):
        self.a, self.b = conv(16, 16, 1, groups=4), conv(16, 16, 1, groups=4)

    def run(self, x):
        y = F.relu(self.a(x))
        samples, units, height, width = y.shape
        y = y.view(samples, 4, units // 4, height, width).transpose(1, 2).contiguous()
        return F.relu(x + self.b(y.view(samples, units, height, width)))


@topology("pixels to channels and back")
class PixelShuffles(Images):
    def middle(self):
        self.inner, self.back = conv(64, 64, 1), conv(16, 16)

    def run(self, x):
        y = F.pixel_shuffle(F.relu(self.inner(F.pixel_unshuffle(x, 2))), 2)
        return F.relu(self.back(y))


@topology("blurred before pooling")
class Blurred(Images):
    def middle(self):
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(line, line)[None, None].repeat(16, 1, 1, 1))
        self.after = conv(16, 16)

    def run(self, x):
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, stride=2, groups=16)
        return F.leaky_relu(self.after(x), 0.1)


@topology("upward by transposed convolutions")
class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deeper = conv(3, 12, stride=2), conv(12, 20, stride=2)
        self.up, self.up_norm = nn.ConvTranspose2d(20, 12, 2, 2), nn.BatchNorm2d(12)
        self.last, self.head = nn.ConvTranspose2d(24, 8, 4, 2, 1), classifier(8)

    def forward(self, x):
        x = F.relu(self.down(x))
        y = F.relu(self.up_norm(self.up(F.relu(self.deeper(x)))))
        return self.head(pooled(F.relu(self.last(torch.cat([x, y], 1)))))


@topology("convolutions of videos", (3, 6, 8, 8), (3, 8, 8, 8))
class Videos(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.a_norm = nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12)
        self.space = nn.Conv3d(12, 18, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.time, self.norm = nn.Conv3d(18, 16, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(16)
        self.head = classifier(16)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.a_norm(self.a(x))), 2)
        x = F.relu(self.norm(self.time(self.space(x))))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))
