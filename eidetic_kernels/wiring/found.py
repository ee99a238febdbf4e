"""What has been found of a network's wiring while its layers are named, and the wiring that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..layers import Parts, Shared, StaircaseLayer
from ..layout import Fixed, Segments, Source
from .diagnostics import Place
from .drafts import Draft
from .groups import Group, Wiring
from .values import Input, Units, Value


class Reading(NamedTuple):
    """A layer that makes units, and the value that it reads."""

    layer: StaircaseLayer
    value: Input | Units

    @property
    def columns(self) -> int:
        return self.layer.weight.shape[1]

    @property
    def block(self) -> int:
        """How many neighbouring columns each unit covers."""
        return self.columns // self.value.width if isinstance(self.value, Units) else 1

    def check(self, where: Place) -> None:
        """Refuse a layer whose columns are not those of its input."""
        value, columns = self.value, self.columns
        if isinstance(value, Units) and (columns % value.width or (not value.flat and columns != value.width)):
            raise where.refused(
                f"a layer with {columns} input columns reads {value.width} units of "
                f"{value.name}" + (", flattened" if value.flat else "") + ": the sizes do not fit."
            )

    def sources(self, where: Place) -> tuple[Source, ...]:
        """How the layer reads its input, once the groups are known."""
        self.check(where)  # again: by now other layers may be tied to what it reads
        if isinstance(self.value, Input):
            return (Source(Fixed(self.columns)),)
        return sources_of(self.value, self.block)


@dataclass
class Found:
    """What a builder has found so far.

    Args:
        drafts: the groups, in order of execution.
        reads: each layer that makes units and what it reads, by path.
        dropped: what each dropout (or another module that must know which units are frozen) is given, and where.
        split: layers over several groups, each of which gets one part for each group.
        divided: what each split cuts apart, and the numbers of the groups in each piece.
        last: paths of modules whose units lie in the last dimension.
    """

    drafts: list[Draft] = field(default_factory=list)
    reads: dict[str, Reading] = field(default_factory=dict)
    dropped: dict[str, tuple[Units, Place]] = field(default_factory=dict)
    split: dict[str, Parts | Shared] = field(default_factory=dict)
    divided: dict[str, tuple[Units, tuple[tuple[int, ...], ...]]] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)

    def has(self, path: str) -> bool:
        """Whether layer ``path`` was met before."""
        normed = (name for draft in self.drafts for name in draft.norms)
        return path in self.reads or path in self.split or path in normed

    def wiring(self, output: Value, where: Place) -> Wiring:
        """The wiring of the network whose forward returns ``output``, which comes from ``where``.

        Raises ConversionError where ``output`` is no tensor of features, and where what a layer reads does not fit it.
        """
        if not isinstance(output, Units):
            raise where.refused(
                "forward must return features that a layer of this package produced: one tensor whose dimension 1 "
                "holds units. It returned " + ("the input." if isinstance(output, Input) else "something else.")
            )

        groups = tuple(_grouped(draft) for draft in self.drafts)
        return Wiring(
            groups,
            sources={path: reading.sources(Place(path)) for path, reading in self.reads.items()},
            dropouts={path: self._dropout_sources(value, place) for path, (value, place) in self.dropped.items()},
            features=_features(output, where),
            split=self.split,
            orders={
                path: _columns(reading.value.order, reading.block)
                for path, reading in self.reads.items()
                if isinstance(reading.value, Units) and reading.value.order is not None
            },
            pieces={path: (sources_of(value, 1), numbers) for path, (value, numbers) in self.divided.items()},
            last=frozenset(self.last),
        )

    def _dropout_sources(self, value: Units, where: Place) -> tuple[Source, ...]:
        if not value.flat:
            return sources_of(value, 1)
        if value.pixels is not None:
            return sources_of(value, value.pixels)
        # The number of pixels is known from a layer that reads the same flattened units.
        blocks = {
            reading.block
            for reading in self.reads.values()
            if isinstance(reading.value, Units) and reading.value.parts == value.parts and reading.value.flat
        }
        if len(blocks) != 1:
            raise where.refused(
                f"dropout after flattening {value.name}: the number of pixels a channel was "
                "flattened into is unknown, since not one linear layer reads it. Drop out before flattening."
            )
        return sources_of(value, blocks.pop())


def sources_of(value: Units, block: int) -> tuple[Source, ...]:
    """The groups of ``value``, each unit covering ``block`` columns."""
    return tuple(Source(part.segments, block) for part in value.parts)


def _grouped(draft: Draft) -> Group:
    draft.final = Group(Segments(draft.width, grain=draft.grain), draft.width, draft.producers, draft.norms)
    return draft.final


def _columns(order: tuple[int, ...], block: int) -> tuple[int, ...]:
    """Where each column of a layer that reads shuffled units lies."""
    return tuple(place * block + i for place in order for i in range(block))


def _features(output: Units, where: Place) -> tuple[Source, ...]:
    if output.order is not None:
        raise where.refused(
            f"the features are units of {output.name}, shuffled: end with a layer that reads them, or leave the "
            "last shuffle out."
        )
    if output.spatial or output.pixels is None:
        raise where.refused(
            f"the features are an image of {output.name} whose size is not known from the "
            "code: end with adaptive pooling and flattening (AdaptiveAvgPool2d(1), flatten(1)), or with a "
            "linear layer."
        )
    return sources_of(output, output.pixels)
