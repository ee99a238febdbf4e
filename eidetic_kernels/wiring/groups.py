"""Unit groups: which layers' units belong together, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..layers import Parts, SegmentedLayer, Shared, StaircaseLayer
from ..layout import Rows, Segments, Source


@dataclass
class Group:
    """A unit group and the layers on it, by module path.

    Args:
        segments: how the group's units are owned.
        built_width: the group's width when the network was constructed.
        producers: the layers that make the units.
        norms: the layers that follow them, unit by unit.
        spared: no unit is ever pruned: they are the classes of a network that ends in no single linear layer.
    """

    segments: Segments
    built_width: int
    producers: dict[str, StaircaseLayer] = field(default_factory=dict)
    norms: dict[str, SegmentedLayer] = field(default_factory=dict)
    spared: bool = False

    @property
    def name(self) -> str:
        """The first producer's path, and how many others are tied to it."""
        first, others = next(iter(self.producers)), len(self.producers) - 1
        return f"{first} (+{others} tied)" if others else first

    def rows(self, layer: SegmentedLayer) -> Segments:
        """The group's units as ``layer``, which has not joined it yet, makes rows for them."""
        per = layer.segments.width // self.built_width
        return self.segments if per == 1 else Rows(self.segments, per)

    @property
    def layers(self) -> list[SegmentedLayer]:
        return [*self.producers.values(), *self.norms.values()]


@dataclass(frozen=True)
class Wiring:
    """What was found of a network.

    Args:
        groups: the unit groups, in order of execution.
        sources: what each layer that makes units reads, by path.
        dropouts: what modules without units of their own are given, which must know which units are frozen.
        features: the groups that the forward's output consists of.
        split: layers over several groups, each to be replaced by its parts, one for each group.
        orders: for layers that read shuffled units, where each column lies.
        pieces: for each split, what it reads, and the numbers of the groups that make each piece.
        last: paths of layers and other modules whose units lie in the last dimension.
    """

    groups: tuple[Group, ...]
    sources: dict[str, tuple[Source, ...]]
    dropouts: dict[str, tuple[Source, ...]]
    features: tuple[Source, ...]
    split: dict[str, Parts | Shared]
    orders: dict[str, tuple[int, ...]]
    pieces: dict[str, tuple[tuple[Source, ...], tuple[tuple[int, ...], ...]]]
    last: frozenset[str]
