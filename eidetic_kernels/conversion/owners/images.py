"""Rules of poolings and of what changes an image's size."""

from __future__ import annotations

from typing import Any

from ..graphs.nodes import concrete, operation
from .maps import Owners
from .merging import settled
from .step import Step, rule

IMAGES = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool1d upsample_bilinear2d upsample_nearest2d "
    "upsample_bicubic2d upsample_linear1d upsample_nearest1d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "grid_sampler reflection_pad2d replication_pad2d max_pool2d_with_indices upsample_trilinear3d upsample_nearest3d "
    "_upsample_nearest_exact2d"
).split()


@rule(*IMAGES)
def on_images(step: Step) -> Any:
    x = step.owners(step.arg(0))
    name = operation(step.node)
    spatial = int(next((c for c in name if c.isdigit()), "2"))
    rank = len(x.shape)
    x = settled(step, x, range(rank - spatial, rank))
    for d in range(rank - spatial, rank):
        if x.samples.shape[d] > 1:
            step.refuse("mixes samples")
        if x.units.shape[d] > 1:
            step.refuse("pools units")
    val = step.node.meta["val"]
    if isinstance(val, (list, tuple)):
        return [Owners(tuple(concrete(k) for k in v.shape), x.units, x.samples, x.coarse) for v in val]
    return Owners(step.shape, x.units, x.samples, x.coarse)
