"""Small plain torch modules to convert: a forward given as a function, and the layers it uses."""

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """``run(module, x)`` is the forward; the layers are given by name."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def conv(columns, width, kernel=3, **options):
    """A convolution that keeps an image's size, normalised."""
    return nn.Sequential(nn.Conv2d(columns, width, kernel, padding=kernel // 2, **options), nn.BatchNorm2d(width))


def pooled(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class Halves(nn.Module):
    """A block of ShuffleNet: half of the units passes by, the other half is convolved, and both are shuffled."""

    example = (2, 4, 4)

    def __init__(self, width=4, dropout=0.0):
        super().__init__()
        half = width // 2
        self.stem, self.inner = conv(2, width), conv(half, half, 1)
        self.depthwise, self.drop = conv(half, half, groups=half), nn.Dropout(dropout)
        self.slopes, self.last, self.head = nn.PReLU(width), nn.Linear(width, 5), nn.Linear(5, 3)

    def forward(self, x):
        passed, y = F.relu(self.stem(x)).chunk(2, 1)
        y = F.relu(self.depthwise(F.relu(self.inner(y))))
        x = self.slopes(F.channel_shuffle(torch.cat([passed, self.drop(y)], 1), 2))
        return self.head(F.gelu(self.last(pooled(x))))
