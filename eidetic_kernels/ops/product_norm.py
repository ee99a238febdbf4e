"""A staircase product and the segmented BatchNorm of its rows in one op: what linear_norm and conv2d_norm share.

    y[:, segment s] = act((product of the reads of s + b_s) * scale_s + shift_s + residual)      frozen
    y[:, live]      = act(batch norm of (product of the reads of live + b) + residual)           live

Arguments, results and gradients are those of the product's op and of :mod:`.batch_norm`, one after the other. The live
product before normalisation is kept for the backward pass. The frozen ones are not: a full gradient computes them
again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends.activations import FROM_OUTPUT
from ..backends.arguments import AppliedNorm, Norm, NormGradients, Weights
from ..layout import Staircase
from . import batch_norm
from .batch_norm_torch import statistics_dtype
from .registration import Op, decoded, placed
from .staircase import (
    Needed,
    Product,
    fake_gradients,
    frozen_products,
    gradients,
    has_live_rows,
    joined,
    live_product,
)

ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, Tensor staircase, SymInt rows, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor(a!) running_mean, Tensor(b!) running_var, Tensor frozen_scale, "
    "Tensor frozen_shift, bool training, float momentum, float eps, str activation, bool full_input_grad, "
    "int num_frozen_elsewhere, Tensor? residual"
)
BACKWARD_ARGUMENTS = (
    "Tensor dy, Tensor? y, Tensor x, Tensor weight, Tensor? bias, Tensor frozen_weight, Tensor? frozen_bias, "
    "Tensor staircase, Tensor pre, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, "
    "Tensor frozen_scale, Tensor frozen_shift, bool training, str activation, bool full_input_grad, "
    "int num_frozen_elsewhere, bool need_x, bool need_weight, bool need_bias, Tensor? residual, bool need_residual"
)


class Arguments(NamedTuple):
    """What the op is given, as ARGUMENTS says; the product's geometry follows."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    frozen_weight: Tensor
    frozen_bias: Tensor | None
    staircase: Tensor
    rows: int
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    frozen_scale: Tensor
    frozen_shift: Tensor
    training: bool
    momentum: float
    eps: float
    activation: str
    full_input_grad: bool
    num_frozen_elsewhere: int
    residual: Tensor | None

    @property
    def weights(self) -> Weights:
        return Weights(self.weight, self.bias, self.frozen_weight, self.frozen_bias)

    @property
    def norm(self) -> Norm:
        return Norm(
            self.norm_weight,
            self.norm_bias,
            self.running_mean,
            self.running_var,
            self.frozen_scale,
            self.frozen_shift,
            self.training,
            self.momentum,
            self.eps,
            self.activation,
        )


class BackwardArguments(NamedTuple):
    """What the backward op is given, as BACKWARD_ARGUMENTS says; the product's geometry follows."""

    dy: Tensor
    y: Tensor | None
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    frozen_weight: Tensor
    frozen_bias: Tensor | None
    staircase: Tensor
    pre: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    mean: Tensor
    rstd: Tensor
    frozen_scale: Tensor
    frozen_shift: Tensor
    training: bool
    activation: str
    full_input_grad: bool
    num_frozen_elsewhere: int
    need_x: bool
    need_weight: bool
    need_bias: bool
    residual: Tensor | None
    need_residual: bool

    @property
    def weights(self) -> Weights:
        return Weights(self.weight, self.bias, self.frozen_weight, self.frozen_bias)

    @property
    def norm(self) -> AppliedNorm:
        return AppliedNorm(
            self.norm_weight,
            self.norm_bias,
            self.mean,
            self.rstd,
            self.frozen_scale,
            self.frozen_shift,
            self.training,
            self.activation,
        )

    @property
    def needed(self) -> Needed:
        return Needed(self.need_x, self.need_weight, self.need_bias)


GIVEN, GIVEN_BACKWARD = len(Arguments._fields), len(BackwardArguments._fields)
# The arguments that can have a gradient, in the order of the backward op's results.
LEARNING = tuple(map(Arguments._fields.index, ("x", "weight", "bias", "norm_weight", "norm_bias", "residual")))

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # (y, pre, mean, rstd)


def define(
    name: str, forward: Callable[..., Results], product_of: Callable[..., Product], geometry: str
) -> tuple[Op, Op]:
    """Register op ``name``, its backward op and its gradients; both ops.

    ``forward`` takes the op's :class:`Arguments` and the :class:`.staircase.Product` that ``product_of`` makes of what
    follows them, of which ``geometry`` is the schema. It returns (y, pre, mean, rstd): ``pre`` is the live product
    before normalisation, ``mean`` and ``rstd`` are what it was normalised by.
    """

    def run(*flat):
        return forward(Arguments(*flat[:GIVEN]), product_of(*flat[GIVEN:]))

    def fake(*flat):
        given, product = Arguments(*flat[:GIVEN]), product_of(*flat[GIVEN:])
        x, weight, live = given.x, given.weight, given.rows - given.frozen_scale.shape[0]
        statistics = (x.new_empty(live, dtype=statistics_dtype(x)) for _ in range(2))
        return product.empty(x, weight, given.rows), product.empty(x, weight, live), *statistics

    def run_backward(*flat):
        return backward(BackwardArguments(*flat[:GIVEN_BACKWARD]), product_of(*flat[GIVEN_BACKWARD:]))

    def fake_backward(*flat):
        given, product = BackwardArguments(*flat[:GIVEN_BACKWARD]), product_of(*flat[GIVEN_BACKWARD:])
        of_product = fake_gradients(given.x, given.weight, given.needed)
        of_norm = (None if p is None else torch.empty_like(p) for p in (given.norm_weight, given.norm_bias))
        dresidual = product.empty(given.x, given.weight, given.dy.shape[1]) if given.need_residual else None
        return *of_product, *of_norm, dresidual

    op = Op(f"{name}({ARGUMENTS}, {geometry}) -> (Tensor y, Tensor pre, Tensor mean, Tensor rstd)", run, fake)
    results = ", ".join(["Tensor"] * len(LEARNING))
    backward_schema = f"{name}_backward({BACKWARD_ARGUMENTS}, {geometry}) -> ({results})"
    backward_op = Op(backward_schema, run_backward, fake_backward)
    op.differentiate(type(name, (ProductNormFunction,), {"op": op, "backward_op": backward_op}))
    return op, backward_op


def one_after_the_other(given: Arguments, staircase: Staircase, product: Product) -> Results:
    """(y, pre, mean, rstd) by the product of every segment and, whoever runs that, the op of the normalisation."""
    x, weights = given.x, given.weights
    out_buffer = product.out_buffer(x, staircase.rows)
    parts = frozen_products(x, weights, staircase, product, out_buffer)
    pre = live_product(x, weights, staircase, product, out_buffer)
    if has_live_rows(staircase) or not parts:
        parts.append(pre)
    z = product.arranged(joined(parts, out_buffer), x, given.weight)

    # y goes where the products are, if they have a buffer: of them only the live ones are needed again.
    pre = product.arranged(pre, x, given.weight) if out_buffer is None else pre.clone()
    y, mean, rstd = batch_norm.forward(z, given.residual, given.norm, given.num_frozen_elsewhere, out_buffer)
    return y, pre, mean, rstd


def backward(given: BackwardArguments, product: Product) -> tuple[Tensor | None, ...]:
    """The gradients of the arguments LEARNING, each None where it is not needed."""
    x, weight, pre, staircase = given.x, given.weight, given.pre, decoded(given.staircase)
    dy, y, residual, norm = given.dy, given.y, given.residual, given.norm
    frozen = len(given.frozen_scale)

    if given.full_input_grad and frozen and (given.need_x or given.need_residual):
        parts = frozen_products(x, given.weights, staircase, product)
        z = product.arranged(joined([*parts, pre] if has_live_rows(staircase) else parts), x, weight)
        wanted = NormGradients(True, True, given.need_residual)
        dz, dresidual, *of_norm = batch_norm.backward(dy, y, z, residual, norm, wanted)
        assert dz is not None  # as wanted
        dfrozen, dpre = dz[:, :frozen], dz[:, frozen:]
    else:
        its_y, its_residual = (None if t is None else t[:, frozen:] for t in (y, residual))
        wanted = NormGradients(given.full_input_grad, True, given.need_residual)
        elsewhere = frozen + given.num_frozen_elsewhere
        dpre, dresidual, *of_norm = batch_norm.backward(
            dy[:, frozen:], its_y, pre, its_residual, norm.live(), wanted, elsewhere
        )
        dfrozen = dy[:, :0] if given.full_input_grad else None
        if dresidual is not None and frozen:
            whole = product.empty(x, weight, dy.shape[1])
            whole[:, :frozen], whole[:, frozen:] = 0, dresidual
            dresidual = whole

    assert dpre is not None  # as wanted
    of_product = gradients(dfrozen, dpre, x, weight, given.frozen_weight, staircase, product, given.needed)
    return *of_product, *of_norm, dresidual


class ProductNormFunction(torch.autograd.Function):
    """Gradients of an op that :func:`define` makes; its subclasses name it and its backward op."""

    op: Op
    backward_op: Op

    @classmethod
    def forward(cls, ctx, *flat):
        y, pre, mean, rstd = cls.op.below_autograd(*flat)

        given = Arguments(*flat[:GIVEN])
        kept = y if given.activation in FROM_OUTPUT else None
        ctx.save_for_backward(
            kept,
            given.x,
            given.weight,
            given.bias,
            given.frozen_weight,
            given.frozen_bias,
            given.staircase,
            pre,
            given.norm_weight,
            given.norm_bias,
            mean,
            rstd,
            given.frozen_scale,
            given.frozen_shift,
            given.residual,
        )
        ctx.options = given.training, given.activation, given.full_input_grad, given.num_frozen_elsewhere
        ctx.geometry, ctx.backward_op = flat[GIVEN:], cls.backward_op
        ctx.mark_non_differentiable(pre, mean, rstd)
        ctx.set_materialize_grads(False)
        return y, pre, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        *saved, residual = ctx.saved_tensors
        *needed, _, _, need_residual = (ctx.needs_input_grad[position] for position in LEARNING)
        found = ctx.backward_op.below_autograd(
            dy, *saved, *ctx.options, *needed, residual, need_residual, *ctx.geometry
        )
        return placed(found, LEARNING, ctx.needs_input_grad)
