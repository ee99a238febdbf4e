"""What the ahead-of-time test compiles: calls of the package's launchers, as a GPU would see them. CPU tensors."""

from __future__ import annotations

import torch

from eidetic_kernels.layout import Fixed, Segments, Source, staircase


def linear(dtype=torch.bfloat16, samples=4096, aligned=True):
    from eidetic_kernels.triton_kernels import linear

    sizes = (128, 64, 256) if aligned else (105, 34, 257)
    into, out = Segments(2048, 512, sizes), Segments(2048, 512, sizes)
    stairs = staircase(out, (Source(Fixed(64)), Source(into)), (True, False, True, True), None)
    x = torch.empty(samples, stairs.columns, dtype=dtype)
    weight = torch.empty(stairs.live.rows, stairs.live.columns, dtype=dtype)
    frozen = torch.empty(sum(stair.rows * stair.columns for stair in stairs.frozen), dtype=dtype)
    bias, frozen_bias = x.new_empty(stairs.live.rows), x.new_empty(stairs.frozen_rows)
    linear.staircase_linear_forward(x, weight, bias, frozen, frozen_bias, stairs)
