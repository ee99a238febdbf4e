"""What ops and backends pass each other, in groups with names.

Registered ops take the same values one by one, since torch's schemas know no tuples. The order of the fields is
therefore the order in those schemas: ``*weights`` and ``*norm`` are what a registered op is called with.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Weights(NamedTuple):
    """The tensors of a staircase layer with L live and F frozen rows."""

    weight: Tensor  # [L, K_l, *kernel], over the columns that the live segment reads; trainable
    bias: Tensor | None  # [L]; trainable
    frozen_weight: Tensor  # flat: the blocks [rows, columns, *kernel] of the frozen segments, end to end
    frozen_bias: Tensor | None  # [F]; given exactly when ``bias`` is

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of a convolution's kernel; () for a linear layer."""
        return tuple(self.weight.shape[2:])


class Norm(NamedTuple):
    """What a segmented BatchNorm of F frozen and L live channels computes with."""

    weight: Tensor | None  # [L]; trainable
    bias: Tensor | None  # [L]; trainable
    running_mean: Tensor  # [L]; read in evaluation, moved in training
    running_var: Tensor  # [L]; likewise
    frozen_scale: Tensor  # [F]
    frozen_shift: Tensor  # [F]
    training: bool
    momentum: float
    eps: float
    activation: str = "none"  # one of ACTIVATIONS

    def live(self) -> Norm:
        """The same for the live channels alone."""
        weight, bias, mean, var, scale, shift, training, momentum, eps, activation = self
        return Norm(weight, bias, mean, var, scale[:0], shift[:0], training, momentum, eps, activation)


class AppliedNorm(NamedTuple):
    """A :class:`Norm` as a forward pass applied it: what the backward pass needs to know of it."""

    weight: Tensor | None  # [L]
    bias: Tensor | None  # [L]
    mean: Tensor  # [L]; what the live channels were normalised by ...
    rstd: Tensor  # [L]; ... and 1 / deviation
    frozen_scale: Tensor  # [F]
    frozen_shift: Tensor  # [F]
    training: bool  # whether mean and rstd are those of the batch, through which gradients flow
    activation: str

    def live(self) -> AppliedNorm:
        """The same for the live channels alone."""
        weight, bias, mean, rstd, scale, shift, training, activation = self
        return AppliedNorm(weight, bias, mean, rstd, scale[:0], shift[:0], training, activation)


class NormGradients(NamedTuple):
    """Which gradients a backward pass of a normalisation owes, in addition to those of weight and bias."""

    full_input_grad: bool  # at frozen channels too; otherwise they get zeros
    x: bool
    residual: bool


class Epilogue(NamedTuple):
    """What follows the product of frozen segments, in this order; None: nothing."""

    scale: Tensor | None = None  # [F]
    shift: Tensor | None = None  # [F]
    residual: Tensor | None = None  # as the output
    activation: str = "none"
