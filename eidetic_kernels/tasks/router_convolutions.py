"""Convolutions that belong to the router: they tell tasks apart by what no unit of the body holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class RouterConvolutions(nn.Module):
    """From images [N, C, H, W] to columns [N, channels of the last stage], which the router reads beside the features.

    A stage is two 3 x 3 convolutions, each followed by a ReLU, with a 2 x 2 max pooling after the first. The last
    stage's output is max pooled over the whole image. BatchNorm is folded into weights and biases, which are buffers.
    Stages of 32, 128 and 128 channels take 33.9 million multiply-adds for an image of 32 x 32.

    Args:
        channels: the image's, then each stage's: (3, 64, 128, 256) are three stages.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = tuple(channels)
        for number, (reads, writes) in enumerate(shapes(self.channels)):
            self.register_buffer(f"weight{number}", torch.empty(writes, reads, 3, 3))
            self.register_buffer(f"bias{number}", torch.empty(writes))

    def forward(self, images: Tensor) -> Tensor:
        """Columns [N, channels of the last stage]. Raises InputError for what :func:`check_images` refuses."""
        check_images(tuple(images.shape), self.channels)
        # Channels last: measured on a CPU, a convolution of 128 channels takes 0.8 of the time.
        dtype = self.get_buffer("weight0").dtype
        x = images.to(dtype).contiguous(memory_format=torch.channels_last)
        for number in range(len(shapes(self.channels))):
            x = F.conv2d(x, self.get_buffer(f"weight{number}"), self.get_buffer(f"bias{number}"), padding=1)
            x = (x if number % 2 else F.max_pool2d(x, 2)).relu()
        return x.amax((2, 3))


def shapes(channels: Sequence[int]) -> list[tuple[int, int]]:
    """(channels read, channels written) of every convolution in order, two in each stage."""
    return [pair for reads, writes in zip(channels, channels[1:]) for pair in ((reads, writes), (writes, writes))]


def check_images(shape: Sequence[int], channels: Sequence[int]) -> None:
    """Raise InputError unless inputs of ``shape`` are images that convolutions of ``channels`` can read."""
    stages = len(channels) - 1
    smallest = 2**stages
    if len(shape) != 4:
        raise InputError(
            f"the router's convolutions read images [N, C, H, W], got {list(shape)}: give images, or train the router "
            "without convolutions (convolutions=None)."
        )
    if shape[1] != channels[0] or min(shape[2:]) < smallest:
        raise InputError(
            f"the router's convolutions read images [N, {channels[0]}, H, W] of {smallest} x {smallest} pixels or "
            f"more, since each of {stages} stages halves the image; got {list(shape)}. Train the router with fewer "
            "stages, or without (convolutions=None)."
        )
