"""A staircase product and the segmented BatchNorm of its rows in one op: what linear_norm and conv2d_norm share.

    y[:, segment s] = act((product of the reads of s + b_s) * scale_s + shift_s + residual)      frozen
    y[:, live]      = act(batch norm of (product of the reads of live + b) + residual)           live

Arguments, results and gradients are those of the product's op and of :mod:`.batch_norm`, one after the other. The live
product before normalisation is kept for the backward pass, the frozen ones are not: an exact gradient computes them
again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends.activations import FROM_OUTPUT
from . import batch_norm
from .batch_norm import statistics_dtype
from .registration import Op, decoded
from .staircase import Product, fake_gradients, frozen_products, gradients, has_live_rows, joined, live_product

ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, Tensor staircase, SymInt rows, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor frozen_scale, "
    "Tensor frozen_shift, bool training, float momentum, float eps, str activation, bool full_input_grad, int num_frozen_elsewhere"
)
BACKWARD_ARGUMENTS = (
    "Tensor dy, Tensor? y, Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, Tensor pre, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, "
    "Tensor frozen_scale, Tensor frozen_shift, bool training, str activation, bool full_input_grad, int num_frozen_elsewhere, bool need_x, "
    "bool need_weight, bool need_bias"
)


def define(name: str, forward: Callable, product_of: Callable[..., Product], geometry: str):
    """Register op ``name``, its backward op and its gradients; both ops.

    ``forward`` takes the op's arguments and returns (y, pre, mean, rstd): ``pre`` the live product before
    normalisation, ``mean`` and ``rstd`` what it was normalised by. Its arguments end with a residual, or None (of a
    linear product always), and with what ``product_of`` needs, of which ``geometry`` is the schema.
    """
    more, more_backward = f", Tensor? residual, {geometry}", f", Tensor? residual, bool need_residual, {geometry}"

    def fake(x, weight, bias, frozen_weight, frozen_bias, numbers, rows, *rest):
        product, live = product_of(*rest[13:]), rows - rest[4].shape[0]
        statistics = (x.new_empty(live, dtype=statistics_dtype(x)) for _ in range(2))
        return product.empty(x, weight, rows), product.empty(x, weight, live), *statistics

    def backward(*arguments):
        return _backward(product_of, *arguments)

    def fake_backward(dy, y, x, weight, bias, frozen_weight, frozen_bias, numbers, pre, norm_weight, norm_bias, *rest):
        of_product = fake_gradients(x, weight, *rest[8:11])
        of_norm = (None if p is None else torch.empty_like(p) for p in (norm_weight, norm_bias))
        return *of_product, *of_norm, product_of(*rest[13:]).empty(x, weight, dy.shape[1]) if rest[12] else None

    op = Op(f"{name}({ARGUMENTS}{more}) -> (Tensor y, Tensor pre, Tensor mean, Tensor rstd)", forward, fake)
    results = ", ".join(["Tensor"] * 6)
    backward_op = Op(f"{name}_backward({BACKWARD_ARGUMENTS}{more_backward}) -> ({results})", backward, fake_backward)
    op.differentiate(type(name, (ProductNormFunction,), {"op": op, "backward_op": backward_op}))
    return op, backward_op


def one_after_the_other(
    product: Product,
    x,
    weight,
    bias,
    frozen_weight,
    frozen_bias,
    staircase,
    norm_weight,
    norm_bias,
    running_mean,
    running_var,
    frozen_scale,
    frozen_shift,
    training,
    momentum,
    eps,
    activation,
    residual=None,
    num_frozen_elsewhere=0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, pre, mean, rstd) by the product of every segment and, whoever runs that, the op of the normalisation."""
    out_buffer = product.out_buffer(x, staircase.rows)
    parts = frozen_products(x, weight, frozen_weight, frozen_bias, staircase, product, out_buffer)
    pre = live_product(x, weight, bias, staircase, product, out_buffer)
    if has_live_rows(staircase) or not parts:
        parts.append(pre)
    z = product.arranged(joined(parts, out_buffer), x, weight)
    # In the room of the products itself, where there is one: of them only the live ones are needed again.
    pre = product.arranged(pre, x, weight) if out_buffer is None else pre.clone()
    y, mean, rstd = batch_norm.forward(
        z,
        residual,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        frozen_scale,
        frozen_shift,
        training,
        momentum,
        eps,
        activation,
        num_frozen_elsewhere=num_frozen_elsewhere,
        out=out_buffer,
    )
    return y, pre, mean, rstd


def _backward(
    product_of,
    dy,
    y,
    x,
    weight,
    bias,
    frozen_weight,
    frozen_bias,
    numbers,
    pre,
    norm_weight,
    norm_bias,
    mean,
    rstd,
    frozen_scale,
    frozen_shift,
    training,
    activation,
    full_input_grad,
    num_frozen_elsewhere,
    need_x,
    need_weight,
    need_bias,
    residual,
    need_residual,
    *geometry,
):
    product, staircase, frozen = product_of(*geometry), decoded(numbers), len(frozen_scale)
    of_norm = norm_weight, norm_bias, mean, rstd
    if full_input_grad and frozen and (need_x or need_residual):
        parts = frozen_products(x, weight, frozen_weight, frozen_bias, staircase, product)
        z = product.arranged(joined([*parts, pre] if has_live_rows(staircase) else parts), x, weight)
        dz, dresidual, dnorm_weight, dnorm_bias = batch_norm.backward(
            dy, y, z, residual, *of_norm, frozen_scale, frozen_shift, training, activation, True, True, need_residual
        )
        dfrozen, dpre = dz[:, :frozen], dz[:, frozen:]
    else:
        y, its_residual = (None if t is None else t[:, frozen:] for t in (y, residual))
        dpre, dresidual, dnorm_weight, dnorm_bias = batch_norm.backward(
            dy[:, frozen:],
            y,
            pre,
            its_residual,
            *of_norm,
            frozen_scale[:0],
            frozen_shift[:0],
            training,
            activation,
            full_input_grad,
            True,
            need_residual,
            num_frozen_elsewhere=frozen + num_frozen_elsewhere,
        )
        dfrozen = dy[:, :0] if full_input_grad else None
        if need_residual and frozen:
            whole = product.empty(x, weight, dy.shape[1])
            whole[:, :frozen], whole[:, frozen:] = 0, dresidual
            dresidual = whole
    found = gradients(dfrozen, dpre, x, weight, frozen_weight, staircase, product, need_x, need_weight, need_bias)
    return *found, dnorm_weight, dnorm_bias, dresidual


class ProductNormFunction(torch.autograd.Function):
    """Gradients of an op that :func:`define` makes; its subclasses name it and its backward op."""

    op: Op
    backward_op: Op

    @classmethod
    def forward(
        cls,
        ctx,
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        numbers,
        rows,
        norm_weight,
        norm_bias,
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
        residual,
        *geometry,
    ):
        y, pre, mean, rstd = cls.op.below_autograd(
            x,
            weight,
            bias,
            frozen_weight,
            frozen_bias,
            numbers,
            rows,
            norm_weight,
            norm_bias,
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
            residual,
            *geometry,
        )
        kept = y if activation in FROM_OUTPUT else None
        ctx.save_for_backward(
            kept,
            x,
            weight,
            bias,
            frozen_weight,
            frozen_bias,
            numbers,
            pre,
            norm_weight,
            norm_bias,
            mean,
            rstd,
            frozen_scale,
            frozen_shift,
            residual,
        )
        ctx.options, ctx.geometry, ctx.backward_op = (
            (training, activation, full_input_grad, num_frozen_elsewhere),
            geometry,
            cls.backward_op,
        )
        ctx.mark_non_differentiable(pre, mean, rstd)
        ctx.set_materialize_grads(False)
        return y, pre, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        *saved, its_residual = ctx.saved_tensors
        x, weight, bias, norm_weight, norm_bias, residual = (ctx.needs_input_grad[i] for i in (0, 1, 2, 7, 8, 19))
        dx, dweight, dbias, dnorm_weight, dnorm_bias, dresidual = ctx.backward_op.below_autograd(
            dy, *saved, *ctx.options, x, weight, bias, its_residual, residual, *ctx.geometry
        )
        return (
            dx if x else None,
            dweight if weight else None,
            dbias if bias else None,
            None,
            None,
            None,
            None,
            dnorm_weight if norm_weight else None,
            dnorm_bias if norm_bias else None,
            *(None,) * 10,
            dresidual if residual else None,
            *(None for _ in ctx.geometry),
        )
