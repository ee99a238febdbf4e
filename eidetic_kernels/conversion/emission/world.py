"""The same network after some units were pruned at random: whatever is emitted is tried there."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ...wiring.diagnostics import at_node
from ..owners.groups import Grouped
from ..owners.maps import NOBODY, Owners


class World:
    """The same network after some units were pruned at random: whatever is emitted is tried there."""

    def __init__(self, grouped: Grouped, seed: int = 0):
        self.grouped = grouped
        generator = torch.Generator().manual_seed(seed)
        self.keep: list[Tensor] = []
        for width, grain in zip(grouped.widths, grouped.grains):
            count = width // grain
            keep = torch.rand(count, generator=generator) < 0.6
            keep[torch.randint(count, (1,), generator=generator)] = True
            if width > 1:  # where there is one unit, its dimension cannot be told from others of size 1
                keep[torch.randint(count, (1,), generator=generator)] = False  # a task may have none of a group's units
            if count > 1 and not bool(keep.any()):
                keep[0] = True
            self.keep.append(keep.repeat_interleave(grain))
        total = len(grouped.group)
        self.number = grouped.group * 2**32 + grouped.place
        self.alive = torch.ones(total, dtype=torch.bool)
        for number, keep in enumerate(self.keep):
            mine = (grouped.group == number).nonzero().flatten()
            self.alive[mine] = keep[grouped.place[mine]]

    def kept(self, x: Owners, node: fx.Node) -> list[Tensor | None]:
        """For each dimension the indices that are left; None where pruning does not change its size."""
        units = x.units
        alive = torch.where(units >= 0, self.alive[units.clamp_min(0)], True)
        if units.numel() == 1 and x.coarse:  # scores of a head: there, but of nothing
            return [None] * units.dim()
        masks: list[Tensor | None] = []
        product = torch.ones([1] * units.dim(), dtype=torch.bool)
        for dim, size in enumerate(units.shape):
            mask = None
            if size > 1:
                others = [d for d in range(units.dim()) if d != dim]
                any_left = alive.amax(others) if others else alive
                if not bool(any_left.all()):
                    mask = any_left
                    shape = [1] * units.dim()
                    shape[dim] = -1
                    product = product & mask.view(shape)
            masks.append(None if mask is None else mask.nonzero().flatten())
        if not bool((alive == product.expand_as(alive)).all()):
            raise at_node(node).refused("units cannot go one by one: they lie across several dimensions.")
        return masks

    def pruned(self, x: Owners, node: fx.Node) -> Tensor:
        """The map of (group, place) that is left, as one number."""
        units, shape = self.numbers(x.units), list(x.running)
        for dim, left in enumerate(self.kept(x, node)):
            if left is not None:
                units, shape[dim] = units.index_select(dim, left), len(left)
        return units.expand(shape)

    def numbers(self, units: Tensor) -> Tensor:
        """Each unit as one number of its group and its place there."""
        return torch.where(units >= 0, self.number[units.clamp_min(0)], NOBODY)
