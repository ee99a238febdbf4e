"""What the ahead-of-time test compiles: calls of the package's launchers, as a GPU would see them. CPU tensors."""

from __future__ import annotations

import torch

from eidetic_kernels.layout import Fixed, Segments, Source, staircase


def linear(dtype=torch.bfloat16, samples=4096, aligned=True, norm=None, activation="gelu"):
    """The staircase product; ``norm`` None, "training" or "evaluation"."""
    from eidetic_kernels.triton_kernels import linear

    sizes, live = ((128, 64, 256), 512) if aligned else ((105, 34, 257), 511)
    into, out = Segments(2048, live, sizes), Segments(2048, live, sizes)
    stairs = staircase(out, (Source(Fixed(64)), Source(into)), (True, False, True, True), None)
    x = torch.empty(samples, stairs.columns, dtype=dtype)
    weight = torch.empty(live, stairs.live.columns, dtype=dtype)
    frozen = torch.empty(sum(stair.rows * stair.columns for stair in stairs.frozen), dtype=dtype)
    bias, frozen_bias = x.new_empty(live), x.new_empty(stairs.frozen_rows)
    if norm is None:
        linear.staircase_linear_forward(x, weight, bias, frozen, frozen_bias, stairs)
        return
    scale, shift = torch.empty(2, stairs.frozen_rows)
    numbers = torch.empty(4, live)
    linear.staircase_linear_norm_forward(
        x, weight, bias, frozen, frozen_bias, scale, shift, stairs, *numbers, norm == "training", 0.1, 1e-5, activation
    )
