"""EideticPReLU: PReLU whose slopes belong to tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import placed, real_number, whole_number
from ..errors import ConversionError, InputError
from ..layout import Segments
from .inputs import check_tensor
from .segmented import SegmentedLayer
from .succession import cut, empty_like, replace

ONE_SLOPE = (
    "a PReLU with one slope for units that are concatenated, or read in parts, would become several with a slope each: "
    "give every unit its own slope (num_parameters), or use one PReLU for each part."
)


MOST = torch.finfo(torch.float32).max


class EideticPReLU(SegmentedLayer):
    """Drop-in for :class:`torch.nn.PReLU`: max(0, x) + slope * min(0, x).

    A frozen unit keeps the slope that it had when its task was finished.

    Args:
        num_parameters: 1, one slope for all of a task's units; or the number of units, a slope for each.
        init, device, dtype: as in torch.
        num_features: how many units it is given, where they share a slope. None: found when a network is wired.

    ``weight`` [1] or [L] are the live units' slopes (none where there is no live unit), ``frozen_weight`` [F] the
    frozen units'. Units lie in dimension 1 of [N, C, *], or in the last where a network's units do. Raises InputError
    for an input of another shape.
    """

    frozen_weight: Tensor
    frozen_names = ("frozen_weight",)

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device=None, dtype=None, *, num_features: int | None = None
    ):
        self.num_parameters, self.init = (
            whole_number("num_parameters", num_parameters, 1),
            real_number("init", init, -MOST, MOST),
        )
        if num_features is not None:
            num_features = whole_number("num_features", num_features, 1, unit="units")
        self.each = self.num_parameters > 1
        if self.each and num_features not in (None, num_parameters):
            raise InputError(f"num_parameters must be 1 or the number of units, {num_features}; got {num_parameters}.")
        super().__init__(num_parameters if self.each else num_features or 1)
        self.sized, factory = self.each or num_features is not None, placed(device, dtype)
        self.weight = nn.Parameter(torch.full((self.num_parameters,), self.init, **factory))
        self.register_buffer("frozen_weight", torch.empty(0, **factory), persistent=False)

    def fit(self, units: int) -> None:
        """Say how many units share the slope, where that was left open."""
        if not self.sized:
            self.segments, self.sized = Segments(units), True

    def forward(self, x: Tensor) -> Tensor:
        task = self.scope.task
        check_tensor(self, x, self.weight)
        present = self.derived(task)
        if x.dim() < 2 or x.shape[self.unit_dim] != present:
            hint = "" if self.sized else " Say how many units share the slope: num_features=."
            raise InputError(f"{self} expects {present} units in dimension {self.unit_dim}, got {list(x.shape)}.{hint}")

        if task is None and not self.segments.frozen_total:
            slopes = self.weight
        elif task is None:
            slopes = torch.cat([self.frozen_weight, self.weight.expand(self.segments.live)])
        else:
            slopes = self.frozen_weight[:present]
        if not x.numel():
            return x
        return F.prelu(x.movedim(self.unit_dim, 1), slopes.to(x.dtype)).movedim(1, self.unit_dim)

    def part(self, units: Tensor) -> EideticPReLU:
        """A fresh layer for some of this fresh layer's units, with their slopes."""
        if not self.each:
            raise ConversionError(ONE_SLOPE)
        part = EideticPReLU(len(units), self.init, self.weight.device, self.weight.dtype, num_features=len(units))
        part.weight = nn.Parameter(self.weight.detach()[units].clone(), self.weight.requires_grad)
        return part

    def cut_live(self, keep: Tensor) -> None:
        if self.each:
            self.weight = cut(self.weight, keep)
        elif not len(keep):
            self.weight = replace(self.weight, empty_like(self.weight, 0))

    def freeze_live(self) -> None:
        live = self.weight.detach().expand(self.segments.live)
        self.frozen_weight = torch.cat([self.frozen_weight, live])

    def allocate_frozen(self) -> None:
        self.frozen_weight = empty_like(self.weight, self.segments.frozen_total)

    def renew_live(self) -> None:
        live = self.segments.live if self.each else min(self.segments.live, 1)
        self.weight = replace(self.weight, empty_like(self.weight, live).fill_(self.init))

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"
