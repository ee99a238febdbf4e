"""Batched augmentation, on the device the images live on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a batch of images, drawn anew for every sample, without a Python loop over samples.

    flip: mirror left-right with probability 1/2. crop_padding: pad by so many black pixels on each side and
    cut a window of the original size at a random place. resized_crop: (low, high), the share of the area
    that a randomly placed window of random aspect ratio (3/4 to 4/3) covers before it is resized to the
    original size (bilinear); it replaces `crop_padding`.

    Works on raw pixels, uint8 or float, before they are normalised. `resized_crop` returns float32 on the
    images' scale; the others keep the dtype.
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise InputError(f"crop_padding is {self.crop_padding}, expected 0 or more pixels.")
        if self.resized_crop is not None:
            low, high = self.resized_crop
            if not 0 < low <= high <= 1:
                raise InputError(
                    f"resized_crop is {self.resized_crop}, expected (low, high) with 0 < low <= high <= 1."
                )
            if self.crop_padding:
                raise InputError("Both crop_padding and resized_crop are given. Choose one: each cuts a window.")

    def __bool__(self) -> bool:
        return self.flip or self.crop_padding > 0 or self.resized_crop is not None

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augment `[B, C, H, W]`; `generator` lives on the images' device. Never writes to `images`."""
        if images.ndim != 4:
            raise InputError(f"Augmentation got shape {list(images.shape)}, expected images [B, C, H, W].")
        if not self:
            return images
        if self.resized_crop is not None:
            return self._resized_crop(images, generator)
        return self._flip_and_crop(images, generator)

    def _mirrored(self, batch: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
        if not self.flip:
            return torch.zeros(batch, dtype=torch.bool, device=device)
        return torch.rand(batch, device=device, generator=generator) < 0.5

    def _flip_and_crop(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        # One gather does both. Measured on [256, 3, 32, 32]: 0.5 ms; windows by unfold 0.9, by indexing 2.6.
        batch, channels, height, width = images.shape
        device, pad = images.device, self.crop_padding
        mirrored = self._mirrored(batch, device, generator)
        offset = torch.randint(0, 2 * pad + 1, (2, batch), device=device, generator=generator)
        source = F.pad(images, (pad, pad, pad, pad)) if pad else images
        rows = torch.arange(height, device=device) + offset[0, :, None]
        columns = torch.arange(width, device=device).expand(batch, width)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + offset[1, :, None]
        index = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).view(batch, 1, height * width)
        window = source.flatten(2).gather(2, index.expand(batch, channels, height * width))
        return window.view(images.shape)

    def _resized_crop(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        batch, _, height, width = images.shape
        device = images.device
        mirrored = self._mirrored(batch, device, generator)
        area, ratio, x, y = torch.rand(4, batch, device=device, generator=generator)
        low, high = self.resized_crop
        area = low + (high - low) * area
        log_ratio = (2 * ratio - 1) * torch.tensor(4 / 3, device=device).log()
        # Sizes are shares of the image, so an aspect ratio is relative to the image's own.
        share_x = (area * log_ratio.exp()).sqrt().clamp(max=1.0)
        share_y = (area / log_ratio.exp()).sqrt().clamp(max=1.0)
        centre_x, centre_y = (2 * x - 1) * (1 - share_x), (2 * y - 1) * (1 - share_y)
        theta = torch.zeros(batch, 2, 3, device=device)
        theta[:, 0, 0] = torch.where(mirrored, -share_x, share_x)
        theta[:, 1, 1] = share_y
        theta[:, 0, 2], theta[:, 1, 2] = centre_x, centre_y
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
