"""A whole labelled image set as two tensors, and the normalisation of its pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from eidetic_kernels.checking import a_device, instance, real_number, require, shown, whole_number
from eidetic_kernels.errors import InputError


def check_labels(labels: Tensor, rows: int, classes: int | None, what: str = "labels") -> None:
    """Raise InputError unless ``labels`` is int64 [rows], one row or more, with values in 0..classes-1.

    Args:
        classes: None where it is unknown.
        what: how messages name the labels.
    """
    if not isinstance(labels, Tensor) or labels.is_meta:
        raise InputError(
            f"{what} must be a torch.Tensor that holds numbers; got {shown(labels)}. Convert with torch.as_tensor(...)."
        )
    if labels.dtype != torch.int64:
        raise InputError(f"{what} have dtype {labels.dtype}, expected torch.int64. Convert with .long().")
    if labels.ndim != 1:
        raise InputError(
            f"{what} have shape {list(labels.shape)}, expected one class index for each row: [{rows}]. "
            "One-hot labels convert with .argmax(1)."
        )
    if labels.shape[0] != rows:
        raise InputError(
            f"{rows} images but {labels.shape[0]} {what}: expected one label for each image. "
            "Check that both come from the same split."
        )
    if rows == 0:
        raise InputError("the set is empty (0 rows), expected at least one. Check the split, folder or filter.")

    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        expected = "values of at least 0" if classes is None else f"values in 0..{classes - 1}"
        raise InputError(
            f"{what} range over {low}..{high}, expected {expected}. "
            "Remap labels to 0..n-1 for each task, or give the right number of classes."
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A whole labelled set of images as tensors.

    Args:
        images: [N, C, H, W], uint8 (0..255) or floating point.
        labels: int64 [N] in 0..classes-1, on the images' device.

    Raises InputError for anything else, and for an empty set.
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        images = self.images
        if not isinstance(images, Tensor):
            raise InputError(f"images must be a torch.Tensor; got {shown(images)}. Convert with torch.as_tensor(...).")
        if images.ndim != 4:
            raise InputError(
                f"images have shape {list(images.shape)}, expected [N, C, H, W]. "
                "Add a channel dimension to grey images with .unsqueeze(1)."
            )
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(
                f"images have dtype {images.dtype}, expected torch.uint8 (0..255) or a floating point type. "
                "Convert with .to(torch.uint8) or .float()."
            )

        whole_number("classes", self.classes, 1, 2**63)  # labels may be any
        check_labels(self.labels, images.shape[0], self.classes)
        if 0 in images.shape:
            raise InputError(f"images have shape {list(images.shape)}, expected no dimension of size 0.")
        if self.labels.device != images.device:
            raise InputError(
                f"images are on {images.device} but labels on {self.labels.device}. Move both to one device."
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return cast(tuple[int, int, int], tuple(self.images.shape[1:]))

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on ``device``; the set itself if it is there already."""
        device = a_device(device)
        if self.images.device == device:
            return self
        return ImageSet(self.images.to(device), self.labels.to(device), self.classes)

    def __repr__(self) -> str:
        return (
            f"ImageSet({len(self):,} x {list(self.shape)} {str(self.images.dtype).removeprefix('torch.')}, "
            f"{self.classes} classes, {self.images.device})"
        )


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each channel, of uint8 pixels on the scale 0..1 and of others on their own scale.

    They are plain numbers, so that a run folder or a checkpoint can keep them: images seen later must be normalised
    with the numbers that the network was trained with.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, least in (("mean", None), ("std", 0.0)):
            values = instance(name, getattr(self, name), (tuple, list), "a tuple of numbers, one for each channel")
            numbers = tuple(real_number(f"{name} of a channel", each, above=least) for each in values)
            object.__setattr__(self, name, numbers)
        require(len(self.mean) == len(self.std), f"std must be {len(self.mean)} numbers, as mean is", self.std)

    @classmethod
    def of(cls, images: Tensor) -> Normalisation:
        """Measured on images [N, C, ...]: exactly for uint8 (by counting values), in float64 otherwise.

        A constant channel gets the deviation 1, so that it is centred and not blown up. Raises InputError for what are
        no images, or images of NaN or infinity.
        """
        held = isinstance(images, Tensor) and images.layout == torch.strided and not images.is_meta
        if not held or images.ndim < 2 or not images.numel():
            raise InputError(f"images must be a dense tensor [N, C, ...] that holds numbers; got {shown(images)}.")
        channels = images.shape[1]
        if images.dtype == torch.uint8:
            values = torch.arange(256, dtype=torch.float64) / 255
            planes = [images[:, c].reshape(-1) for c in range(channels)]
            counts = torch.stack([torch.bincount(p, minlength=256).cpu().double() for p in planes])
            weights = counts / counts.sum(1, keepdim=True)
            mean = weights @ values
            std = (weights * (values - mean[:, None]) ** 2).sum(1).sqrt()
        else:
            planes = images.transpose(0, 1).reshape(channels, -1).double()
            mean, std = planes.mean(1), planes.std(1, correction=0)

        std = torch.where(std > 0, std, 1.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        """float32 of images [N, C, ...], centred and scaled: ``(x / 255 - mean) / std`` for uint8."""
        if not isinstance(images, Tensor) or images.ndim < 2:
            raise InputError(f"images must be a tensor [N, C, ...]; got {shown(images)}.")
        return self.apply(images, 255.0 if images.dtype == torch.uint8 else 1.0)

    def apply(self, images: Tensor, full_scale: float) -> Tensor:
        """As a call, for pixels whose white is ``full_scale``, whatever their dtype: resized uint8 images are float.

        Raises InputError for images with another number of channels.
        """
        if len(self.mean) != images.shape[1]:
            raise InputError(
                f"images have {images.shape[1]} channels, but the normalisation was measured on {len(self.mean)}. "
                "Give images with the channels that the network was trained with."
            )
        scale, shift = _affine(self, full_scale, images.device, images.ndim)
        return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


@functools.lru_cache(maxsize=64)
def _affine(norm: Normalisation, full_scale: float, device: torch.device, ndim: int) -> tuple[Tensor, Tensor]:
    """(scale, shift), float32 [1, C, 1, ...], kept on the device so that a batch copies nothing to it."""
    std = torch.tensor(norm.std, dtype=torch.float64)
    scale = 1 / (std * full_scale)
    shift = -torch.tensor(norm.mean, dtype=torch.float64) / std
    shape = (1, -1) + (1,) * (ndim - 2)
    return scale.float().view(shape).to(device), shift.float().view(shape).to(device)
