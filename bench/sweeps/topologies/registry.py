"""The list of topologies, and what most of them use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..subject import CLASSES

IMAGE, LARGER_IMAGE = (3, 16, 16), (3, 24, 24)


class Topology(NamedTuple):
    """How to build a topology, and what it takes; see :class:`.Subject`."""

    build: Callable[[], nn.Module]
    shape: Sequence[int]
    other: Sequence[int] | None
    vocabulary: int


TOPOLOGIES: dict[str, Topology] = {}


def topology(
    name: str, shape: Sequence[int] = IMAGE, other: Sequence[int] | None = LARGER_IMAGE, vocabulary: int = 0
) -> Callable[[type], type]:
    """Decorates a module of no arguments: it is the topology ``name``."""

    def register(made: type) -> type:
        TOPOLOGIES[name] = Topology(made, shape, other, vocabulary)
        return made

    return register


def conv(columns: int, width: int, kernel: int = 3, **options) -> nn.Sequential:
    """A convolution that keeps an image's size (but for its stride), and its BatchNorm."""
    options.setdefault("padding", kernel // 2)
    return nn.Sequential(nn.Conv2d(columns, width, kernel, bias=False, **options), nn.BatchNorm2d(width))


def pooled(x: Tensor) -> Tensor:
    """Images [N, units, height, width] averaged: [N, units]."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def classifier(width: int) -> nn.Linear:
    return nn.Linear(width, CLASSES)


class Images(nn.Module):
    """A stem, a middle that subclasses make and run, and a head over averages."""

    width = 16

    def __init__(self):
        super().__init__()
        self.stem = conv(3, self.width)
        self.middle()
        self.head = classifier(self.out())

    def out(self) -> int:
        return self.width

    def middle(self) -> None:
        """Make the layers."""

    def run(self, x: Tensor) -> Tensor:
        """The layers' forward."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.run(F.relu(self.stem(x)))))


class Tokens(nn.Module):
    """Patches as tokens, blocks that subclasses make, and a head over the tokens' mean."""

    width, heads = 16, 4

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, self.width, 4, 4)
        self.middle()
        self.norm, self.head = nn.LayerNorm(self.width), classifier(self.width)

    def middle(self) -> None:
        """Make the layers."""

    def run(self, x: Tensor) -> Tensor:
        """The layers' forward, of tokens [N, tokens, units]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))
