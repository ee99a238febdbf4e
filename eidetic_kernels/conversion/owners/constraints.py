"""What ties units together, collected while a graph is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Made:
    """What has units of its own: a layer's rows or the elements of a tensor of the network.

    ``first``: the number of the first of its ``count`` units.
    """

    path: str
    kind: str
    first: int
    count: int

    @property
    def units(self) -> Tensor:
        return torch.arange(self.first, self.first + self.count)


@dataclass
class Constraints:
    """Pairs of units that are the same unit of a group (``same``), or live and go together (``together``)."""

    made: dict[str, Made] = field(default_factory=dict)
    total: int = 0
    _same: list[Tensor] = field(default_factory=list)
    _together: list[Tensor] = field(default_factory=list)

    def new(self, path: str, kind: str, count: int) -> Made:
        made = self.made[path] = Made(path, kind, self.total, count)
        self.total += count
        return made

    def again_or_new(self, path: str, kind: str, count: int) -> Made:
        return self.made.get(path) or self.new(path, kind, count)

    def taken(self, path: str) -> None:
        """The tensor at ``path`` is a layer's weight after all: its elements are nobody's business."""
        made = {}
        for name, each in self.made.items():
            made[f"{name} (a weight)" if name == path and each.kind == "tensor" else name] = each
        self.made = made

    def makers(self, units: Tensor) -> Tensor:
        """The number of the layer that made each unit; -1 for what no layer made."""
        if not self.made:
            return torch.full_like(units, -1)
        number, layer = self._numbers(units), self._are_layers()
        return torch.where((units >= 0) & layer[number.clamp_min(0)], number, -1)

    def _numbers(self, units: Tensor) -> Tensor:
        firsts = torch.tensor([made.first for made in self.made.values()], dtype=torch.long)
        return torch.searchsorted(firsts, units.contiguous(), right=True) - 1

    def _are_layers(self) -> Tensor:
        return torch.tensor([made.kind != "tensor" for made in self.made.values()], dtype=torch.bool)

    def same(self, a: Tensor, b: Tensor) -> None:
        """Each unit of ``a`` is the same as that of ``b``. Two units of one layer live together, each by itself."""
        pairs = _pairs(a, b)
        if pairs.numel():
            one = self._numbers(pairs[0]) == self._numbers(pairs[1])
            self._keep(self._same, pairs[:, ~one])
            self._keep(self._together, pairs[:, one])

    def together(self, a: Tensor, b: Tensor) -> None:
        """Each unit of ``a`` lives and goes together with that of ``b``."""
        self._keep(self._together, _pairs(a, b))

    def _keep(self, kept: list[Tensor], pairs: Tensor) -> None:
        if pairs.numel():
            kept.append(distinct(pairs))

    def solved(self) -> Solved:
        """All pairs at once."""
        none = torch.empty(2, 0, dtype=torch.long)
        same, together = (torch.cat([none, *kept], 1) for kept in (self._same, self._together))
        shared = self._shared(same, together)
        is_shared = torch.zeros(self.total, dtype=torch.bool)
        for path in shared:
            is_shared[self.made[path].units] = True
        same, together = (pairs[:, ~(is_shared[pairs[0]] | is_shared[pairs[1]])] for pairs in (same, together))
        grains = components(self.total, torch.cat([same, together], 1))
        while True:
            roots = components(self.total, same)
            inside = self._broken_inside(roots, grains)
            if not bool(inside.any()):
                return Solved(roots, grains, shared)
            same = same[:, ~(inside[same[0]] | inside[same[1]])]

    def _broken_inside(self, roots: Tensor, grains: Tensor) -> Tensor:
        """Which rows are of layers in whose grains (a head's query and values, side by side) some rows alone are the
        same as another layer's."""
        layers = [made for made in self.made.values() if made.kind != "tensor"]
        tied = signatures(roots, layers)
        found = torch.zeros(self.total, dtype=torch.bool)
        for made in layers:
            own, grain = roots[made.units], grains[made.units]
            differ = (own[1:] != own[:-1] + 1) | (tied[own[1:]] != tied[own[:-1]])
            if bool((differ & (grain[1:] == grain[:-1])).any()):
                found[made.units] = True
        return found

    def _shared(self, same: Tensor, together: Tensor) -> set[str]:
        """Tensors an element of which meets several units of a layer that are not of one grain: all share them."""
        made = list(self.made.values())
        pairs = torch.cat([same, together], 1)
        layer = self._are_layers()
        numbers = torch.stack([self._numbers(each) for each in pairs]) if pairs.numel() else pairs
        of_layers = layer[numbers].all(0) if pairs.numel() else torch.zeros(0, dtype=torch.bool)
        roots = components(self.total, pairs[:, of_layers])
        shared = set()
        for number, each in enumerate(made):
            if each.kind != "tensor":
                continue
            for own, other in ((0, 1), (1, 0)):
                mine = (numbers[own] == number) & layer[numbers[other]] if pairs.numel() else of_layers
                if bool(mine.any()):
                    meetings = _keys(torch.stack([pairs[own][mine], numbers[other][mine]]))  # elements with layers
                    different, meeting = torch.unique(meetings, return_inverse=True)
                    if len(different) < distinct(torch.stack([meeting, roots[pairs[other][mine]]])).shape[1]:
                        shared.add(each.path)
        return shared


def signatures(roots: Tensor, layers: Sequence[Made]) -> Tensor:
    """For each root a number that says which layers have it."""
    numbers = torch.zeros(len(roots), dtype=torch.long)
    marks = torch.randint(2**62, (len(layers),), generator=torch.Generator().manual_seed(0))
    for made, mark in zip(layers, marks):
        numbers.index_add_(0, roots[made.units], mark.expand(made.count))
    return numbers


@dataclass(frozen=True)
class Solved:
    """For each unit the first that it is the ``same`` as and that it lives ``together`` with; ``shared`` tensors."""

    same: Tensor
    together: Tensor
    shared: set[str]


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    pairs = torch.stack([a.flatten(), b.flatten()])
    return pairs[:, (pairs[0] >= 0) & (pairs[1] >= 0) & (pairs[0] != pairs[1])]


def distinct(pairs: Tensor) -> Tensor:
    """The different ones among pairs [2, n] of numbers below 2^31."""
    keys = torch.unique(_keys(pairs))
    return torch.stack([keys >> 32, keys & 0xFFFFFFFF])


def _keys(pairs: Tensor) -> Tensor:
    return pairs[0] << 32 | pairs[1]


def components(total: int, pairs: Tensor) -> Tensor:
    """The smallest member of each number's component, for numbers below ``total`` joined by ``pairs`` [2, n]."""
    root = torch.arange(total)
    a, b = pairs
    while True:
        ra, rb = root[a], root[b]
        if bool((ra == rb).all()):
            return root
        low, high = torch.minimum(ra, rb), torch.maximum(ra, rb)
        root.scatter_reduce_(0, high, low, "amin")
        while True:  # every number points to its root
            further = root[root]
            if bool((further == root).all()):
                break
            root = further
