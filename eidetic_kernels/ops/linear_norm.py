"""Staircase linear and segmented BatchNorm in one: act(norm(x W^T + b)) for all segments.

    y[:, segment s] = act((x[:, reads of s] @ W_s^T + b_s) * scale_s + shift_s)       frozen
    y[:, live]      = act(batch norm of x[:, reads of live] @ W^T + b)                live

Contract: arguments and gradients as :mod:`.linear` and :mod:`.batch_norm` have them, one after the other. A faster
implementation does the frozen affine and activation, and the live statistics, in the product's own pass. On the torch
backend the bits are those of the two ops in sequence, which it is. The gradients, and what is kept for the backward
pass: see :mod:`.product_norm`.
"""

from __future__ import annotations

from torch import Tensor

from .. import backends
from ..backends.arguments import Norm, Weights
from ..layout import Staircase
from .batch_norm import segmented_batch_norm_oracle
from .linear import Linear, staircase_linear_oracle
from .product_norm import Arguments, Results, define, one_after_the_other
from .registration import decoded, structure


def staircase_linear_norm(
    x: Tensor,
    weights: Weights,
    staircase: Staircase,
    norm: Norm,
    full_input_grad: bool = False,
    num_frozen_elsewhere: int = 0,
    unit_major: bool = False,
) -> Tensor:
    """The module's contract. Callers check shapes; ``norm.frozen_scale`` is as long as the staircase has frozen rows.

    ``num_frozen_elsewhere``: as :func:`.segmented_batch_norm` has it.
    """
    return OP(x, *weights, *structure(staircase), *norm, full_input_grad, num_frozen_elsewhere, None, unit_major)[0]


def staircase_linear_norm_oracle(
    x: Tensor, weights: Weights, staircase: Staircase, norm: Norm, full_input_grad: bool = False
) -> Tensor:
    """The definitions of the two ops, one after the other, by plain autograd."""
    z = staircase_linear_oracle(x, weights, staircase, full_input_grad)
    return segmented_batch_norm_oracle(z, norm, None, full_input_grad)


def _forward(given: Arguments, product: Linear) -> Results:
    x, weight, staircase = given.x, given.weight, decoded(given.staircase)
    fast = backends.implementation("staircase_linear_norm", x, weight, given.frozen_weight, staircase)
    if fast is None:
        return one_after_the_other(given, staircase, product)
    y, pre, mean, rstd = fast.staircase_linear_norm_forward(x, given.weights, staircase, given.norm)
    return product.arranged(y, x, weight), product.arranged(pre, x, weight), mean, rstd


OP, BACKWARD_OP = define("staircase_linear_norm", _forward, Linear, "bool unit_major")
