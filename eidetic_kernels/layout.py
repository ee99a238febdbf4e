"""The staircase as plain integers: who owns which units, and what each segment may read.

A unit group keeps its units sorted by owner, ``[task 0 | task 1 | ... | live]``. A segment that reads *nested*
sees every unit up to its own end (forward transfer); one that reads *disjoint* sees its own units only. Both
are spans of columns, so the paper's structured mask (section 3.1, Figure 5) needs no mask tensor.
No torch here, and nothing of ours but the checks of arguments and their errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import lcm
from typing import Any, NamedTuple

from .checking import whole_number
from .errors import CapacityError, InputError

# In place of a task: live units alone run, and what they read of frozen units is cached (FrozenFeatures).
LIVE = -1


class Span(NamedTuple):
    """The half-open range ``[start, stop)`` of units or columns."""

    start: int
    stop: int


class Geometry(NamedTuple):
    """Stride, padding and dilation of a convolution, (vertical, horizontal) each."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    def output_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
        """The size of what a convolution by a kernel of the sizes ``kernel`` makes of an image of ``size``."""
        return tuple(
            (length + 2 * padding - dilation * (side - 1) - 1) // stride + 1
            for length, side, stride, padding, dilation in zip(size, kernel, *self)
        )


class Segments:
    """How the units of one group are owned: frozen segment sizes in task order, then the live ones.

    This is the only record of a group's sizes, and these methods are its only writers. ``width`` is how many
    units the group may hold, ``frozen_total`` how many finished tasks own. Sizes of zero are normal. ``version`` counts
    the changes, so that what was derived from the sizes is known to be out of date.

    ``grain``: this many consecutive units are pruned and frozen together (the channels of one group of a grouped
    convolution). Every size is a multiple of it; another size raises InputError. ``multiple``: sizes are also rounded
    to multiples of this where units allow (the tile of a GPU's product). That is a choice, which ``ladder`` and
    ``fitting`` follow.

    Raises InputError for a size that is no whole number, and CapacityError for more units than ``width``.
    """

    per = 1

    def __init__(self, width: int, live: int | None = None, frozen: tuple[int, ...] = (), grain: int = 1):
        self.grain, self.multiple = whole_number("grain", grain, 1, unit="units"), 1
        self.width = self._whole("width", width)
        self.version = 0
        frozen = tuple(self._whole("frozen segment", size) for size in frozen)
        self._hold(frozen, self._whole("live", self.width - sum(frozen) if live is None else live))
        if self.total > self.width:
            raise CapacityError(f"{self.total} units were given to a group of width {self.width}; widen it first.")

    @property
    def units(self) -> Segments:
        """The group's own units, where these are a layer's rows (:class:`Rows`)."""
        return self

    @property
    def tasks(self) -> int:
        """How many finished tasks have a segment here (possibly empty)."""
        return len(self.frozen)

    @property
    def total(self) -> int:
        """Frozen and live units together."""
        return self.frozen_total + self.live

    @property
    def free(self) -> int:
        """Units not owned by a finished task: what the task in training may use."""
        return self.width - self.frozen_total

    def size(self, task: int) -> int:
        """How many units segment ``task`` has; ``task == tasks`` is the live segment."""
        return self.frozen[task] if task < self.tasks else self.live

    def start(self, task: int) -> int:
        return sum(self.frozen[:task])

    def stop(self, task: int) -> int:
        return self.start(task) + self.size(task)

    def span(self, task: int, nested: bool) -> Span:
        """The units that segment ``task`` of a reader may see; ``task == tasks`` is the live segment."""
        return Span(0 if nested else self.start(task), self.stop(task))

    def present(self, task: int | None) -> int:
        """How many units an activation holds: all of them in training (None), the prefix of ``task`` in recall, the
        live ones where nothing else runs (LIVE)."""
        if task == LIVE:
            return self.live
        return self.total if task is None else self.stop(task)

    def trainable(self) -> Span:
        """The live units."""
        return Span(self.frozen_total, self.total)

    @property
    def step(self) -> int:
        """By how many units sizes change: whole grains, and the multiple where the group is wide enough for it."""
        step = lcm(self.grain, self.multiple)
        return step if step <= self.width else self.grain

    def ladder(self, floor: int = 0) -> tuple[int, ...]:
        """The sizes that the live segment can be pruned to: what it is, then every multiple of the step below that
        is no less than ``floor``."""
        highest = (self.live - 1) // self.step * self.step if self.live else -1
        return (self.live, *range(highest, max(floor, 0) - 1, -self.step))

    def fitting(self, count: int, free: int, nearest: bool = False) -> int:
        """The largest size of a new live segment of at most (or the nearest to) ``count`` units, ``free`` being there:
        a multiple of the step, or all of them (a width that is no multiple leaves a last remainder)."""
        rounded = (count + self.step // 2 * nearest) // self.step * self.step
        return free if count >= free else min(free, rounded)

    def keeps_whole(self, keep: Sequence[int]) -> bool:
        """Whether the live units ``keep`` (ascending) are whole grains."""
        runs = [list(keep[i : i + self.grain]) for i in range(0, len(keep), self.grain)]
        return all(run[0] % self.grain == 0 and run == list(range(run[0], run[0] + self.grain)) for run in runs)

    def prune(self, kept: int) -> None:
        """The live segment shrinks to ``kept`` units. Raises InputError for more than there are."""
        if not 0 <= kept <= self.live:
            raise InputError(f"cannot keep {kept} of {self.live} live units.")
        self._hold(self.frozen, self._whole("live", kept))

    def freeze(self) -> None:
        """The live segment becomes the segment of the task just learned; no unit is live afterwards."""
        self._hold((*self.frozen, self.live), 0)

    def recycle(self, live: int) -> None:
        """``live`` fresh units for the next task. Raises CapacityError for more than are free."""
        if not 0 <= live <= self.free:
            raise CapacityError(
                f"{live} live units were asked for, but {self.frozen_total} of {self.width} are frozen and only "
                f"{self.free} are free; ask for fewer or widen the group."
            )
        self._hold(self.frozen, self._whole("live", live))

    def widen(self, width: int) -> None:
        """The group may hold ``width`` units from now on. Raises CapacityError for fewer than it may hold now."""
        if width < self.width:
            raise CapacityError(f"a group of width {self.width} cannot become {width}: units are never taken away.")
        self.width = self._whole("width", width)

    def align(self, multiple: int) -> None:
        """Round sizes to multiples of ``multiple`` units where possible, from now on."""
        self.multiple = whole_number("multiple", multiple, 1, unit="units")

    def assign(self, frozen: tuple[int, ...], live: int) -> None:
        """Take over the sizes of a saved group. Raises CapacityError for more units than ``width``."""
        if sum(frozen) + live > self.width:
            raise CapacityError(f"{sum(frozen) + live} units do not fit a group of width {self.width}.")
        for size in (*frozen, live):
            self._whole("segment", size)
        self._hold(frozen, live)

    def _hold(self, frozen: tuple[int, ...], live: int) -> None:
        self.frozen, self.live, self.frozen_total = frozen, live, sum(frozen)
        self.version += 1

    def _whole(self, name: str, value: int) -> int:
        value = whole_number(name, value, unit="units")
        if value % self.grain:
            raise InputError(
                f"{name} must be a multiple of {self.grain}, since every {self.grain} units are pruned and frozen "
                f"together (a group of channels of a grouped convolution); got {value}."
            )
        return value

    def __repr__(self) -> str:
        more = "".join(f", {name}={value}" for name in ("grain", "multiple") if (value := getattr(self, name)) > 1)
        return f"Segments(width={self.width}, frozen={list(self.frozen)}, live={self.live}{more})"


class Rows(Segments):
    """A group's units as a layer has them that makes ``per`` neighbouring rows for each: 64 of a head of 16 units, say.

    The sizes are those of ``units`` times ``per``, whatever happens to these. Nothing is written here.
    """

    def __init__(self, units: Segments, per: int):
        self._units, self.per = units, per

    @property
    def units(self) -> Segments:
        return self._units

    @property
    def width(self) -> int:
        return self._units.width * self.per

    @property
    def grain(self) -> int:
        return self._units.grain * self.per

    @property
    def multiple(self) -> int:
        return self._units.multiple * self.per

    @property
    def frozen(self) -> tuple[int, ...]:
        return tuple(size * self.per for size in self._units.frozen)

    @property
    def live(self) -> int:
        return self._units.live * self.per

    @property
    def frozen_total(self) -> int:
        return self._units.frozen_total * self.per

    @property
    def version(self) -> int:
        return self._units.version


class Fixed:
    """Units that belong to no task: the network's own input. Every segment may read all of them."""

    tasks = 0
    version = 0

    def __init__(self, count: int):
        self.count = whole_number("count", count, unit="units")

    def span(self, task: int, nested: bool) -> Span:
        return Span(0, self.count)

    def present(self, task: int | None) -> int:
        return self.count

    def trainable(self) -> Span:
        return Span(0, 0)

    def __repr__(self) -> str:
        return f"Fixed({self.count})"


@dataclass(frozen=True)
class Source:
    """One group as a layer reads it.

    Each unit covers ``block`` neighbouring columns (a flattened channel's pixels), or ``shared`` neighbouring units
    cover one (attention's weights have a column for each head).
    """

    group: Segments | Fixed
    block: int = 1
    shared: int = 1

    def columns(self, task: int | None) -> int:
        return self.group.present(task) * self.block // self.shared

    def span(self, task: int, nested: bool) -> Span:
        return self._covered(self.group.span(task, nested))

    def trainable(self) -> Span:
        return self._covered(self.group.trainable())

    def _covered(self, span: Span) -> Span:
        return Span(span.start * self.block // self.shared, span.stop * self.block // self.shared)


@dataclass(frozen=True)
class Stair:
    """One segment of a layer: ``rows`` units that read the columns ``spans`` of the layer's present input.

    ``by_source``: how many of these columns each of several sources gives, in order; empty where one gives all.
    """

    rows: int
    spans: tuple[Span, ...]
    live: bool = False
    by_source: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def spans_by_source(self) -> tuple[Span, ...]:
        """``spans``, cut where a source ends: equally many and equally long in training and in recall.

        In training other units may lie between the spans of two sources. In recall these are gone, the two spans touch,
        and ``spans`` has them as one.
        """
        spans: list[Span] = []
        ends, read = list(accumulate(self.by_source)), 0
        for start, stop in self.spans:
            while start < stop:
                while ends and ends[0] <= read:
                    ends.pop(0)
                length = min(stop - start, ends[0] - read) if ends else stop - start
                spans.append(Span(start, start + length))
                start, read = start + length, read + length
        return tuple(spans)


@dataclass(frozen=True)
class Staircase:
    """A layer's structure for one forward pass: its segments in order, the live one (if present) last.

    ``rows`` counts the units of all of them, ``columns`` is the width of the input that is present, ``trainable`` the
    spans of it that lead to something trainable: the only columns for which a backward pass owes a gradient.

    ``kept`` belongs to the backends: what they made of this staircase for a device. It lives as long as the staircase,
    which its layer owns. Copies start without it.
    """

    stairs: tuple[Stair, ...]
    columns: int
    trainable: tuple[Span, ...] = ()
    rows: int = field(init=False, compare=False)
    kept: dict[Any, Any] = field(init=False, compare=False, repr=False, default_factory=dict[Any, Any])

    def __post_init__(self):
        object.__setattr__(self, "rows", sum(stair.rows for stair in self.stairs))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"kept": {}}

    @property
    def frozen_rows(self) -> int:
        """How many units belong to finished tasks."""
        return sum(stair.rows for stair in self.stairs if not stair.live)

    @property
    def frozen(self) -> tuple[Stair, ...]:
        return tuple(stair for stair in self.stairs if not stair.live)

    @property
    def live(self) -> Stair | None:
        """The live segment; None in recall."""
        return self.stairs[-1] if self.stairs and self.stairs[-1].live else None

    def encode(self) -> tuple[int, ...]:
        """All of it as one row of integers, for ops that take it as a tensor.

        Columns, how many trainable spans and stairs there are, the spans; then for each stair rows, live, spans and
        columns by source (their numbers first).
        """
        numbers = [self.columns, len(self.trainable), len(self.stairs), *_flat(self.trainable)]
        for stair in self.stairs:
            numbers += [stair.rows, int(stair.live), len(stair.spans), *_flat(stair.spans)]
            numbers += [len(stair.by_source), *stair.by_source]
        return tuple(numbers)

    @classmethod
    def decode(cls, numbers: Sequence[int]) -> Staircase:
        """The staircase that :meth:`encode` made these integers of."""
        rest = iter(numbers)
        columns, trainable_spans, stairs = next(rest), next(rest), next(rest)
        trainable = _spans_from(rest, trainable_spans)
        return cls(tuple(_stair_from(rest) for _ in range(stairs)), columns, trainable)

    def mask(self) -> tuple[tuple[bool, ...], ...]:
        """The paper's mask, row by row: a view for people and tests; no computation uses it."""
        rows: list[tuple[bool, ...]] = []
        for stair in self.stairs:
            seen = [False] * self.columns
            for start, stop in stair.spans:
                seen[start:stop] = [True] * (stop - start)
            rows.extend([tuple(seen)] * stair.rows)
        return tuple(rows)

    def multiply_adds(self) -> int:
        """Products per sample and output position: rows times the columns they read, summed over segments."""
        return sum(stair.rows * stair.columns for stair in self.stairs)


def staircase(output: Segments, sources: tuple[Source, ...], nested: tuple[bool, ...], task: int | None) -> Staircase:
    """The structure of a layer that fills ``output`` from the concatenation of ``sources``.

    Args:
        nested: for each frozen segment, and lastly the live one, whether it reads nested or disjoint.
        task: None in training (every segment and the live one), k when recalling task k (segments 0..k), LIVE for the
            live segment alone, whose input is then what it reads and nothing else.

    Raises:
        InputError: ``nested`` does not name every segment.
    """
    if len(nested) != output.tasks + 1:
        raise InputError(f"{len(nested)} choices of reading were given for {output.tasks + 1} segments.")
    if task == LIVE:
        read = reads(sources, output.tasks, nested[-1], None)
        columns = sum(stop - start for start, stop in read)
        spans = (Span(0, columns),) if columns else ()
        return Staircase((Stair(output.live, spans, live=True),), columns, positions(read, trainable(sources)))
    last = output.tasks if task is None else task
    stairs = tuple(
        Stair(output.size(s), reads(sources, s, nested[s], task), s == output.tasks, _by_source(sources, s, nested[s]))
        for s in range(last + 1)
    )
    learning = trainable(sources) if task is None else ()
    return Staircase(stairs, sum(source.columns(task) for source in sources), learning)


def reads(sources: tuple[Source, ...], segment: int, nested: bool, task: int | None) -> tuple[Span, ...]:
    """The columns, of the concatenation of ``sources`` that is present, which segment ``segment`` of a reader sees."""
    return _joined((source.columns(task), source.span(segment, nested)) for source in sources)


def trainable(sources: tuple[Source, ...]) -> tuple[Span, ...]:
    """The columns of live units in the concatenation of ``sources``."""
    return _joined((source.columns(None), source.trainable()) for source in sources)


def prefix(sources: tuple[Source, ...], task: int, present: int | None) -> tuple[Span, ...]:
    """Where the units that ``task`` may read lie in a concatenation that holds what task ``present`` may read."""
    return _joined((source.columns(present), Span(0, source.columns(task))) for source in sources)


def positions(spans: Sequence[Span], inside: Sequence[Span]) -> tuple[Span, ...]:
    """Where the columns ``inside`` (each within one of ``spans``) lie once ``spans`` are read end to end."""
    found: list[Span] = []
    offset = 0
    for start, stop in spans:
        for a, b in inside:
            a, b = max(a, start), min(b, stop)
            if a < b:
                found.append(Span(offset + a - start, offset + b - start))
        offset += stop - start
    return tuple(found)


def without(spans: Sequence[Span], removed: Sequence[Span]) -> tuple[Span, ...]:
    """``spans`` less the columns ``removed``; both ascending."""
    left: list[Span] = []
    for start, stop in spans:
        for a, b in removed:
            if start < min(a, stop):
                left.append(Span(start, min(a, stop)))
            start = max(start, b)
        if start < stop:
            left.append(Span(start, stop))
    return tuple(left)


def _joined(parts: Iterable[tuple[int, Span]]) -> tuple[Span, ...]:
    """Spans of concatenated sources, given with each source's width: empty ones dropped, touching ones merged."""
    spans: list[Span] = []
    offset = 0
    for width, (start, stop) in parts:
        if start < stop:
            if spans and spans[-1].stop == offset + start:
                spans[-1] = Span(spans[-1].start, offset + stop)
            else:
                spans.append(Span(offset + start, offset + stop))
        offset += width
    return tuple(spans)


def _by_source(sources: tuple[Source, ...], segment: int, nested: bool) -> tuple[int, ...]:
    """How many columns each source gives to a segment, where several do."""
    spans = [source.span(segment, nested) for source in sources]
    columns = tuple(stop - start for start, stop in spans if start < stop)
    return columns if len(columns) > 1 else ()


def _flat(spans: Sequence[Span]) -> list[int]:
    return [end for span in spans for end in span]


def _spans_from(numbers: Iterator[int], count: int) -> tuple[Span, ...]:
    return tuple(Span(next(numbers), next(numbers)) for _ in range(count))


def _stair_from(numbers: Iterator[int]) -> Stair:
    rows, live, spans = next(numbers), next(numbers), next(numbers)
    read = _spans_from(numbers, spans)
    return Stair(rows, read, bool(live), tuple(next(numbers) for _ in range(next(numbers))))
