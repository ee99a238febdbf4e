"""Whether a task's frozen features can be cached, and why not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor

from eidetic_kernels import EideticNetwork, FrozenFeatures
from eidetic_kernels.errors import InputError

from .settings import TaskSettings


@runtime_checkable
class Numbered(Protocol):
    """A loader that numbers its samples, such as :class:`~eidetic_training.data.TensorLoader`."""

    @property
    def has_augmentation(self) -> bool:
        """Whether a sample differs from epoch to epoch."""
        ...

    def numbered(self) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """An epoch of (rows, x, y): the numbers of the samples [N] int64, inputs and labels."""
        ...


def frozen_features(
    network: EideticNetwork, loader: Iterable, settings: TaskSettings
) -> tuple[FrozenFeatures | None, str | None]:
    """(features, None) for the task in training, or (None, why they cannot be cached).

    (None, None) if the settings do not want them, or if nothing is frozen. Raises InputError if the settings require
    them and they cannot be cached.
    """
    if settings.frozen_features is False or not any(group.segments.frozen_total for group in network.groups):
        return None, None
    asked = settings.frozen_features is True
    features = FrozenFeatures(
        network,
        max(1, getattr(loader, "num_samples", 1)),
        limit=None if asked else round(settings.frozen_features_gib * 2**30),
    )
    reason = features.off
    if reason is None and features.reads:
        if not isinstance(loader, Numbered):
            reason = "the loader does not number its samples (eidetic_training.data.TensorLoader does)"
        elif loader.has_augmentation:
            reason = "the training set is augmented, so that a sample differs from epoch to epoch"
    if reason is not None and asked:
        raise InputError(f"frozen features cannot be cached: {reason}. Set frozen_features to false or 'auto'.")
    return (features, None) if reason is None else (None, reason)
