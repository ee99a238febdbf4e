"""Staircase linear and segmented BatchNorm in one: act(norm(x W^T + b)) for all segments.

    y[:, segment s] = act((x[:, reads of s] @ W_s^T + b_s) * scale_s + shift_s)       frozen
    y[:, live]      = act(batch norm of x[:, reads of live] @ W^T + b)                live

Contract: arguments and gradients as :mod:`.linear` and :mod:`.batch_norm` have them, one after the other; a faster twin
does the frozen affine and activation, and the live statistics, in the product's own pass. On the torch backend the bits
are those of the two ops in sequence, which it is. The live product before normalisation is kept for the backward pass,
the frozen one is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..layout import Staircase
from . import batch_norm
from .activations import FROM_OUTPUT, activation_gradient
from .batch_norm import affine, segmented_batch_norm_oracle, statistics_dtype
from .linear import Linear, staircase_linear_oracle
from .registration import Op, decoded, encoded
from .staircase import fake_gradients, frozen_products, gradients, products


def staircase_linear_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    frozen_weight: Tensor,
    frozen_bias: Tensor | None,
    staircase: Staircase,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    frozen_scale: Tensor,
    frozen_shift: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    activation: str = "none",
    exact: bool = False,
    beside: int = 0,
) -> Tensor:
    """See the module's contract. Callers check shapes; ``frozen_scale`` is as long as the staircase has frozen rows.
    ``beside``: as :mod:`.batch_norm` has it."""
    return OP(
        x, weight, bias, frozen_weight, frozen_bias, encoded(staircase), staircase.rows, norm_weight, norm_bias,
        running_mean, running_var, frozen_scale, frozen_shift, training, momentum, eps, activation, exact, beside,
    )[0]  # fmt: skip


def staircase_linear_norm_oracle(
    x, weight, bias, frozen_weight, frozen_bias, staircase, norm_weight, norm_bias, running_mean, running_var,
    frozen_scale, frozen_shift, training, momentum, eps, activation="none", exact=False,
) -> Tensor:  # fmt: skip
    """The definitions of the two ops, one after the other, by plain autograd."""
    z = staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, exact)
    return segmented_batch_norm_oracle(
        z, norm_weight, norm_bias, running_mean, running_var, frozen_scale, frozen_shift,
        training, momentum, eps, activation, exact,
    )  # fmt: skip


# ---- the torch backend: one op after the other


def _torch_forward(
    x, weight, bias, frozen_weight, frozen_bias, frozen_scale, frozen_shift, staircase, norm_weight, norm_bias,
    running_mean, running_var, training, momentum, eps, activation, beside=0,
):  # fmt: skip
    z = products(x, weight, bias, frozen_weight, frozen_bias, staircase, Linear)
    y, mean, rstd = batch_norm.forward(
        z, None, norm_weight, norm_bias, running_mean, running_var, frozen_scale, frozen_shift,
        training, momentum, eps, activation, False, beside,
    )  # fmt: skip
    pre = z[:, len(frozen_scale) :].clone(memory_format=torch.contiguous_format) if len(frozen_scale) else z
    return y, pre, mean, rstd


def _frozen_gradient(
    dy, x, weight, frozen_weight, frozen_bias, frozen_scale, frozen_shift, staircase, activation
) -> Tensor:
    """The gradient at the frozen products, which are computed again where the activation asks for them."""
    if activation != "none":
        parts = frozen_products(x, weight, frozen_weight, frozen_bias, staircase, Linear)
        z = torch.cat(parts, 1) if parts else x.new_empty(len(x), 0)
        affine(z, frozen_scale, frozen_shift, z)
        dy = activation_gradient(dy, z, activation)
    return (dy * frozen_scale).to(x.dtype)


# ---- the op


def _forward(
    x, weight, bias, frozen_weight, frozen_bias, numbers, rows, norm_weight, norm_bias, running_mean, running_var,
    frozen_scale, frozen_shift, training, momentum, eps, activation, exact, beside=0,
):  # fmt: skip
    staircase = decoded(numbers)
    twin = backends.implementation("staircase_linear_norm", x, weight, frozen_weight, staircase)
    arguments = (
        x, weight, bias, frozen_weight, frozen_bias, frozen_scale, frozen_shift, staircase, norm_weight, norm_bias,
        running_mean, running_var, training, momentum, eps, activation,
    )  # fmt: skip
    if twin is not None:
        return twin.staircase_linear_norm_forward(*arguments)
    return _torch_forward(*arguments, beside)


def _fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, norm_weight, norm_bias, mean, var, scale, *rest):
    live = rows - scale.shape[0]
    statistics = (x.new_empty(live, dtype=statistics_dtype(x)) for _ in range(2))
    return x.new_empty(x.shape[0], rows), x.new_empty(x.shape[0], live), *statistics


def _backward(
    dy, y, x, weight, bias, frozen_weight, frozen_bias, numbers, pre, norm_weight, norm_bias, mean, rstd,
    frozen_scale, frozen_shift, training, activation, exact, need_x, need_weight, need_bias, beside=0,
):  # fmt: skip
    staircase, frozen = decoded(numbers), len(frozen_scale)
    y_live = None if y is None else y[:, frozen:]
    dpre, _, dnorm_weight, dnorm_bias = batch_norm.backward(
        dy[:, frozen:], y_live, pre, None, norm_weight, norm_bias, mean, rstd, frozen_scale[:0], frozen_shift[:0],
        training, activation, exact, True, False, beside + frozen,
    )  # fmt: skip
    dy_frozen = None
    if exact and need_x:
        dy_frozen = _frozen_gradient(
            dy[:, :frozen], x, weight, frozen_weight, frozen_bias, frozen_scale, frozen_shift, staircase, activation
        )
    of_linear = gradients(
        dy_frozen, dpre, x, weight, frozen_weight, staircase, Linear, need_x, need_weight, need_bias
    )  # fmt: skip
    return *of_linear, dnorm_weight, dnorm_bias


def _fake_backward(
    dy, y, x, weight, bias, frozen_weight, frozen_bias, numbers, pre, norm_weight, norm_bias, mean, rstd,
    frozen_scale, frozen_shift, training, activation, exact, need_x, need_weight, need_bias, beside=0,
):  # fmt: skip
    of_norm = (None if p is None else torch.empty_like(p) for p in (norm_weight, norm_bias))
    return *fake_gradients(x, weight, need_x, need_weight, need_bias), *of_norm


OP = Op(
    "staircase_linear_norm(Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, SymInt rows, Tensor? norm_weight, Tensor? norm_bias, Tensor(a!) running_mean, "
    "Tensor(b!) running_var, Tensor frozen_scale, Tensor frozen_shift, bool training, float momentum, float eps, "
    "str activation, bool exact, int beside=0) -> (Tensor y, Tensor pre, Tensor mean, Tensor rstd)",
    _forward,
    _fake,
)
BACKWARD_OP = Op(
    "staircase_linear_norm_backward(Tensor dy, Tensor? y, Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, "
    "Tensor? frozen_bias, Tensor staircase, Tensor pre, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, "
    "Tensor rstd, Tensor frozen_scale, Tensor frozen_shift, bool training, str activation, bool exact, bool need_x, "
    "bool need_weight, bool need_bias, int beside=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _StaircaseLinearNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, weight, bias, frozen_weight, frozen_bias, numbers, rows, norm_weight, norm_bias, running_mean,
        running_var, frozen_scale, frozen_shift, training, momentum, eps, activation, exact, beside=0,
    ):  # fmt: skip
        y, pre, mean, rstd = OP.below_autograd(
            x, weight, bias, frozen_weight, frozen_bias, numbers, rows, norm_weight, norm_bias, running_mean,
            running_var, frozen_scale, frozen_shift, training, momentum, eps, activation, exact, beside,
        )  # fmt: skip
        kept = y if activation in FROM_OUTPUT else None
        ctx.save_for_backward(
            kept, x, weight, bias, frozen_weight, frozen_bias, numbers, pre, norm_weight, norm_bias, mean, rstd,
            frozen_scale, frozen_shift,
        )  # fmt: skip
        ctx.options, ctx.beside = (training, activation, exact), beside
        ctx.mark_non_differentiable(pre, mean, rstd)
        ctx.set_materialize_grads(False)
        return y, pre, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 19
        x, weight, bias, norm_weight, norm_bias = (ctx.needs_input_grad[i] for i in (0, 1, 2, 7, 8))
        dx, dweight, dbias, dnorm_weight, dnorm_bias = BACKWARD_OP.below_autograd(
            dy, *ctx.saved_tensors, *ctx.options, x, weight, bias, ctx.beside
        )
        return (
            dx if x else None, dweight if weight else None, dbias if bias else None, None, None, None, None,
            dnorm_weight if norm_weight else None, dnorm_bias if norm_bias else None, *(None,) * 10,
        )  # fmt: skip


OP.differentiate(_StaircaseLinearNorm)
