"""A group while it is being found."""

from __future__ import annotations

from collections.abc import Iterable

from ..layers import SegmentedLayer, StaircaseLayer
from ..layout import Segments
from .groups import Group


class Draft:
    """A group while it is being found. Tied groups form a tree, whose root holds the members.

    ``path`` names the layer that makes the units (the first one, of tied layers), and ``start`` is the number of the
    first of these units in that layer. ``final`` is the group that comes of it, once all are found.
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

    @property
    def segments(self) -> Segments:
        """How the units of the group are owned, which is known once all groups are found."""
        assert self.final is not None, "groups are still being found"
        return self.final.segments

    def cuts(self, places: Iterable[int]) -> set[tuple[str, int]]:
        """The (layer, unit) pairs to cut at, so that this group is cut before its units ``places``.

        Layers tied to it are cut when they are tied again.
        """
        return {(self.path, self.start + place) for place in places}
