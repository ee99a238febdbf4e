"""What :mod:`.cpu` and :mod:`.cuda` share: tensors described to the compiled modules as plain structs.

The structs are those of csrc/*.h, which say what each field means. ``Any`` below stands for a compiled module and for
its structs: they have no stubs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..memory import memory_format
from .activations import ACTIVATIONS
from .arguments import AppliedNorm, Norm, NormGradients

# The numbers of csrc/segmented_batch_norm.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACTIVATION_NUMBERS = {name: number for number, name in enumerate(ACTIVATIONS)}


def why_no_batch_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    frozen_scale: Tensor,
    dtypes: tuple[torch.dtype, ...],
) -> str | None:
    """Why the compiled segmented BatchNorm cannot take these tensors; None: it can."""
    if x.dtype not in dtypes:
        return f"x is {_name(x.dtype)}; it takes {_names(dtypes)}."
    if x.dim() not in (2, 3, 4):
        return f"x has {x.dim()} dimensions; it takes [N, C], [N, C, L] and [N, C, H, W]."
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        return (
            f"the residual is {_name(residual.dtype)} {list(residual.shape)} on {residual.device}; "
            f"it must be as x, {_name(x.dtype)} {list(x.shape)} on {x.device}."
        )
    for name, tensor in (("weight", weight), ("bias", bias), ("frozen_scale", frozen_scale)):
        if tensor is not None and (tensor.dtype, tensor.device) != (running_mean.dtype, running_mean.device):
            return (
                f"{name} is {_name(tensor.dtype)} on {tensor.device} and the running statistics are "
                f"{_name(running_mean.dtype)} on {running_mean.device}; they must be alike."
            )

    if running_mean.device != x.device:
        return f"x is on {x.device} and the running statistics on {running_mean.device}; they must be on one device."
    if running_mean.dtype not in (torch.float32, x.dtype):
        return f"its parameters are {_name(running_mean.dtype)}; with {_name(x.dtype)} x they must be that or float32."
    if not running_mean.is_contiguous():
        return "the running statistics are not contiguous; they are written in place and must be."
    return None


def batch_norm_forward(
    module: Any,
    settings: dict[str, int],
    x: Tensor,
    residual: Tensor | None,
    norm: Norm,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract's segmented_batch_norm_forward; ``settings`` are fields of the struct (device, stream, threads).

    ``out``: dense memory that y may take, which x may lie in: a value is written when it is not read again.
    """
    live = norm.running_mean.shape[0]
    problem, rows, held = _problem(module, settings, x, residual, norm, norm.running_mean.dtype)
    y = _output(x, rows) if out is None else out
    mean, rstd = (x.new_empty(live, dtype=torch.float32) for _ in range(2))
    workspace = _workspace(module, problem, x) if norm.training else None

    problem.momentum, problem.eps = norm.momentum, norm.eps
    problem.running_mean, problem.running_var = norm.running_mean.data_ptr(), norm.running_var.data_ptr()
    problem.y, problem.mean, problem.rstd, problem.workspace = map(_address, (y, mean, rstd, workspace))
    module.segmented_batch_norm_forward(problem)
    del held
    return y, mean, rstd


def batch_norm_backward(
    module: Any,
    settings: dict[str, int],
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    norm: AppliedNorm,
    wanted: NormGradients,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The contract's segmented_batch_norm_backward; ``settings`` as in :func:`batch_norm_forward`."""
    parameters = norm.frozen_scale if norm.weight is None else norm.weight
    problem, rows, held = _problem(module, settings, x, residual, norm, parameters.dtype)
    dy, problem.dy_stride = _laid_out(dy, rows)
    dx, dresidual = (_output(x, rows) if need else None for need in (wanted.x, wanted.residual))
    dweight, dbias = (None if tensor is None else torch.empty_like(tensor) for tensor in (norm.weight, norm.bias))
    workspace = _workspace(module, problem, x)

    problem.full_input_grad = wanted.full_input_grad
    problem.mean, problem.rstd = norm.mean.data_ptr(), norm.rstd.data_ptr()
    problem.dy, problem.dx, problem.dresidual = map(_address, (dy, dx, dresidual))
    problem.dweight, problem.dbias, problem.workspace = map(_address, (dweight, dbias, workspace))
    module.segmented_batch_norm_backward(problem)
    del held
    return dx, dresidual, dweight, dbias


def _problem(
    module: Any,
    settings: dict[str, int],
    x: Tensor,
    residual: Tensor | None,
    norm: Norm | AppliedNorm,
    parameter_dtype: torch.dtype,
) -> tuple[Any, bool, tuple[Any, ...]]:
    """The struct, filled with what both directions need; whether x is channels_last; what must stay alive."""
    rows = x.dim() == 4 and not x.is_contiguous() and memory_format(x) == torch.channels_last
    problem = module.SegmentedBatchNorm()
    samples, problem.channels = x.shape[:2]
    inner = x.shape[2:].numel()
    problem.outer, problem.inner = (samples * inner, 1) if rows else (samples, inner)
    problem.frozen = norm.frozen_scale.shape[0]
    problem.dtype, problem.parameter_dtype = DTYPES[x.dtype], DTYPES[parameter_dtype]
    problem.activation, problem.training = _ACTIVATION_NUMBERS[norm.activation], norm.training
    for name, value in settings.items():
        setattr(problem, name, value)

    x, problem.x_stride = _laid_out(x, rows)
    if residual is not None:
        residual, problem.residual_stride = _laid_out(residual, rows)
    parameters = norm.weight, norm.bias, norm.frozen_scale, norm.frozen_shift
    dense = [None if tensor is None else tensor.contiguous() for tensor in parameters]
    problem.x, problem.residual = map(_address, (x, residual))
    problem.weight, problem.bias, problem.frozen_scale, problem.frozen_shift = map(_address, dense)
    return problem, rows, (x, residual, dense)


def _laid_out(x: Tensor, rows: bool) -> tuple[Tensor, int]:
    """``x`` in memory that the kernels can walk, a copy where need be, and its outer stride."""
    if rows:
        return x.contiguous(memory_format=torch.channels_last), x.shape[1]
    dense = x.shape[1:].numel()
    if x.is_contiguous():
        return x, dense
    if len(x) and x.stride(0) >= dense and x[0].is_contiguous():  # a slice of the channels is
        return x, x.stride(0)
    return x.contiguous(), dense


def _output(x: Tensor, rows: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last if rows else torch.contiguous_format)


def _workspace(module: Any, problem: Any, x: Tensor) -> Tensor:
    return x.new_empty(module.segmented_batch_norm_workspace(problem), dtype=torch.float32)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(_name, dtypes))
