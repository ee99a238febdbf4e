"""Unit groups: which layers' units belong together, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..layers import Parts, SegmentedLayer, Shared, StaircaseLayer
from ..layout import Segments, Source


@dataclass
class Group:
    """A unit group and the layers on it, by module path; ``built_width`` is its width when it was constructed.

    ``producers`` make the units; ``norms`` follow them, unit by unit.
    """

    segments: Segments
    built_width: int
    producers: dict[str, StaircaseLayer] = field(default_factory=dict)
    norms: dict[str, SegmentedLayer] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The first producer's path, and how many others are tied to it."""
        first, others = next(iter(self.producers)), len(self.producers) - 1
        return f"{first} (+{others} tied)" if others else first

    @property
    def layers(self) -> list[SegmentedLayer]:
        return [*self.producers.values(), *self.norms.values()]


@dataclass(frozen=True)
class Wiring:
    """What was found: the groups in order of execution, each layer's sources, and where the features are.

    ``dropouts``: modules without units of their own that must know which are frozen. ``split``: layers over several
    groups, by path, each to be replaced by its parts, one a group. ``orders``: of layers that read shuffled units,
    where each column lies. ``pieces``: what a split reads, and which of it makes each piece. ``last``: paths of layers
    and other modules whose units lie in the last dimension.
    """

    groups: tuple[Group, ...]
    sources: dict[str, tuple[Source, ...]]
    dropouts: dict[str, tuple[Source, ...]]
    features: tuple[Source, ...]
    split: dict[str, Parts | Shared]
    orders: dict[str, tuple[int, ...]]
    pieces: dict[str, tuple[tuple[Source, ...], tuple[tuple[int, ...], ...]]]
    shuffles: tuple[str, ...]
    last: frozenset[str]
