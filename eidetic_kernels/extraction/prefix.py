"""What a task needs of a network: the segments of each unit group that it reads, directly or through others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast, overload

from torch import nn

from ..layers import EideticGroupNorm, EideticLayerNorm, LayerNormParts, StaircaseLayer
from ..layers.prefix import EideticPrefix
from ..layout import Fixed, Rows, Segments, Source
from ..tasks.base import BaseNetwork, head_of

_Back = EideticLayerNorm | EideticGroupNorm | EideticPrefix


class Prefix:
    """The segments that finished task ``task`` of ``network`` needs.

    ``kept`` maps each unit group's segments to a copy in which the segments that are not needed are empty.
    """

    def __init__(self, network: BaseNetwork, task: int):
        self.task = task
        self._producers = {group.segments: list(group.producers.values()) for group in network.groups}
        # What takes a number of all units that a segment may see; LayerNorms of several groups do it together.
        joint = [cast("list[_Back]", [*m]) for m in network.modules() if isinstance(m, LayerNormParts)]
        alone = {module for module in network.modules() if _looks_back(module)}
        self._backs = joint + [[each] for each in cast("set[_Back]", alone).difference(*joint)]

        needed: dict[Segments, set[int]] = {segments: set() for segments in self._producers}
        self._need(needed, self._read_by(head_of(network, task), task))
        for segments, tasks in needed.items():
            present = _nonempty(segments, range(task + 1))
            if present and not tasks:  # units nobody reads, but poolings on their way refuse images without channels
                self._need(needed, [(segments, present[0])])
        self.kept = {segments: _emptied(segments, tasks) for segments, tasks in needed.items()}

    @property
    def lacks_channels(self) -> bool:
        """Whether the task has no unit at all in some unit group."""
        return any(not segments.present(self.task) for segments in self.kept.values())

    @overload
    def kept_of(self, group: Segments) -> Segments: ...
    @overload
    def kept_of(self, group: Segments | Fixed) -> Segments | Fixed: ...
    def kept_of(self, group: Segments | Fixed) -> Segments | Fixed:
        """What is kept of ``group``: all of it, if it belongs to no task or to a head."""
        if not isinstance(group, Segments):
            return group
        kept = self.kept.get(group.units, group.units)
        return kept if group.per == 1 else Rows(kept, group.per)

    def producers(self, segments: Segments) -> list[StaircaseLayer]:
        """The layers that make the units ``segments``."""
        return self._producers.get(segments.units, [])

    def rows(self, segments: Segments) -> list[tuple[int, slice]]:
        """(task, its units in the group) of the segments that are kept and not empty."""
        sizes = self.kept_of(segments).frozen[: self.task + 1]
        return [(t, slice(segments.start(t), segments.stop(t))) for t, size in enumerate(sizes) if size]

    def sources(self, layer: StaircaseLayer) -> tuple[Source, ...]:
        """What ``layer`` reads, of what is kept."""
        return tuple(replace(source, group=self.kept_of(source.group)) for source in layer.sources)

    def _read_by(self, layer: StaircaseLayer, reader: int) -> list[tuple[Segments, int]]:
        """(group, task) of the segments that segment ``reader`` of ``layer`` reads."""
        tasks = range(reader + 1) if layer.forward_transfer[reader] else (reader,)
        groups = [source.group.units for source in layer.sources if isinstance(source.group, Segments)]
        return [(group, t) for group in groups for t in _nonempty(group, tasks)]

    def _need(self, needed: dict[Segments, set[int]], found: Iterable[tuple[Segments, int]]) -> None:
        """Add the segments ``found`` to ``needed``, and whatever they are computed from."""
        found = list(found)
        while found:
            segments, task = found.pop()
            if task in needed[segments]:
                continue
            needed[segments].add(task)
            for layer in self._producers[segments]:
                found += self._read_by(layer, task)
            for parts in self._backs:
                if any(part.segments.units is segments for part in parts):
                    nested = all(part.forward_transfer[task] for part in parts)
                    seen = range(task + 1) if nested else (task,)
                    found += [(part.segments.units, t) for part in parts for t in _nonempty(part.segments, seen)]


def _looks_back(module: nn.Module) -> bool:
    """Whether ``module`` takes a statistic over units of earlier segments, too, where its segment reads nested."""
    in_grains = isinstance(module, EideticGroupNorm) and module.together_in > 0
    return isinstance(module, _Back) and not in_grains


def _emptied(segments: Segments, tasks: set[int]) -> Segments:
    """``segments`` in which only those of ``tasks`` hold units."""
    sizes = tuple(size if task in tasks else 0 for task, size in enumerate(segments.frozen))
    return Segments(segments.width, 0, sizes)


def _nonempty(segments: Segments, tasks: Sequence[int]) -> list[int]:
    return [t for t in tasks if segments.frozen[t]]
