"""The compiled C++ kernels for CPU tensors (csrc/cpu): the one file that calls ``_cpu``.

They take tensors, return tensors and know no autograd; :mod:`.dispatch` asks ``..._supports`` first. A call uses as
many threads as ``torch.get_num_threads()`` says; results do not depend on their number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import extensions
from .arguments import AppliedNorm, Norm, NormGradients
from .compiled import batch_norm_backward, batch_norm_forward, why_no_batch_norm


def segmented_batch_norm_supports(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    frozen_scale: Tensor,
) -> str | None:
    """Why these inputs cannot run here; None: they can. float32, every layout."""
    if x.device.type != "cpu":
        return f"x is on {x.device}; it takes tensors on the CPU."
    missing = extensions.why_missing("_cpu")
    if missing is not None:
        return missing
    return why_no_batch_norm(x, residual, weight, bias, running_mean, frozen_scale, (torch.float32,))


def segmented_batch_norm_forward(
    x: Tensor, residual: Tensor | None, norm: Norm, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of :mod:`eidetic_kernels.ops.batch_norm`, forward.

    Args:
        x: [N, C], [N, C, L] or [N, C, H, W], of any strides; ``residual`` alike, or None.
        norm: of F frozen and L = C - F live channels; its running statistics are read in evaluation, and moved by
            ``momentum`` in training.
        out: dense memory for y, or None; x may lie in it.

    Returns:
        y in x's memory format (contiguous where x is a copy), and mean, rstd [L], float32: the statistics that
        normalised the live channels, for the backward pass.
    """
    return batch_norm_forward(extensions.load("_cpu"), _threads(), x, residual, norm, out)


def segmented_batch_norm_backward(
    dy: Tensor, x: Tensor, residual: Tensor | None, norm: AppliedNorm, wanted: NormGradients
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The contract of :mod:`eidetic_kernels.ops.batch_norm`, backward; recomputes the pre-activation from x.

    Returns:
        dx and dresidual, shaped as x (None where not wanted): zeros in frozen channels, or with ``full_input_grad``
        their true gradients; dweight and dbias [L] (None without weight and bias).
    """
    return batch_norm_backward(extensions.load("_cpu"), _threads(), dy, x, residual, norm, wanted)


def _threads() -> dict[str, int]:
    return {"threads": torch.get_num_threads()}
