"""Staircase linear and segmented BatchNorm in one: act(norm(x W^T + b)) for all segments.

    y[:, segment s] = act((x[:, reads of s] @ W_s^T + b_s) * scale_s + shift_s)       frozen
    y[:, live]      = act(batch norm of x[:, reads of live] @ W^T + b)                live

Contract: arguments and gradients as :mod:`.linear` and :mod:`.batch_norm` have them, one after the other; a faster twin
does the frozen affine and activation, and the live statistics, in the product's own pass. On the torch backend the bits
are those of the two ops in sequence, which it is. What is kept for the backward pass: see :mod:`.product_norm`.
"""

from __future__ import annotations

from torch import Tensor

from .. import backends
from ..layout import Staircase
from .batch_norm import segmented_batch_norm_oracle
from .linear import Linear, staircase_linear_oracle
from .product_norm import define, one_after_the_other
from .registration import decoded, encoded


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
    full_input_grad: bool = False,
    num_frozen_elsewhere: int = 0,
    unit_major: bool = False,
) -> Tensor:
    """See the module's contract. Callers check shapes; ``frozen_scale`` is as long as the staircase has frozen rows.
    ``num_frozen_elsewhere``: as :mod:`.batch_norm` has it."""
    return OP(
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        encoded(staircase),
        staircase.rows,
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
        None,
        unit_major,
    )[0]


def staircase_linear_norm_oracle(
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
    activation="none",
    full_input_grad=False,
) -> Tensor:
    """The definitions of the two ops, one after the other, by plain autograd."""
    z = staircase_linear_oracle(x, weight, bias, frozen_weight, frozen_bias, staircase, full_input_grad)
    return segmented_batch_norm_oracle(
        z,
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
    )


def _forward(
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
    unit_major,
):
    staircase, product = decoded(numbers), Linear(unit_major)
    fast = backends.implementation("staircase_linear_norm", x, weight, frozen_weight, staircase)
    if fast is None:
        return one_after_the_other(
            product,
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
            residual,
            num_frozen_elsewhere,
        )
    y, pre, mean, rstd = fast.staircase_linear_norm_forward(
        x,
        weight,
        bias,
        frozen_weight,
        frozen_bias,
        frozen_scale,
        frozen_shift,
        staircase,
        norm_weight,
        norm_bias,
        running_mean,
        running_var,
        training,
        momentum,
        eps,
        activation,
    )
    return product.arranged(y, x, weight), product.arranged(pre, x, weight), mean, rstd


OP, BACKWARD_OP = define("staircase_linear_norm", _forward, Linear, "bool unit_major")
