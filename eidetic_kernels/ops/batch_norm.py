"""Segmented BatchNorm with activation and residual: frozen channels are two numbers, live ones use batch statistics.

    y[:, c] = act(x[:, c] * scale[c] + shift[c] + residual[:, c])                                   frozen c < F
    y[:, c] = act((x[:, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] + residual[:, c])  live c >= F

Contract (what any faster twin is held to):

    x [N, C] or [N, C, *]; residual shaped as x, or None; frozen_scale, frozen_shift [F]
    weight, bias [C - F] or None; trainable
    running_mean, running_var [C - F]: read in evaluation, moved by ``momentum`` in training (biased variance
        normalises, unbiased variance is kept, as torch has it)
    activation: one of ACTIVATIONS, values and derivatives as torch's, NaN included
    returns y, shaped as x; contiguous, or channels_last where x is

Backward writes the gradients of weight and bias, and of the live channels of x and residual; frozen channels get zeros,
or with ``full_input_grad=True`` their true gradient. A frozen channel's bits depend on its own values alone, not on what lies
beside it (P1). The published implementation evaluates each frozen BatchNorm a second time and applies its affine twice
in training (paper, section 3.3); here it is one multiply-add.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..backends.activations import FROM_OUTPUT, FUNCTIONS, activate_, activation_gradient
from ..memory import arranged_as, new_as, unit_major
from .registration import Op

aten = torch.ops.aten


def segmented_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    activation: str = "none",
    full_input_grad: bool = False,
    residual: Tensor | None = None,
    num_frozen_elsewhere: int = 0,
) -> Tensor:
    """See the module's contract. Callers check shapes; ``frozen_scale`` may be cut to a task's prefix, in which
    case x holds that prefix only and the live arguments are not read; or to nothing, x holding live channels only
    and ``num_frozen_elsewhere`` telling how many frozen ones a whole batch has: live ones then keep the bits they have there.

    A residual of another dtype than x, as autocast makes them, is added as torch adds: y has the dtype that both are
    promoted to.
    """
    if residual is not None and residual.dtype != x.dtype:
        promoted = torch.promote_types(x.dtype, residual.dtype)
        if promoted != x.dtype:
            y = segmented_batch_norm(
                x,
                weight,
                bias,
                running_mean,
                running_var,
                frozen_scale,
                frozen_shift,
                training,
                momentum,
                eps,
                full_input_grad=full_input_grad,
                num_frozen_elsewhere=num_frozen_elsewhere,
            )
            return add_and_activate(
                y.to(promoted), residual.to(promoted), len(frozen_scale), activation, full_input_grad
            )
        residual = residual.to(x.dtype)
    return OP(
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        full_input_grad,
        num_frozen_elsewhere,
    )[0]


def add_and_activate(z: Tensor, residual: Tensor, frozen: int, activation: str, full_input_grad: bool) -> Tensor:
    """act(z + residual): the op again, with every channel multiplied by 1, so that activations are its own."""
    if frozen and not full_input_grad:
        residual = torch.cat([residual[:, :frozen].detach(), residual[:, frozen:]], 1)
    one = torch.ones(z.shape[1], dtype=statistics_dtype(z), device=z.device)
    nothing = (one.new_empty(0) for _ in range(2))
    return segmented_batch_norm(
        z, None, None, *nothing, one, one * -0.0, False, 0.0, 0.0, activation, full_input_grad=True, residual=residual
    )


def segmented_batch_norm_oracle(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation="none",
    full_input_grad=False,
    residual=None,
) -> Tensor:
    """The definition, channel block by channel block, by plain autograd; ``residual`` is added before activating."""
    frozen = len(frozen_scale)
    columns = (-1, *[1] * (x.dim() - 2))
    x_frozen = x[:, :frozen] if full_input_grad else x[:, :frozen].detach()
    y = x_frozen * frozen_scale.view(columns) + frozen_shift.view(columns)
    if x.shape[1] > frozen:
        live = F.batch_norm(x[:, frozen:], running_mean, running_var, weight, bias, training, momentum, eps)
        y = torch.cat([y, live], 1)
    if residual is not None:
        kept = residual[:, :frozen] if full_input_grad else residual[:, :frozen].detach()
        y = y + torch.cat([kept, residual[:, frozen:]], 1)
    return FUNCTIONS[activation](y)


# ---- the torch backend


def _normalise_live(x, weight, bias, running_mean, running_var, training, momentum, eps):
    """Live channels before residual and activation, with the mean and 1 / deviation that they were normalised by."""
    x = _own(x, x)
    y, mean, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    if not training:
        mean, rstd = running_mean.clone(), torch.rsqrt(running_var + eps)
    dtype = statistics_dtype(x)
    return (y, mean, rstd) if mean.dtype == dtype else (y, mean.to(dtype), rstd.to(dtype))


def affine(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Frozen channels before residual and activation."""
    columns = (-1, *[1] * (x.dim() - 2))
    if x.dtype == scale.dtype:
        torch.addcmul(shift.view(columns), x, scale.view(columns), out=out)
    else:  # half-precision activations, float32 statistics
        out.copy_(torch.addcmul(shift.view(columns), x, scale.view(columns)))


def statistics_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a batch's mean and 1 / deviation."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def new_like(x: Tensor) -> Tensor:
    """Memory for an output shaped as ``x``: contiguous, channels_last or unit-major."""
    return new_as(x, x.shape[1])


def _torch_forward(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation,
    out=None,
):
    frozen = len(frozen_scale)
    if x.shape[1] > frozen:
        x_live = x[:, frozen:] if frozen else x
        live, mean, rstd = _normalise_live(x_live, weight, bias, running_mean, running_var, training, momentum, eps)
    else:
        live, (mean, rstd) = None, (x.new_empty(0, dtype=statistics_dtype(x)) for _ in range(2))
    if frozen or live is None:
        y = new_like(x) if out is None else out
        affine(x[:, :frozen], frozen_scale, frozen_shift, y[:, :frozen])
        if live is not None:
            y[:, frozen:] = live
    else:
        y = live
    if residual is not None:
        y += residual
    activate_(y, frozen, activation)
    return y, mean, rstd


def _torch_backward(
    dy,
    y,
    x,
    residual,
    weight,
    bias,
    mean,
    rstd,
    frozen_scale,
    frozen_shift,
    training,
    activation,
    full_input_grad,
    need_dx,
    need_dresidual,
):
    frozen = len(frozen_scale)
    if full_input_grad and activation in FROM_OUTPUT:
        dy, activation = activation_gradient(dy, y, activation), "none"
    dz = dx = dweight = dbias = None
    if x.shape[1] > frozen:
        dz, x_live = dy[:, frozen:] if frozen else dy, _own(x[:, frozen:] if frozen else x, x)
        if activation in FROM_OUTPUT:
            dz = activation_gradient(dz, y[:, frozen:] if frozen else y, activation)
        elif activation != "none":
            z = _live_again(x_live, weight, bias, mean, rstd)
            z = z if residual is None else z + residual[:, frozen:]
            dz = activation_gradient(dz, z.to(dz.dtype), activation)
        dz = _own(dz, x)
        dx, dweight, dbias = _live_gradients(dz, x_live, weight, bias, mean, rstd, training, need_dx)
    dz_frozen = dx_frozen = None
    if full_input_grad and frozen:
        dz_frozen = dy[:, :frozen]
        if activation != "none":
            z = x.new_empty(dz_frozen.shape)
            affine(x[:, :frozen], frozen_scale, frozen_shift, z)
            z = z if residual is None else z + residual[:, :frozen]
            dz_frozen = activation_gradient(dz_frozen, z, activation)
        dx_frozen = dz_frozen * frozen_scale.view(-1, *[1] * (x.dim() - 2))
    dx = _whole(dx_frozen, dx, x, frozen) if need_dx else None
    if not need_dresidual:
        return dx, None, dweight, dbias
    if dz is dy:  # an op must not return its input
        dz = dz.clone()
    return dx, _whole(dz_frozen, dz, x, frozen), dweight, dbias


def _own(live: Tensor, x: Tensor) -> Tensor:
    """Live channels in memory of their own, lying as ``x`` does: the library's fast paths want it."""
    return arranged_as(live, x)


def _whole(of_frozen: Tensor | None, of_live: Tensor | None, x: Tensor, frozen: int) -> Tensor:
    """A gradient for all channels of ``x``; zeros where there is none."""
    if not frozen and of_live is not None:
        return of_live
    whole = new_like(x)
    whole[:, :frozen] = 0 if of_frozen is None else of_frozen
    if of_live is not None:
        whole[:, frozen:] = of_live
    return whole


def _live_again(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> Tensor:
    """Live channels before residual and activation, in the backward pass."""
    columns = (-1, *[1] * (x.dim() - 2))
    # Not x * scale + shift: where the mean is large, their difference has few digits left.
    z = (x - mean.view(columns)) * (rstd if weight is None else rstd * weight).view(columns)
    return z if bias is None else z + bias.view(columns)


def _live_gradients(dz, x, weight, bias, mean, rstd, training, need_dx):
    """Gradients of the normalisation alone."""
    if training:
        wanted = [need_dx, weight is not None, bias is not None]
        if weight is not None and x.device.type == "cpu":  # where the library keeps them in the parameters' dtype
            mean, rstd = mean.to(weight.dtype), rstd.to(weight.dtype)
        return aten.native_batch_norm_backward(dz, x, weight, None, None, mean, rstd, True, 0.0, wanted)
    columns, others = (-1, *[1] * (x.dim() - 2)), [dim for dim in range(x.dim()) if dim != 1]
    slope = rstd if weight is None else rstd * weight
    dx = dz * slope.view(columns) if need_dx else None
    dweight = None if weight is None else (dz * (x - mean.view(columns))).sum(others) * rstd
    return dx, dweight, None if bias is None else dz.sum(others)


# ---- the op


def _implementation(x, residual, weight, bias, mean, frozen_scale, frozen: int) -> ModuleType | None:
    if not frozen and x.device.type == "cpu" and backends.forced() is None:
        return None  # with nothing frozen a layer computes what torch's does, on a CPU to the bit
    return backends.implementation("segmented_batch_norm", x, residual, weight, bias, mean, frozen_scale)


def forward(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation,
    full_input_grad=False,
    num_frozen_elsewhere=0,
    out=None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and 1 / deviation that live channels were normalised by.

    ``num_frozen_elsewhere``: how many frozen channels there are elsewhere, where x holds live ones only. ``out``: memory that y may
    take, x itself for one, where x is not read again.
    """
    if unit_major(x):
        x, residual, out = map(_planes, (x, residual, out))
        y, mean, rstd = forward(
            x,
            residual,
            weight,
            bias,
            running_mean,
            running_var,
            frozen_scale,
            frozen_shift,
            training,
            momentum,
            eps,
            activation,
            full_input_grad,
            num_frozen_elsewhere,
            out,
        )
        return _units(y), mean, rstd
    fast = _implementation(
        x, residual, weight, bias, running_mean, frozen_scale, len(frozen_scale) + num_frozen_elsewhere
    )
    run = _torch_forward if fast is None else fast.segmented_batch_norm_forward
    return run(
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        out=out,
    )


def _planes(x: Tensor | None) -> Tensor | None:
    """[1, C, N] for x [N, C]: one sample whose every channel is a line of values, as a unit-major x lies in memory."""
    return None if x is None else x.t().unsqueeze(0)


def _units(y: Tensor | None) -> Tensor | None:
    """The reverse of :func:`_planes`."""
    return None if y is None else y[0].t()


def _fake(x, residual, weight, bias, running_mean, running_var, frozen_scale, *rest):
    live = x.shape[1] - frozen_scale.shape[0]
    return new_like(x), *(x.new_empty(live, dtype=statistics_dtype(x)) for _ in range(2))


def backward(
    dy,
    y,
    x,
    residual,
    weight,
    bias,
    mean,
    rstd,
    frozen_scale,
    frozen_shift,
    training,
    activation,
    full_input_grad,
    need_dx,
    need_dresidual,
    num_frozen_elsewhere=0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, residual, weight and bias, each None where there is nothing to give it to."""
    if unit_major(x):
        dx, dresidual, *others = backward(
            *map(_planes, (dy, y, x, residual)),
            weight,
            bias,
            mean,
            rstd,
            frozen_scale,
            frozen_shift,
            training,
            activation,
            full_input_grad,
            need_dx,
            need_dresidual,
            num_frozen_elsewhere,
        )
        return _units(dx), _units(dresidual), *others
    # ``mean`` is float32 whatever the parameters are; the frozen numbers have the dtype that the running ones had.
    statistics = frozen_scale.contiguous()
    fast = _implementation(
        x, residual, weight, bias, statistics, frozen_scale, len(frozen_scale) + num_frozen_elsewhere
    )
    arguments = (
        x,
        residual,
        weight,
        bias,
        mean,
        rstd,
        frozen_scale,
        frozen_shift,
        training,
        activation,
        full_input_grad,
        need_dx,
        need_dresidual,
    )
    if fast is None:
        dx, dresidual, dweight, dbias = _torch_backward(dy, y, *arguments)
    else:
        dx, dresidual, dweight, dbias = fast.segmented_batch_norm_backward(dy, *arguments)
    if x.shape[1] == len(frozen_scale):  # nothing that learns is part of this pass
        dweight, dbias = (None if p is None else torch.zeros_like(p) for p in (weight, bias))
    elif weight is not None and dweight.dtype != weight.dtype:
        dweight, dbias = dweight.to(weight.dtype), dbias.to(bias.dtype)
    return dx, dresidual, dweight, dbias


def _fake_backward(
    dy,
    y,
    x,
    residual,
    weight,
    bias,
    mean,
    rstd,
    frozen_scale,
    frozen_shift,
    training,
    activation,
    full_input_grad,
    need_dx,
    need_dresidual,
    num_frozen_elsewhere=0,
):
    images = (new_like(x) if need else None for need in (need_dx, need_dresidual))
    return *images, *(None if parameter is None else torch.empty_like(parameter) for parameter in (weight, bias))


OP = Op(
    "segmented_batch_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor(a!) running_mean, "
    "Tensor(b!) running_var, Tensor frozen_scale, Tensor frozen_shift, bool training, float momentum, float eps, "
    "str activation, bool full_input_grad, int num_frozen_elsewhere=0) -> (Tensor y, Tensor mean, Tensor rstd)",
    forward,
    _fake,
)
BACKWARD_OP = Op(
    "segmented_batch_norm_backward(Tensor dy, Tensor? y, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, Tensor frozen_scale, Tensor frozen_shift, bool training, str activation, bool full_input_grad, "
    "bool need_dx, bool need_dresidual, int num_frozen_elsewhere=0) -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    backward,
    _fake_backward,
)


class _SegmentedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        full_input_grad,
        num_frozen_elsewhere=0,
    ):
        y, mean, rstd = OP.below_autograd(
            x,
            residual,
            weight,
            bias,
            running_mean,
            running_var,
            frozen_scale,
            frozen_shift,
            training,
            momentum,
            eps,
            activation,
            full_input_grad,
            num_frozen_elsewhere,
        )
        kept = y if activation in FROM_OUTPUT else None
        ctx.save_for_backward(kept, x, residual, weight, bias, mean, rstd, frozen_scale, frozen_shift)
        ctx.options, ctx.num_frozen_elsewhere = (training, activation, full_input_grad), num_frozen_elsewhere
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return y, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 14
        needed = ctx.needs_input_grad[:4]
        gradients = BACKWARD_OP.below_autograd(
            dy, *ctx.saved_tensors, *ctx.options, *needed[:2], ctx.num_frozen_elsewhere
        )
        return *(gradient if need else None for gradient, need in zip(gradients, needed)), *(None,) * 10


OP.differentiate(_SegmentedBatchNorm)
