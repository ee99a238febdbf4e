"""What the ahead-of-time test compiles: calls of the package's launchers as a GPU would see them, on CPU tensors.

Every kernel of the package must be in one of :data:`LAUNCHES`. Each costs seconds a target: take the variants that
will run, and of these the hardest.
"""

from __future__ import annotations

from functools import partial

import torch

from eidetic_kernels.backends.arguments import AppliedNorm, Epilogue, Norm, NormGradients, Weights
from eidetic_kernels.layout import Fixed, Geometry, Segments, Source, Staircase, staircase


def linear(dtype, samples, aligned, norm=None, activation="relu", precision="ieee", stairs=None):
    """The staircase product; ``norm`` None, "training" or "evaluation"."""
    from eidetic_kernels.backends.triton import linear

    torch.backends.cuda.matmul.fp32_precision = precision
    stairs = stairs or _stairs((128, 64, 256) if aligned else (105, 34, 257), 512 if aligned else 511)
    live, frozen = stairs.live, stairs.frozen_rows
    x = torch.empty(samples, stairs.columns, dtype=dtype)
    weight, frozen_weight = x.new_empty(live.rows, live.columns), x.new_empty(_size(stairs))
    weights = Weights(weight, x.new_empty(live.rows), frozen_weight, x.new_empty(frozen))
    if norm is None:
        linear.staircase_linear_forward(x, weights, stairs)
        return
    tensors = *torch.empty(4, live.rows), *torch.empty(2, frozen)
    norm = Norm(*tensors, norm == "training", 0.1, 1e-5, activation)
    linear.staircase_linear_norm_forward(x, weights, stairs, norm)


def growing_tasks(dtype):
    """The product and its norm while tasks are learned and pruned: no size stays what it was."""
    sizes: tuple[int, ...] = ()
    for task in range(4):
        for live, samples in ((300 + task, 256), (101 - task, 256), (33, 77)):
            linear(dtype, samples, False, "evaluation", stairs=_stairs(sizes, live))
        sizes = (*sizes, 33)


def batch_norm(dtype, memory_format=torch.contiguous_format, channels=(128, 64), activation="gelu"):
    """Segmented BatchNorm with all it can have: training, forward and backward, and evaluation."""
    x, residual, dy = (_images(dtype, channels, memory_format) for _ in range(3))
    _batch_norm(x, residual, dy, channels, activation, training=False)
    _batch_norm(x, residual, dy, channels, activation, training=True)


def plain_batch_norm(dtype, channels, activation):
    """Without affine and residual, with the full input gradient."""
    x, dy = (_images(dtype, channels, torch.contiguous_format) for _ in range(2))
    _batch_norm(x, None, dy, channels, activation, training=False, full_input_grad=True)
    _batch_norm(x, None, dy, channels, activation, training=True, full_input_grad=True)


def _images(dtype, channels, memory_format):
    return torch.empty(64, sum(channels), 16, 16, dtype=dtype).to(memory_format=memory_format)


def _batch_norm(x, residual, dy, channels, activation, training, full_input_grad=False):
    from eidetic_kernels.backends.triton import batch_norm

    frozen, live = channels
    scale, shift = (torch.empty(frozen) for _ in range(2))
    weight, bias = (None if full_input_grad else torch.empty(live) for _ in range(2))
    statistics = torch.empty(live), torch.empty(live)
    norm = Norm(weight, bias, *statistics, scale, shift, training, 0.1, 1e-5, activation)
    _, mean, rstd = batch_norm.segmented_batch_norm_forward(x, residual, norm)
    if training or full_input_grad:
        wanted = NormGradients(full_input_grad, x=True, residual=residual is not None)
        applied = AppliedNorm(weight, bias, mean, rstd, scale, shift, training, activation)
        batch_norm.segmented_batch_norm_backward(dy, x, residual, applied, wanted)


def growing_norms(dtype):
    """Segmented BatchNorm while tasks are learned and pruned."""
    for channels in ((0, 300), (0, 233), (33, 267), (33, 200), (134, 99)):
        batch_norm(dtype, torch.channels_last, channels)


def conv2d(dtype, memory_format=torch.channels_last, aligned=True, precision="ieee", sizes=None):
    """The frozen segments of a 3 x 3 convolution, and all that follows it, that reads a group of its own sizes."""
    from eidetic_kernels.backends.triton import conv2d

    torch.backends.cudnn.conv.fp32_precision = precision
    group = Segments(4096, 64, sizes or ((128, 64, 256) if aligned else (105, 34, 257)))
    stairs = staircase(group, (Source(group),), (True, False, True, True)[-group.tasks - 1 :], None)
    rows = stairs.frozen_rows
    x = torch.empty(16, stairs.columns, 14, 14, dtype=dtype).to(memory_format=memory_format)
    y, residual = (x.new_empty(16, stairs.rows, 14, 14).to(memory_format=memory_format) for _ in range(2))
    weights = Weights(x.new_empty(1, 1, 3, 3), x.new_empty(1), x.new_empty(_size(stairs) * 9), x.new_empty(rows))
    epilogue = Epilogue(torch.empty(rows), torch.empty(rows), residual, "relu")
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    conv2d.staircase_conv2d_frozen_forward(y, x, weights, stairs, geometry, epilogue)


def growing_convolutions(dtype):
    for sizes in ((33,), (33, 100), (33, 100, 7)):
        conv2d(dtype, aligned=False, sizes=sizes)


def _stairs(sizes: tuple[int, ...], live: int) -> Staircase:
    """A layer that reads an input and a group of the sizes it has itself; every other segment reads nested."""
    nested = tuple(task % 2 == 0 for task in range(len(sizes))) + (True,)
    group = Segments(4096, live, sizes)
    return staircase(group, (Source(Fixed(64)), Source(group)), nested, None)


def _size(stairs: Staircase) -> int:
    return sum(stair.rows * stair.columns for stair in stairs.frozen)


def trial():
    from eidetic_kernels.backends.triton import trial

    trial.launch(torch.empty(trial.SIZE))


bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32

LAUNCHES = {
    "trial": trial,
    "linear bf16 aligned": partial(linear, bf16, 4096, True, "training", "gelu"),
    "linear bf16 ragged": partial(linear, bf16, 4096, False, "training", "gelu"),
    "linear fp16 few samples": partial(linear, fp16, 256, True, "evaluation"),
    "linear tf32": partial(linear, fp32, 4096, True, None, precision="tf32"),
    "linear fp32": partial(linear, fp32, 256, False, "training"),
    "conv2d bf16 channels_last": partial(conv2d, bf16),
    "conv2d bf16 ragged": partial(conv2d, bf16, torch.contiguous_format, False),
    "conv2d fp32 ragged": partial(conv2d, fp32, torch.channels_last, False),
    "conv2d tf32": partial(conv2d, fp32, precision="tf32"),
    "batch norm bf16": partial(batch_norm, bf16),
    "batch norm channels_last fp32": partial(batch_norm, fp32, torch.channels_last, (105, 34), "hardswish"),
    "batch norm plain": partial(plain_batch_norm, fp16, (7, 57), "silu"),
}

# Bytes of a thread's memory that a launch may spill, on any target; the others may spill none. Measured: ragged 328
# with Triton 3.9; aligned 56 on sm_100 alone with Triton 3.6, nothing with 3.9; the norm 8 on sm_100 with Triton 3.5.
SPILLS = {"linear bf16 aligned": 64, "linear bf16 ragged": 384, "batch norm channels_last fp32": 8}
