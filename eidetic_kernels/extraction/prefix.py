"""What a task needs of a network: of each unit group the segments that it reads, directly or through others."""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import EideticLayerNorm, LayerNormParts, StaircaseLayer
from ..layout import Segments, Source
from ..tasks.base import BaseNetwork

NO_TWIN = "{} has no plain twin yet, so this task cannot be extracted."


class Prefix:
    """What task ``task`` of ``network`` needs: of each unit group the segments it reads, directly or through others.

    ``kept`` holds a group's segments with those that are not needed emptied, by the group's own segments.
    """

    def __init__(self, network: BaseNetwork, task: int):
        self.task = task
        self._producers = {group.segments: list(group.producers.values()) for group in network.groups}
        # LayerNorms by their parts, one a group: statistics run over what all of them may see.
        joint = [list(module) for module in network.modules() if isinstance(module, LayerNormParts)]
        norms = {module for module in network.modules() if isinstance(module, EideticLayerNorm)}
        self._norms = joint + [[norm] for norm in norms.difference(*joint)]
        needed: dict[Segments, set[int]] = {segments: set() for segments in self._producers}
        self._need(needed, self._read_by(network.heads[task], task))
        for segments, tasks in needed.items():
            present = _nonempty(segments, range(task + 1))
            if present and not tasks:  # units nobody reads, but poolings on their way refuse images without channels
                self._need(needed, [(segments, present[0])])
        self.kept = {
            segments: Segments(
                segments.width, 0, tuple(size if t in tasks else 0 for t, size in enumerate(segments.frozen))
            )
            for segments, tasks in needed.items()
        }

    def rows(self, segments: Segments) -> list[tuple[int, slice]]:
        """The segments that are kept of a group, and which of its units they are; none is empty."""
        sizes = self.kept.get(segments, segments).frozen[: self.task + 1]
        return [(t, slice(segments.start(t), segments.stop(t))) for t, size in enumerate(sizes) if size]

    def sources(self, layer: StaircaseLayer) -> tuple[Source, ...]:
        """What the layer reads, of what is kept."""
        return tuple(Source(self.kept.get(source.group, source.group), source.block) for source in layer.sources)

    def _read_by(self, layer: StaircaseLayer, reader: int) -> list[tuple[Segments, int]]:
        tasks = range(reader + 1) if layer.forward_transfer[reader] else (reader,)
        groups = [source.group for source in layer.sources if isinstance(source.group, Segments)]
        return [(group, t) for group in groups for t in _nonempty(group, tasks)]

    def _need(self, needed: dict[Segments, set[int]], found: list[tuple[Segments, int]]) -> None:
        """Add segments to ``needed``, and whatever they are made of."""
        found = list(found)
        while found:
            segments, task = found.pop()
            if task not in needed[segments]:
                needed[segments].add(task)
                for layer in self._producers[segments]:
                    found += self._read_by(layer, task)
                for parts in self._norms:
                    if any(part.segments is segments for part in parts):
                        nested = all(part.forward_transfer[task] for part in parts)
                        seen = range(task + 1) if nested else (task,)
                        found += [(part.segments, t) for part in parts for t in _nonempty(part.segments, seen)]


def _nonempty(segments: Segments, tasks: Sequence[int]) -> list[int]:
    return [t for t in tasks if segments.frozen[t]]
