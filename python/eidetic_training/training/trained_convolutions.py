"""The router's convolutions in training, with BatchNorm and random crops and mirror images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels.tasks.router_convolutions import RouterConvolutions, check_images, shapes

from ..data.augment import Augmentation

# Training takes a few hundred steps only: running statistics must follow quickly to fit the last weights.
MOMENTUM = 0.3


class TrainedConvolutions(nn.Module):
    """:class:`RouterConvolutions` with a BatchNorm after every convolution, and weights to train.

    BatchNorm shifts and has no learned scale. It then multiplies by positive numbers only, so it may change places with
    the maximum over 2 x 2, and folds into the convolution before that (as in the network of Jordan, 2024).

    Args:
        shape: of an image, [C, H, W].
        stages: channels of each stage.
        augment: whether images are cropped and mirrored at random.

    Raises InputError if ``shape`` is no image's, or too small for this number of stages.
    """

    def __init__(self, shape: Sequence[int], stages: Sequence[int], augment: bool):
        super().__init__()
        self.shape, self.channels = tuple(shape), (shape[0], *stages)
        check_images((1, *shape), self.channels)
        pairs = shapes(self.channels)

        # Channels last, as the images: a step of table 7's router took 0.95 s on a CPU instead of 1.29.
        self.weights = nn.ParameterList(
            torch.empty(writes, reads, 3, 3, memory_format=torch.channels_last) for reads, writes in pairs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(writes, momentum=MOMENTUM) for _, writes in pairs)
        for weight, norm in zip(self.weights, self._norms()):
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")
            norm.weight.requires_grad_(False)

        # A sixteenth of the image, as is usual if epochs are few: two of CIFAR's 32 pixels.
        self.augmentation = Augmentation(flip=True, crop_padding=max(1, min(shape[1:]) // 16)) if augment else None

    def forward(self, rows: Tensor) -> Tensor:
        """Columns [N, channels of the last stage] from flattened images [N, C H W]."""
        x = rows.unflatten(1, self.shape)
        if self.augmentation is not None:
            x = self.augmentation(x)
        x = x.contiguous(memory_format=torch.channels_last)
        for number, (weight, norm) in enumerate(zip(self.weights, self.norms)):
            x = F.conv2d(x, weight, padding=1)
            x = norm(x if number % 2 else F.max_pool2d(x, 2)).relu()
        return x.amax((2, 3))

    def shifts(self) -> list[Tensor]:
        """The norms' shifts, which are trained beside the weights."""
        return [norm.bias for norm in self._norms()]

    @torch.no_grad()
    def folded(self) -> RouterConvolutions:
        """What evaluation computes, with BatchNorm folded into weights and biases."""
        folded = RouterConvolutions(self.channels).to(self.weights[0])
        for number, (weight, norm) in enumerate(zip(self.weights, self._norms())):
            mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            factor = (variance + norm.eps).rsqrt()
            folded.get_buffer(f"weight{number}").copy_(weight * factor[:, None, None, None])
            folded.get_buffer(f"bias{number}").copy_(norm.bias - mean * factor)
        return folded

    def _norms(self) -> list[nn.BatchNorm2d]:
        return [cast(nn.BatchNorm2d, norm) for norm in self.norms]
