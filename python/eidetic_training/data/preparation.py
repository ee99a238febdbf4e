"""From raw rows of a data set to what a network reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .augment import Augmentation
from .image_set import Normalisation


@dataclass(frozen=True)
class Preparation:
    """Rows are augmented, then normalised to float32.

    augment: random changes of images; None, or one that changes nothing, is none.
    normalisation: None keeps the values as they are.
    """

    augment: Augmentation | None = None
    normalisation: Normalisation | None = None

    @property
    def augments(self) -> bool:
        """Whether a sample differs from epoch to epoch."""
        return bool(self.augment)

    def __call__(self, raw: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """float32 of rows [N, ...], uint8 or floating point, in memory of its own.

        They are augmented with random numbers of ``noise``, and not at all without it.
        """
        full_scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        if self.augment and noise is not None:
            raw = self.augment(raw, noise)
        if self.normalisation is None:
            return raw.to(torch.float32, copy=True)  # a slice of the data must not reach a network with in-place ops
        return self.normalisation.apply(raw, full_scale)
