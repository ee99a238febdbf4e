"""Segmented BatchNorm by torch's own functions: the implementation that runs everywhere. See :mod:`.batch_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.activations import FROM_OUTPUT, activate_, activation_gradient
from ..backends.arguments import AppliedNorm, Norm, NormGradients
from ..memory import arranged_as, new_as

aten = torch.ops.aten


def forward(x: Tensor, residual: Tensor | None, norm: Norm, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and 1 / deviation that live channels were normalised by; y in ``out`` where it helps."""
    frozen = len(norm.frozen_scale)
    if x.shape[1] > frozen:
        live, mean, rstd = _normalise_live(x[:, frozen:] if frozen else x, norm)
    else:
        live, (mean, rstd) = None, (x.new_empty(0, dtype=statistics_dtype(x)) for _ in range(2))

    if frozen or live is None:
        y = new_like(x) if out is None else out
        _affine(x[:, :frozen], norm.frozen_scale, norm.frozen_shift, y[:, :frozen])
        if live is not None:
            y[:, frozen:] = live
    else:
        y = live

    if residual is not None:
        y += residual
    activate_(y, frozen, norm.activation)
    return y, mean, rstd


def backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    norm: AppliedNorm,
    wanted: NormGradients,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, residual, weight and bias. ``y`` is read for the activations of FROM_OUTPUT alone."""
    frozen, activation = len(norm.frozen_scale), norm.activation
    if wanted.full_input_grad and activation in FROM_OUTPUT:
        assert y is not None
        dy, activation = activation_gradient(dy, y, activation), "none"

    dz = dx = dweight = dbias = None
    if x.shape[1] > frozen:
        dz, x_live = dy[:, frozen:] if frozen else dy, arranged_as(x[:, frozen:] if frozen else x, x)
        if activation in FROM_OUTPUT:
            assert y is not None
            dz = activation_gradient(dz, y[:, frozen:] if frozen else y, activation)
        elif activation != "none":
            z = _live_again(x_live, norm)
            z = z if residual is None else z + residual[:, frozen:]
            dz = activation_gradient(dz, z.to(dz.dtype), activation)
        dz = arranged_as(dz, x)
        dx, dweight, dbias = _live_gradients(dz, x_live, norm, wanted.x)

    dz_frozen = dx_frozen = None
    if wanted.full_input_grad and frozen:
        dz_frozen = dy[:, :frozen]
        if activation != "none":
            z = x.new_empty(dz_frozen.shape)
            _affine(x[:, :frozen], norm.frozen_scale, norm.frozen_shift, z)
            z = z if residual is None else z + residual[:, :frozen]
            dz_frozen = activation_gradient(dz_frozen, z, activation)
        dx_frozen = dz_frozen * norm.frozen_scale.view(_columns(x))

    dx = _whole(dx_frozen, dx, x, frozen) if wanted.x else None
    if not wanted.residual:
        return dx, None, dweight, dbias
    if dz is not None and dz is dy:  # an op must not return its input
        dz = dz.clone()
    return dx, _whole(dz_frozen, dz, x, frozen), dweight, dbias


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a batch's mean and 1 / deviation."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def new_like(x: Tensor) -> Tensor:
    """Memory for an output shaped as ``x``: contiguous, channels_last or unit-major."""
    return new_as(x, x.shape[1])


def _columns(x: Tensor) -> tuple[int, ...]:
    """The shape of one number a channel beside ``x`` [N, C, *]."""
    return (-1, *[1] * (x.dim() - 2))


def _affine(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write frozen channels before residual and activation to ``out``."""
    scale, shift = scale.view(_columns(x)), shift.view(_columns(x))
    if x.dtype == scale.dtype:
        torch.addcmul(shift, x, scale, out=out)
    else:  # half-precision activations, float32 statistics
        out.copy_(torch.addcmul(shift, x, scale))


def _normalise_live(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Live channels before residual and activation, with the mean and 1 / deviation that they were normalised by."""
    x = arranged_as(x, x)  # the library's fast paths want memory of its own
    y, mean, rstd = torch.native_batch_norm(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps
    )
    if not norm.training:
        mean, rstd = norm.running_mean.clone(), torch.rsqrt(norm.running_var + norm.eps)
    dtype = statistics_dtype(x)
    return (y, mean, rstd) if mean.dtype == dtype else (y, mean.to(dtype), rstd.to(dtype))


def _live_again(x: Tensor, norm: AppliedNorm) -> Tensor:
    """Live channels before residual and activation, in the backward pass."""
    columns = _columns(x)
    slope = norm.rstd if norm.weight is None else norm.rstd * norm.weight
    # Not x * scale + shift: where the mean is large, their difference has few digits left.
    z = (x - norm.mean.view(columns)) * slope.view(columns)
    return z if norm.bias is None else z + norm.bias.view(columns)


def _live_gradients(
    dz: Tensor, x: Tensor, norm: AppliedNorm, need_dx: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias by the normalisation alone."""
    weight, bias, mean, rstd = norm.weight, norm.bias, norm.mean, norm.rstd
    if norm.training:
        wanted = [need_dx, weight is not None, bias is not None]
        if weight is not None and x.device.type == "cpu":  # where the library keeps them in the parameters' dtype
            mean, rstd = mean.to(weight.dtype), rstd.to(weight.dtype)
        return aten.native_batch_norm_backward(dz, x, weight, None, None, mean, rstd, True, 0.0, wanted)

    columns, others = _columns(x), [dim for dim in range(x.dim()) if dim != 1]
    slope = rstd if weight is None else rstd * weight
    dx = dz * slope.view(columns) if need_dx else None
    dweight = None if weight is None else (dz * (x - mean.view(columns))).sum(others) * rstd
    return dx, dweight, None if bias is None else dz.sum(others)


def _whole(of_frozen: Tensor | None, of_live: Tensor | None, x: Tensor, frozen: int) -> Tensor:
    """A gradient for all channels of ``x``; zeros where there is none."""
    if not frozen and of_live is not None:
        return of_live
    whole = new_like(x)
    whole[:, :frozen] = 0 if of_frozen is None else of_frozen
    if of_live is not None:
        whole[:, frozen:] = of_live
    return whole
