"""Segmented BatchNorm with activation and residual: frozen channels are two numbers, live ones use batch statistics.

    y[:, c] = act(x[:, c] * scale[c] + shift[c] + residual[:, c])                                   frozen c < F
    y[:, c] = act((x[:, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] + residual[:, c])  live c >= F

Contract, which every backend is held to:

    x [N, C] or [N, C, *]; residual shaped as x, or None; frozen_scale, frozen_shift [F]
    weight, bias [C - F] or None; trainable
    running_mean, running_var [C - F]: read in evaluation, moved by ``momentum`` in training (biased variance
        normalises, unbiased variance is kept, as torch has it)
    activation: one of ACTIVATIONS, values and derivatives as torch's, NaN included
    returns y, shaped as x; contiguous, or channels_last where x is

Backward writes the gradients of weight and bias, and those of the live channels of x and residual. Frozen channels get
zeros, or with ``full_input_grad=True`` their true gradient. A frozen channel's bits depend on its own values alone, not
on what lies beside it (P1).

The paper (section 3.1, equation 2) keeps the statistics of finished tasks in evaluation mode. The published
implementation evaluates each frozen BatchNorm a second time for it, and applies its affine twice in training; here it
is one multiply-add.

From top to bottom: the function that layers call, the definition it is tested against, the choice of a backend, and
the registered op with its gradients. The implementation by torch is :mod:`.batch_norm_torch`.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..backends.activations import FROM_OUTPUT, FUNCTIONS
from ..backends.arguments import AppliedNorm, Norm, NormGradients
from ..memory import is_unit_major
from . import batch_norm_torch
from .batch_norm_torch import new_like, statistics_dtype
from .registration import Op, placed


def segmented_batch_norm(
    x: Tensor,
    norm: Norm,
    residual: Tensor | None = None,
    full_input_grad: bool = False,
    num_frozen_elsewhere: int = 0,
) -> Tensor:
    """The module's contract. Callers check shapes.

    ``norm.frozen_scale`` may be cut to a task's prefix. Then x holds that prefix only, and the live tensors are not
    read. It may also be cut to nothing. Then x holds live channels only, and ``num_frozen_elsewhere`` says how many
    frozen ones a whole batch has: live ones keep the bits that they have in a whole batch.

    A residual of another dtype than x, as autocast makes them, is added as torch adds: y has the dtype that both are
    promoted to.
    """
    if residual is not None and residual.dtype != x.dtype:
        promoted = torch.promote_types(x.dtype, residual.dtype)
        if promoted != x.dtype:
            plain = Norm(*norm[:-1])  # without the activation, which follows the addition
            y = segmented_batch_norm(x, plain, None, full_input_grad, num_frozen_elsewhere).to(promoted)
            frozen = len(norm.frozen_scale)
            return add_and_activate(y, residual.to(promoted), frozen, norm.activation, full_input_grad)
        residual = residual.to(x.dtype)
    return OP(x, residual, *norm, full_input_grad, num_frozen_elsewhere)[0]


def add_and_activate(z: Tensor, residual: Tensor, frozen: int, activation: str, full_input_grad: bool) -> Tensor:
    """act(z + residual): the op again, with every channel multiplied by 1, so that activations are its own."""
    if frozen and not full_input_grad:
        residual = torch.cat([residual[:, :frozen].detach(), residual[:, frozen:]], 1)
    one = torch.ones(z.shape[1], dtype=statistics_dtype(z), device=z.device)
    nothing = one.new_empty(0), one.new_empty(0)
    norm = Norm(None, None, *nothing, one, one * -0.0, False, 0.0, 0.0, activation)
    return segmented_batch_norm(z, norm, residual, full_input_grad=True)


def segmented_batch_norm_oracle(
    x: Tensor, norm: Norm, residual: Tensor | None = None, full_input_grad: bool = False
) -> Tensor:
    """The definition, channel block by channel block, by plain autograd."""
    frozen = len(norm.frozen_scale)
    columns = (-1, *[1] * (x.dim() - 2))
    x_frozen = x[:, :frozen] if full_input_grad else x[:, :frozen].detach()
    y = x_frozen * norm.frozen_scale.view(columns) + norm.frozen_shift.view(columns)

    if x.shape[1] > frozen:
        statistics, affine = (norm.running_mean, norm.running_var), (norm.weight, norm.bias)
        live = F.batch_norm(x[:, frozen:], *statistics, *affine, norm.training, norm.momentum, norm.eps)
        y = torch.cat([y, live], 1)

    if residual is not None:
        kept = residual[:, :frozen] if full_input_grad else residual[:, :frozen].detach()
        y = y + torch.cat([kept, residual[:, frozen:]], 1)
    return FUNCTIONS[norm.activation](y)


# ---- whoever computes it, below autograd


def forward(
    x: Tensor, residual: Tensor | None, norm: Norm, num_frozen_elsewhere: int = 0, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the mean and 1 / deviation that live channels were normalised by.

    ``num_frozen_elsewhere`` as in :func:`segmented_batch_norm`. ``out`` is memory that y may take. It may be x itself,
    where x is not read again.
    """
    if is_unit_major(x):
        residual, out = (None if t is None else _planes(t) for t in (residual, out))
        y, mean, rstd = forward(_planes(x), residual, norm, num_frozen_elsewhere, out)
        return _units(y), mean, rstd

    fast = _implementation(x, residual, norm, norm.running_mean, num_frozen_elsewhere)
    run = batch_norm_torch.forward if fast is None else fast.segmented_batch_norm_forward
    return run(x, residual, norm, out)


def backward(
    dy: Tensor,
    y: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    norm: AppliedNorm,
    wanted: NormGradients,
    num_frozen_elsewhere: int = 0,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, residual, weight and bias, each None where there is nothing to give it to."""
    if is_unit_major(x):
        y, residual = (None if t is None else _planes(t) for t in (y, residual))
        dx, dresidual, dweight, dbias = backward(
            _planes(dy), y, _planes(x), residual, norm, wanted, num_frozen_elsewhere
        )
        dx, dresidual = (None if t is None else _units(t) for t in (dx, dresidual))
        return dx, dresidual, dweight, dbias

    # ``mean`` is float32 whatever the parameters are; the frozen numbers have the dtype that the running ones had.
    fast = _implementation(x, residual, norm, norm.frozen_scale.contiguous(), num_frozen_elsewhere)
    if fast is None:
        dx, dresidual, dweight, dbias = batch_norm_torch.backward(dy, y, x, residual, norm, wanted)
    else:
        dx, dresidual, dweight, dbias = fast.segmented_batch_norm_backward(dy, x, residual, norm, wanted)

    if x.shape[1] == len(norm.frozen_scale):  # nothing that learns is part of this pass
        dweight, dbias = (None if p is None else torch.zeros_like(p) for p in (norm.weight, norm.bias))
    return dx, dresidual, _as(norm.weight, dweight), _as(norm.bias, dbias)


def _implementation(
    x: Tensor, residual: Tensor | None, norm: Norm | AppliedNorm, statistics: Tensor, num_frozen_elsewhere: int
) -> ModuleType | None:
    frozen = len(norm.frozen_scale) + num_frozen_elsewhere
    if not frozen and x.device.type == "cpu" and backends.forced() is None:
        return None  # with nothing frozen a layer computes what torch's does, on a CPU to the bit
    return backends.implementation(
        "segmented_batch_norm", x, residual, norm.weight, norm.bias, statistics, norm.frozen_scale
    )


def _as(parameter: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """The gradient in its parameter's dtype; None where there is no parameter."""
    if parameter is None or gradient is None:
        return None
    return gradient if gradient.dtype == parameter.dtype else gradient.to(parameter.dtype)


def _planes(x: Tensor) -> Tensor:
    """[1, C, N] for x [N, C]: one sample whose every channel is a line of values, as a unit-major x lies in memory."""
    return x.t().unsqueeze(0)


def _units(y: Tensor) -> Tensor:
    """The reverse of :func:`_planes`."""
    return y[0].t()


# ---- the registered op and its gradients


def _run(
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
    norm = Norm(
        weight, bias, running_mean, running_var, frozen_scale, frozen_shift, training, momentum, eps, activation
    )
    return forward(x, residual, norm, num_frozen_elsewhere)


def _fake(x, residual, weight, bias, running_mean, running_var, frozen_scale, *rest):
    live = x.shape[1] - frozen_scale.shape[0]
    return new_like(x), *(x.new_empty(live, dtype=statistics_dtype(x)) for _ in range(2))


def _run_backward(
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
    norm = AppliedNorm(weight, bias, mean, rstd, frozen_scale, frozen_shift, training, activation)
    wanted = NormGradients(full_input_grad, need_dx, need_dresidual)
    return backward(dy, y, x, residual, norm, wanted, num_frozen_elsewhere)


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
    _run,
    _fake,
)
BACKWARD_OP = Op(
    "segmented_batch_norm_backward(Tensor dy, Tensor? y, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, Tensor frozen_scale, Tensor frozen_shift, bool training, str activation, "
    "bool full_input_grad, bool need_dx, bool need_dresidual, int num_frozen_elsewhere=0) "
    "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    _run_backward,
    _fake_backward,
)


# The positions, among the op's arguments, of x, residual, weight and bias.
_LEARNING = (0, 1, 2, 3)


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
            return (None,) * len(ctx.needs_input_grad)
        need_x, need_residual, *_ = ctx.needs_input_grad
        found = BACKWARD_OP.below_autograd(
            dy, *ctx.saved_tensors, *ctx.options, need_x, need_residual, ctx.num_frozen_elsewhere
        )
        return placed(found, _LEARNING, ctx.needs_input_grad)


OP.differentiate(_SegmentedBatchNorm)
