"""What every launcher needs: the device to launch on, the options of every launch, and the words for a refusal."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache

import torch
import triton
from torch import Tensor

# TRITON_INTERPRET is read when a kernel is decorated, so it is read once here too.
INTERPRETED: bool = triton.knobs.runtime.interpret  # pyright: ignore[reportAttributeAccessIssue]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Every rounding of a kernel is in its source: were the compiler free to fuse a product and a sum, two variants of one
# kernel could give a frozen unit different bits. Where a fused product is wanted, tl.fma says so.
OPTIONS = {"enable_fp_fusion": False}


def on_device(x: Tensor):
    """A context in which kernels are launched on the device of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def unsupported(x: Tensor) -> str | None:
    """Why no kernel here takes tensors of the device and dtype of ``x``; None when they do."""
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not one of float32, bfloat16 and float16"
    if x.device.type == "cpu":
        return None if INTERPRETED else "a CPU tensor needs Triton's interpreter (TRITON_INTERPRET=1)"
    if x.device.type != "cuda":
        return f"the tensor is on {x.device}, and Triton runs on CUDA devices"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 was set when Triton was imported; unset it to run on the GPU"
    return too_old(x.device)


@cache
def too_old(gpu: torch.device) -> str | None:
    """Why the kernels are not for this GPU; None: they are."""
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        return f"{torch.cuda.get_device_name(gpu)} is older than compute capability 8.0."
    return None


def input_precision(dtype: torch.dtype) -> str:
    """How a product of this dtype is computed, as torch's own products are told: TF32 only where the user allows it."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def rows_contiguous(x: Tensor) -> Tensor:
    """``x`` [M, K] itself where neighbours in a row are neighbours in memory, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.shape[1] <= 1 else x.contiguous()
