"""Whose each number of a tensor is.

A tensor is followed by two maps of its own shape, of whole numbers: which **unit** made a number, and which
**sample** it belongs to; -1 where there is none. Along dimensions in which a map does not vary it has size 1. An
operation that only moves numbers about (view, permute, cat, ...) is followed by doing the same to the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConversionError

NOBODY = -1


@dataclass(frozen=True)
class Owners:
    """Of a tensor of ``shape``: the maps of ``units`` and ``samples``, of size 1 in dimensions where they are constant.

    ``coarse``: several units of one grain made each number, of which ``units`` names one (attention's weights).
    """

    shape: tuple[int, ...]
    units: Tensor
    samples: Tensor
    coarse: bool = False

    @property
    def unit_dims(self) -> list[int]:
        """The dimensions along which units vary."""
        return [dim for dim, size in enumerate(self.units.shape) if size > 1]

    @property
    def owned(self) -> bool:
        """Whether any number is a unit's."""
        return bool((self.units >= 0).any())

    @property
    def sampled(self) -> bool:
        """Whether any number is a sample's."""
        return bool((self.samples >= 0).any())

    @property
    def running(self) -> tuple[int, ...]:
        """The shape that the tensor has when the network runs: a mean over units has one number for each unit."""
        return tuple(max(sizes) for sizes in zip(self.shape, self.units.shape))

    def full(self, which: str) -> Tensor:
        if self.running != self.shape:
            raise ConversionError("a mean over units can be combined with these units, and not moved about.")
        return getattr(self, which).expand(self.shape)


def nobodys(shape: Sequence[int]) -> Owners:
    """The owners of a tensor that is no unit's and no sample's."""
    nobody = torch.full([1] * len(shape), NOBODY)
    return Owners(tuple(shape), nobody, nobody)


def small(full: Tensor) -> Tensor:
    """A map with size 1 in the dimensions along which it does not vary."""
    for dim, size in enumerate(full.shape):
        if size > 1:
            first = full.narrow(dim, 0, 1)
            if full.stride(dim) == 0 or bool((full == first).all()):
                full = first
    return full


def along(dim: int, rank: int, values: Tensor) -> Tensor:
    """A map that varies along ``dim`` alone."""
    shape = [1] * rank
    shape[dim] = -1
    return values.view(shape)
