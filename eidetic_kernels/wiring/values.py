"""What a rule meets while a network is wired. Each node of the graph makes one of these values:

- the network's ``INPUT``, or something made of it alone;
- ``Units`` of one group, or of several side by side;
- ``Heads``: the same units, seen as attention heads;
- a ``Constant``: a tensor of the network that will belong to the units it is combined with;
- a ``Count`` or ``Sizes``: numbers that say how many units there are;
- an ``Unowned`` tensor, which belongs to no task;
- a list or tuple of these, for an operation with several results;
- None, for everything else: a plain number, a size that counts no units, a dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from .drafts import Draft


class Input:
    """The network's input, or something made of it alone: it belongs to no task."""


INPUT = Input()


@dataclass(frozen=True)
class Units:
    """A tensor that holds units of one group, or of several side by side, in dimension 1 or in the last.

    Args:
        drafts: the groups, in order.
        spatial: there are dimensions beside the units' and the batch.
        flat: those dimensions were folded into dimension 1, so that each unit is a block of ``pixels`` columns.
        pixels: the number of positions in them; None where it is not known.
        order: for shuffled units, the place in ``drafts``, side by side, of the unit at each position.
        last: the units lie in the last dimension, after the positions (tokens [N, T, C], channels-last images).
        batch: the dimension that holds the samples.
    """

    drafts: tuple[Draft, ...]
    spatial: bool = False
    flat: bool = False
    pixels: int | None = 1
    order: tuple[int, ...] | None = None
    last: bool = False
    batch: int = 0

    @property
    def parts(self) -> tuple[Draft, ...]:
        """The groups as they are tied by now."""
        return tuple(draft.root() for draft in self.drafts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def places(self) -> Sequence[int]:
        """``order``, also where nothing was shuffled."""
        return range(self.width) if self.order is None else self.order

    @property
    def folded(self) -> bool:
        """Whether each unit covers several columns."""
        return self.flat and self.pixels != 1

    @property
    def name(self) -> str:
        """The layers that make the units, for messages."""
        return " and ".join(repr(next(iter(part.producers))) for part in self.parts)

    def dim(self, rank: int) -> int:
        """Which of the tensor's ``rank`` dimensions holds the units."""
        return rank - 1 if self.last else 1

    def ordered(self, places: Iterable[int]) -> Units:
        """The same units in another order."""
        order = tuple(places)
        return replace(self, order=None if order == tuple(range(len(order))) else order)

    def flattened(self) -> Units:
        """The same units with their pixels folded into dimension 1. A single pixel needs no folding."""
        return replace(self, flat=(self.spatial or self.flat) and self.pixels != 1, spatial=False)


@dataclass(frozen=True)
class Heads:
    """Units of attention heads in two dimensions: heads in ``axis`` (-2 or -3), each head's ``dim`` units in the last.

    Few operations know what to do with them; all others refuse.
    """

    units: Units
    axis: int
    dim: int

    @property
    def name(self) -> str:
        return self.units.name


@dataclass(frozen=True)
class Constant:
    """A tensor of the network itself, of this shape, that belongs to the units it will be combined with."""

    path: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return repr(self.path)


@dataclass(frozen=True)
class Count:
    """A number that counts units: right in a shape, wrong as a factor, since pruning changes it.

    ``name`` says whose units, for messages.
    """

    name: str


@dataclass(frozen=True)
class Sizes:
    """A tensor's shape; ``counts`` says of each dimension whether its size counts units."""

    name: str
    counts: tuple[bool, ...]

    def at(self, index: int | slice) -> Count | Sizes | None:
        """One of the sizes, or some of them; None where none of these counts units."""
        if isinstance(index, int):
            return Count(self.name) if self.counts[index] else None
        counts = self.counts[index]
        return Sizes(self.name, counts) if any(counts) else None


@dataclass(frozen=True)
class Unowned:
    """A tensor of no task: a buffer of the network (at ``path``), or one made on the way (``path`` is empty).

    The input may be combined with it before the first layer. Units may not: its slices would not follow them when some
    are pruned. A single number (``scalar``) is the same for all units, so it counts as a number.
    """

    path: str
    scalar: bool


Value: TypeAlias = "Input | Units | Heads | Constant | Count | Sizes | Unowned | list[Value] | tuple[Value, ...] | None"
