"""EideticLinear: torch.nn.Linear whose units belong to tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..checking import whole_number
from ..errors import InputError
from .batch_norm import EideticBatchNorm1d
from .inputs import check_tensor
from .staircase import StaircaseLayer

# Samples. In smaller batches a library's bits depend on which operand is transposed: of 2,623 random products on a CPU
# with 32 samples and 20 units or more none did.
UNIT_MAJOR_FROM = 32


class EideticLinear(StaircaseLayer):
    """Drop-in for :class:`torch.nn.Linear`: the same arguments, initialisation and state_dict names.

    Args:
        in_features: columns of the input [*, in_features] as long as nothing is pruned.
        out_features: the layer's width: how many units all tasks together may own.
        bias, device, dtype: as in torch.
        norm: an ``EideticBatchNorm1d(out_features, activation=...)`` that becomes part of this layer and runs in the
            product's own pass where a backend can; results are those of the two layers one after the other.

    With nothing frozen or pruned it computes what torch computes. ``forward`` returns the frozen units first,
    then the live ones. Raises InputError for an input of another shape or dtype than the weights', and for a norm of
    another width.
    """

    norms = EideticBatchNorm1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        norm: EideticBatchNorm1d | None = None,
    ):
        self.in_features = whole_number("in_features", in_features)
        self.out_features = whole_number("out_features", out_features, unit="units")
        self.answers = False  # whether what it computes leaves the network: a head
        super().__init__(self.in_features, self.out_features, (), bias, device, dtype, norm)

    def forward(self, x: Tensor, computed: Tensor | None = None) -> Tensor:
        if computed is not None:  # by all parts of a divided layer together
            return computed
        check_tensor(self, x, self.weight)
        stairs = self.derived(self.scope.task)
        flat_only = self.norm is not None or (self.owned and self.unit_dim == 1)
        if flat_only and x.dim() != 2:
            part = "is part of a network" if self.owned else "normalises its units"
            raise InputError(
                f"{self} {part} and expects [N, {stairs.columns}], got {list(x.shape)}: units are "
                "counted in dimension 1. Flatten the input (x.flatten(1))."
            )

        flat = x.flatten(0, -2) if x.dim() > 2 else x.unsqueeze(0) if x.dim() == 1 else x
        flat, weights, full_input_grad = self._arguments(flat)
        self.check_input(flat, stairs.columns, dims=2)
        if self.order is not None and self.untouched:
            y = self.whole(x, self.live_weight(), self.bias)
            return y if self.norm is None else self.norm.normalise(y, None, full_input_grad)

        if self.norm is not None:
            norm, elsewhere = self.norm.arguments((len(x), stairs.rows)), self.norm.num_frozen_elsewhere
            return ops.staircase_linear_norm(
                flat, weights, stairs, norm, full_input_grad, elsewhere, self._unit_major(x)
            )
        y = ops.staircase_linear(flat, weights, stairs, full_input_grad, self._unit_major(x))
        return y if x.dim() == 2 else y.view(*x.shape[:-1], stairs.rows)

    def product(self, x: Tensor) -> Tensor:
        """What ``forward`` normalises, of x [N, columns], where the layer owns its norm."""
        stairs, unit_major = self.derived(self.scope.task), self._unit_major(x)
        x, weights, full_input_grad = self._arguments(x)
        return ops.staircase_linear(x, weights, stairs, full_input_grad, unit_major)

    def _unit_major(self, x: Tensor) -> bool:
        """Whether units lie one after the other in memory: hidden ones, on a CPU, once a task is finished."""
        if torch.compiler.is_compiling() or x.device.type != "cpu":  # a layout that changes would be compiled again
            return False
        hidden = self.owned and not self.answers and x.dim() == 2 and self.unit_dim == 1
        return hidden and self.segments.tasks > 0 and len(x) >= UNIT_MAJOR_FROM

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
