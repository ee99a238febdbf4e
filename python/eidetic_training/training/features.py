"""Whether a task's frozen features can be computed once, and why not."""

from __future__ import annotations

from collections.abc import Iterable

from eidetic_kernels import EideticNetwork, FrozenFeatures
from eidetic_kernels.errors import InputError

from .settings import TaskSettings


def frozen_features(
    network: EideticNetwork, loader: Iterable, settings: TaskSettings
) -> tuple[FrozenFeatures | None, str | None]:
    """Frozen features for the task in training, or why there are none; (None, None) where none are wanted or nothing is
    frozen. Raises InputError where the settings ask for them and they cannot be."""
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
        if not hasattr(loader, "numbered"):
            reason = "the loader does not number its samples (eidetic_training.data.TensorLoader does)"
        elif loader.has_augmentation:
            reason = "the training set is augmented, so that a sample differs from epoch to epoch"
    if reason is not None and asked:
        raise InputError(f"frozen features cannot be computed once: {reason}. Set frozen_features to false or 'auto'.")
    return (features, None) if reason is None else (None, reason)
