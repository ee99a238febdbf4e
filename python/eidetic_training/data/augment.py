"""Random changes of whole batches of images, on the images' device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels.checking import flag, instance, real_number, require, shown, whole_number
from eidetic_kernels.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a batch of images, drawn anew for every sample, without a Python loop over samples.

    It works on raw pixels, uint8 or floating point, before they are normalised. ``resized_crop`` returns float32 on the
    images' scale; the others keep the dtype.

    Args:
        flip: mirror left-right with probability 1/2.
        crop_padding: add this many black pixels on each side, then cut a window of the original size at a random place.
        resized_crop: (low, high). A window at a random place, of a random aspect ratio from 3/4 to 4/3, covers between
            ``low`` and ``high`` of the area. It is resized to the original size (bilinear). This replaces
            ``crop_padding``.

    Raises InputError for a value out of its range, and for ``crop_padding`` beside ``resized_crop``.
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        flag("flip", self.flip)
        whole_number("crop_padding", self.crop_padding, unit="pixels")
        if self.resized_crop is not None:
            _check_areas(self.resized_crop)
            if self.crop_padding:
                raise InputError("both crop_padding and resized_crop are given: choose one, each cuts a window.")

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return self.flip or self.crop_padding > 0 or self.resized_crop is not None

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Changed images [B, C, H, W]; the given ones are never written to.

        ``generator`` is on the images' device; None draws from torch's own. Raises InputError for another shape.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise InputError(f"augmentation works on images [B, C, H, W]; got {shown(images)}.")
        if generator is not None:
            instance("generator", generator, torch.Generator, "a torch.Generator on the images' device")
        if not self:
            return images
        if self.resized_crop is not None:
            return self._resized_crop(images, self.resized_crop, generator)
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

    def _resized_crop(self, images: Tensor, areas: tuple[float, float], generator: torch.Generator | None) -> Tensor:
        batch, device = len(images), images.device
        mirrored = self._mirrored(batch, device, generator)
        area, ratio, x, y = torch.rand(4, batch, device=device, generator=generator)
        low, high = areas
        area = low + (high - low) * area
        log_ratio = (2 * ratio - 1) * torch.tensor(4 / 3, device=device).log()
        # Sizes are fractions of the image, so an aspect ratio is relative to the image's own.
        size_x = (area * log_ratio.exp()).sqrt().clamp(max=1.0)
        size_y = (area / log_ratio.exp()).sqrt().clamp(max=1.0)
        centre_x, centre_y = (2 * x - 1) * (1 - size_x), (2 * y - 1) * (1 - size_y)

        theta = torch.zeros(batch, 2, 3, device=device)
        theta[:, 0, 0] = torch.where(mirrored, -size_x, size_x)
        theta[:, 1, 1] = size_y
        theta[:, 0, 2], theta[:, 1, 2] = centre_x, centre_y
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _check_areas(given: object) -> None:
    """Raise InputError unless ``given`` is (low, high), each a share of the area."""
    try:
        low, high = (real_number("", each, above=0.0, most=1.0) for each in given)  # pyright: ignore[reportGeneralTypeIssues]
        right = low <= high
    except (TypeError, ValueError):
        right = False
    require(right, "resized_crop must be (low, high) with 0 < low <= high <= 1", given)
