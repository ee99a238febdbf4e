"""Small plain torch modules to convert: a forward given as a function, and the layers it uses."""

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
