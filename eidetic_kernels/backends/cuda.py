"""The compiled CUDA kernels (csrc/cuda): the one file that calls ``_cuda``. Signatures as in :mod:`.cpu`.

Kernels are enqueued on torch's current stream of the tensors' device; errors of a launch become RuntimeErrors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import extensions
from .arguments import AppliedNorm, Norm, NormGradients
from .compiled import DTYPES, batch_norm_backward, batch_norm_forward, why_no_batch_norm

DEVICE = "cuda"


def segmented_batch_norm_supports(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    frozen_scale: Tensor,
) -> str | None:
    """Why these inputs cannot run here; None: they can. float32, bfloat16 and float16, every layout."""
    if x.device.type != DEVICE:
        return f"x is on {x.device}; it takes tensors on a GPU."
    missing = extensions.why_missing("_cuda")
    if missing is None:
        missing = extensions.why_no_code(x.device.index)
    if missing is not None:
        return missing
    return why_no_batch_norm(x, residual, weight, bias, running_mean, frozen_scale, tuple(DTYPES))


def segmented_batch_norm_forward(
    x: Tensor, residual: Tensor | None, norm: Norm, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd); see :func:`.cpu.segmented_batch_norm_forward`."""
    return batch_norm_forward(extensions.load("_cuda"), _place(x), x, residual, norm, out)


def segmented_batch_norm_backward(
    dy: Tensor, x: Tensor, residual: Tensor | None, norm: AppliedNorm, wanted: NormGradients
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dresidual, dweight, dbias); see :func:`.cpu.segmented_batch_norm_backward`."""
    return batch_norm_backward(extensions.load("_cuda"), _place(x), dy, x, residual, norm, wanted)


def _place(x: Tensor) -> dict[str, int]:
    return {"device": x.device.index, "stream": torch.cuda.current_stream(x.device).cuda_stream}
