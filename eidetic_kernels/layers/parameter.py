"""EideticParameter: a tensor of the network itself (a class token, a layer scale) whose units belong to tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checking import LARGEST, instance, require, whole_number
from ..errors import InputError
from ..layout import Segments
from .segmented import SegmentedLayer
from .succession import cut, empty_like, replace


class EideticParameter(SegmentedLayer):
    """Stands for a :class:`torch.nn.Parameter` that is combined with units: position embeddings and class tokens
    [1, T, C], layer scales [C, 1, 1]. Its forward takes nothing and returns the tensor.

    Each unit has its own slice, so like BatchNorm this follows a unit group: frozen slices are buffers.

    Args:
        values: the tensor to begin with; kept as it is (not copied) if it is a Parameter.
        dim: which dimension holds the units. None: found from what it is combined with, when the network is wired.
        shared: how many neighbouring units share a slice (the units of a head, where each head has one slice).

    ``weight`` [L / shared, *other dimensions] are the live units' slices, ``frozen_weight`` [F / shared, *] the frozen
    ones. Fresh units are drawn from a normal distribution with the mean and standard deviation of ``values`` (buffer
    ``fresh``). Raises InputError for ``values`` without a dimension that could hold units.
    """

    frozen_weight: Tensor
    fresh: Tensor
    frozen_names = ("frozen_weight",)
    live_names = ("weight", "fresh")

    def __init__(self, values: Tensor, dim: int | None = -1, shared: int = 1):
        instance("values", values, Tensor, "a floating-point tensor")
        if not values.dim() or not values.numel():
            raise InputError(f"a tensor of shape {list(values.shape)} has no dimension that could hold units.")
        dense = values.is_floating_point() and values.layout == torch.strided
        require(dense, "values must be a dense floating-point tensor", values)
        if dim is not None:
            dim = self._dimension(dim, values.dim())
        shared = whole_number("shared", shared, 1, unit="units")
        super().__init__(values.shape[-1 if dim is None else dim] * shared, shared)
        self.shape, self.shared = tuple(values.shape), shared
        self.dim: int | None = None
        self.weight = values if isinstance(values, nn.Parameter) else nn.Parameter(values)
        self.register_buffer("frozen_weight", values.new_empty(0), persistent=False)
        spread, mean = torch.std_mean(values.detach(), correction=0)
        self.register_buffer("fresh", torch.stack([mean, spread]))
        if dim is not None:
            self.orient(dim)

    def orient(self, dim: int) -> None:
        """Say which dimension holds the units, where that was left open.

        Raises InputError when another dimension was given before.
        """
        dim = self._dimension(dim, len(self.shape)) % len(self.shape) - len(self.shape)
        if self.dim is not None:
            if self.dim != dim:
                raise InputError(f"{self} holds its units in dimension {self.dim}, not {dim}.")
            return
        self.dim = dim
        self.segments = Segments(self.shape[dim] * self.shared, grain=self.shared)
        self.weight = nn.Parameter(self.weight.detach().movedim(dim, 0).contiguous(), self.weight.requires_grad)
        self.frozen_weight = empty_like(self.weight, 0, *self.weight.shape[1:])

    def _dimension(self, dim: int, dims: int) -> int:
        dim = whole_number("dim", dim, -LARGEST)
        require(-dims <= dim < dims, f"dim must be one of the {dims} dimensions, {-dims} to {dims - 1}", dim)
        return dim

    def forward(self) -> Tensor:
        if self.dim is None:
            raise InputError(f"{self} does not know which dimension holds its units: give dim, or call orient(dim).")
        task = self.scope.task
        if task is not None:
            units = self.frozen_weight[: self.segments.present(task) // self.shared]
        elif self.segments.frozen_total:
            units = torch.cat([self.frozen_weight, self.weight])
        else:
            units = self.weight
        return units.movedim(0, self.dim)

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep[:: self.shared] // self.shared)

    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.weight.detach()])

    def allocate_frozen(self) -> None:
        rows = self.segments.frozen_total // self.shared
        self.frozen_weight = empty_like(self.weight, rows, *self.weight.shape[1:])

    def renew_live(self) -> None:
        mean, spread = self.fresh
        values = empty_like(self.weight, self.segments.live // self.shared, *self.weight.shape[1:])
        self.weight = replace(self.weight, values.normal_() * spread + mean if len(values) else values)

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, dim={self.dim}"
