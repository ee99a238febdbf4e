"""From raw rows of a data set to what a network reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eidetic_kernels.checking import instance, shown
from eidetic_kernels.errors import InputError

from .augment import Augmentation
from .image_set import Normalisation


@dataclass(frozen=True)
class Preparation:
    """Rows are augmented, then normalised to float32.

    Args:
        augment: random changes of images; None, or one that changes nothing, is none.
        normalisation: None keeps the values as they are.

    Raises InputError for anything else.
    """

    augment: Augmentation | None = None
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        if self.augment is not None:
            instance("augment", self.augment, Augmentation, "an Augmentation, or None")
        if self.normalisation is not None:
            instance("normalisation", self.normalisation, Normalisation, "a Normalisation, or None")

    @property
    def augments(self) -> bool:
        """Whether a sample differs from epoch to epoch."""
        return bool(self.augment)

    def __call__(self, raw: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """float32 of rows [N, ...], uint8 or floating point, in memory of its own.

        They are augmented with random numbers of ``noise``, and not at all without it. Raises InputError for what is no
        tensor of rows.
        """
        if not isinstance(raw, Tensor) or raw.ndim < 2:
            raise InputError(f"rows must be a tensor [N, ...], images [N, C, H, W] or features; got {shown(raw)}.")
        full_scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        if self.augment and noise is not None:
            raw = self.augment(raw, noise)
        if self.normalisation is None:
            return raw.to(torch.float32, copy=True)  # a slice of the data must not reach a network with in-place ops
        return self.normalisation.apply(raw, full_scale)
