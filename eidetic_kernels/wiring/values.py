"""What an operation's rule meets while a network is wired: the input, units, heads, counts, fixed tensors.

Every value in the network is either the network's input, or units of one group or of several side by side, possibly
flattened so that each unit covers a block of columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..layers import SegmentedLayer, StaircaseLayer
from .groups import Group


class Draft:
    """A group while it is being found; tied groups form a tree whose root holds the members.

    ``path``, ``start``: of which layer's units these are (the first one's, of tied layers), and from which on.
    """

    def __init__(self, width: int, path: str, start: int):
        self.width, self.grain = width, 1
        self.path, self.start = path, start
        self.parent: Draft | None = None
        self.producers: dict[str, StaircaseLayer] = {}
        self.norms: dict[str, SegmentedLayer] = {}
        self.final: Group | None = None

    def root(self) -> Draft:
        return self if self.parent is None else self.parent.root()

    def cuts(self, places: Iterable[int]) -> set[tuple[str, int]]:
        """(layer, unit) before which to cut, for this group to be cut before its units ``places``.

        Layers tied to it follow when they are tied again (see ``_cut_alike``).
        """
        return {(self.path, self.start + place) for place in places}


class Cut(Exception):
    """Some layers' units must be several groups: the network is wired again, with these layers cut there."""

    def __init__(self, places: set[tuple[str, int]]):
        super().__init__(places)
        self.places = places


@dataclass(frozen=True)
class Units:
    """A value that holds units of one group, or of several concatenated in order, in dimension 1 or in the last.

    ``spatial``: it has dimensions beside that one and the batch, ``pixels`` positions of them where that is known.
    ``flat``: they were folded into dimension 1, each unit being a block of ``pixels`` columns. ``order``: where they
    were shuffled, the place in ``drafts``, side by side, of the unit that the original has at each position. ``last``:
    the units lie in the last dimension, after the positions (tokens [N, T, C], images with channels last). ``batch``:
    which dimension holds the samples.
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
        return tuple(draft.root() for draft in self.drafts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def places(self) -> Sequence[int]:
        """``order``, also where nothing was shuffled."""
        return range(self.width) if self.order is None else self.order

    def ordered(self, places: Iterable[int]) -> Units:
        """The same units in another order."""
        order = tuple(places)
        return replace(self, order=None if order == tuple(range(len(order))) else order)

    @property
    def name(self) -> str:
        """Where the units come from, for messages."""
        return " and ".join(repr(next(iter(part.producers))) for part in self.parts)

    def flattened(self) -> Units:
        """The same units with their pixels folded into dimension 1; one pixel is folded already."""
        return replace(self, flat=(self.spatial or self.flat) and self.pixels != 1, spatial=False)


@dataclass(frozen=True)
class Heads:
    """Units of attention heads in two dimensions: heads in ``axis`` (-2 or -3), each head's ``dim`` units in the last.

    Few operations know what to do with them; all others refuse.
    """

    units: Units
    axis: int
    dim: int


@dataclass(frozen=True)
class Constant:
    """A tensor of the network itself, of this shape, that belongs to the units it will be combined with."""

    path: str
    shape: tuple[int, ...]


class Input:
    """The network's input, or something made of it alone: it belongs to no task."""


INPUT = Input()


@dataclass(frozen=True)
class Count:
    """A number made of how many units there are: right in a shape, wrong as a factor, since pruning changes it.

    ``name``: whose units, for messages.
    """

    name: str


@dataclass(frozen=True)
class Sizes:
    """A tensor's shape; ``counts`` says of each dimension whether its size counts units."""

    name: str
    counts: tuple[bool, ...]

    def at(self, index: int | slice) -> Count | Sizes | None:
        """One of the sizes, or some of them; None where no unit is counted."""
        counts = self.counts[index]
        if isinstance(index, int):
            return Count(self.name) if counts else None
        return Sizes(self.name, counts) if any(counts) else None


@dataclass(frozen=True)
class Fixed:
    """A tensor of no task: a buffer (at ``path``), or one made on the way (``path`` is empty).

    The input may be combined with it before the first layer. Units may not: its slices would not follow theirs. One
    number (``scalar``) is the same for all.
    """

    path: str
    scalar: bool
