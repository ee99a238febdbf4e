"""The router's convolutions while they are trained: with BatchNorm, and on images cropped and mirrored at random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels.tasks.router_convolutions import RouterConvolutions, check_images, shapes

from ..data.augment import Augmentation

# Running statistics follow so fast that they are those of the last weights, a few hundred steps being all there are.
MOMENTUM = 0.3


class TrainedConvolutions(nn.Module):
    """:class:`RouterConvolutions` with a BatchNorm after every convolution, and weights to train.

    BatchNorm has a shift but no factor: what it multiplies by is positive, so that it changes places with the maximum
    over 2 x 2 and is folded into the convolution before that (the network of Jordan, 2024, has it so).

    shape: that of an image, [C, H, W]. stages: channels of each stage. augment: whether images are cropped and
    mirrored.

    Raises InputError where ``shape`` is no image's, or too small for so many stages.
    """

    def __init__(self, shape: Sequence[int], stages: Sequence[int], augment: bool):
        super().__init__()
        self.shape, self.channels = tuple(shape), (shape[0], *stages)
        check_images((1, *shape), self.channels)
        pairs = shapes(self.channels)
        # Channels last, as the images: a step of table 7's router took 0.95 s of a CPU instead of 1.29.
        self.weights = nn.ParameterList(
            torch.empty(writes, reads, 3, 3, memory_format=torch.channels_last) for reads, writes in pairs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(writes, momentum=MOMENTUM) for _, writes in pairs)
        for weight, norm in zip(self.weights, self.norms):
            nn.init.kaiming_uniform_(weight, nonlinearity="relu")
            norm.weight.requires_grad_(False)
        # A sixteenth of the image, as is usual where epochs are few: two pixels of CIFAR's 32.
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
        """What is trained beside the weights: the norms' shifts."""
        return [norm.bias for norm in self.norms]

    @torch.no_grad()
    def folded(self) -> RouterConvolutions:
        """The same map as in evaluation, BatchNorm folded into weights and biases."""
        folded = RouterConvolutions(self.channels).to(self.weights[0])
        for number, (weight, norm) in enumerate(zip(self.weights, self.norms)):
            factor = (norm.running_var + norm.eps).rsqrt()
            getattr(folded, f"weight{number}").copy_(weight * factor[:, None, None, None])
            getattr(folded, f"bias{number}").copy_(norm.bias - norm.running_mean * factor)
        return folded
