"""The networks of the published implementation (``eideticnet_training.networks``), with the same layers and paths.

They hold what :func:`.from_eideticnet` reads. For new work see ``eidetic_training.models``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..layers import EideticBatchNorm1d, EideticBatchNorm2d, EideticConv2d, EideticLinear
from ..network import EideticNetwork


class PublishedMLP(EideticNetwork):
    """From [N, ...], flattened: blocks of linear layer, BatchNorm (or a bias), dropout and ReLU, with these widths."""

    def __init__(self, in_features: int, widths: Sequence[int], bn: bool = True, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.Sequential()
        for width in widths:
            layers = [EideticLinear(in_features, width, bias=not bn)]
            layers += [EideticBatchNorm1d(width) if bn else nn.Identity(), nn.Dropout(dropout), nn.ReLU()]
            self.blocks.append(nn.Sequential(*layers))
            in_features = width

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x.flatten(1))


class PublishedConvNet(EideticNetwork):
    """From [N, C, H, W]: blocks of 3x3 convolution, BatchNorm (or a bias), dropout and ReLU.

    ``pooled`` holds the numbers of the blocks that end by halving the image.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], pooled: Sequence[int], bn: bool = True, dropout: float = 0.0
    ):
        super().__init__()
        self.blocks = nn.Sequential()
        for number, width in enumerate(widths):
            layers = [EideticConv2d(in_channels, width, 3, padding=1, bias=not bn)]
            layers += [EideticBatchNorm2d(width) if bn else nn.Identity(), nn.Dropout(dropout), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in pooled else []
            self.blocks.append(nn.Sequential(*layers))
            in_channels = width
        self.formatter = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        return self.formatter(self.blocks(x))


class PublishedResNet(EideticNetwork):
    """From [N, C, H, W]: blocks of two convolutions, to which a 1x1 convolution of the block's input is added.

    Args:
        widths: (inner, outer) channels of each block.
        pooled: the numbers of the blocks that halve the image.
        stem: the kernel of the first convolution.
        bn: whether convolutions are followed by BatchNorm; otherwise they have a bias.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[Sequence[int]], pooled: Sequence[int], stem: int = 3, bn: bool = True
    ):
        super().__init__()
        self.blocks, self.res = nn.ModuleList(), nn.ModuleList()
        for number, (inner, outer) in enumerate(widths):
            kernel = 3 if number else stem
            layers = [
                EideticConv2d(in_channels, inner, kernel, padding=kernel // 2, bias=not bn),
                EideticBatchNorm2d(inner) if bn else nn.Identity(),
                nn.ReLU(),
                EideticConv2d(inner, outer, 3, padding=1, bias=not bn),
                EideticBatchNorm2d(outer) if bn else nn.Identity(),
            ]
            layers += [nn.MaxPool2d(2)] if number in pooled else []
            self.blocks.append(nn.Sequential(*layers))
            self.res.append(EideticConv2d(in_channels, outer, 1, stride=1 + (number in pooled), bias=False))
            in_channels = outer
        self.formatter = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        for block, around in zip(self.blocks, self.res):
            x = block(x) + around(x)
        return self.formatter(x)
