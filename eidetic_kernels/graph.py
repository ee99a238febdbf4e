"""Unit groups: which layers' units belong together, and the values that hold them while a network is wired.

Every value in the network is either the network's input, or units of one group or of several side by side, possibly
flattened so that each unit covers a block of columns. A layer that produces units starts a group; an addition or
product ties the groups of its operands into one, so ordinary residual connections need no extra convolution (paper,
section 3.1); a concatenation puts groups side by side. What each operation does is in :mod:`.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from torch import nn

from .errors import ConversionError
from .layers import EideticConv2d, Parts, SegmentedLayer, StaircaseLayer
from .layout import Fixed, Segments, Source


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


class Draft:
    """A group while it is being found; tied groups form a tree whose root holds the members."""

    def __init__(self, width: int):
        self.width, self.grain = width, 1
        self.parent: Draft | None = None
        self.producers: dict[str, StaircaseLayer] = {}
        self.norms: dict[str, SegmentedLayer] = {}
        self.final: Group | None = None

    def root(self) -> Draft:
        return self if self.parent is None else self.parent.root()


@dataclass(frozen=True)
class Units:
    """A value that holds units of one group, or of several concatenated in order, in dimension 1 or in the last.

    ``spatial``: it has dimensions beside that one and the batch, ``pixels`` positions of them where that is known.
    ``flat``: they were folded into dimension 1, each unit being a block of ``pixels`` columns. ``last``: the units lie
    in the last dimension, after the positions (tokens [N, T, C], images with channels last).
    """

    drafts: tuple[Draft, ...]
    spatial: bool = False
    flat: bool = False
    pixels: int | None = 1
    last: bool = False

    @property
    def parts(self) -> tuple[Draft, ...]:
        return tuple(draft.root() for draft in self.drafts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def name(self) -> str:
        """Where the units come from, for messages."""
        return " and ".join(repr(next(iter(part.producers))) for part in self.parts)

    def flattened(self) -> Units:
        """The same units with their pixels folded into dimension 1."""
        return replace(self, flat=self.spatial or self.flat, spatial=False)


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
class Wiring:
    """What was found: the groups in order of execution, each layer's sources, and where the features are.

    ``dropouts``: modules without units of their own that must know which are frozen. ``split``: layers over several
    groups, by path, each to be replaced by its parts, one a group. ``last``: paths of layers and dropouts whose units
    lie in the last dimension.
    """

    groups: tuple[Group, ...]
    sources: dict[str, tuple[Source, ...]]
    dropouts: dict[str, tuple[Source, ...]]
    features: tuple[Source, ...]
    split: dict[str, Parts]
    last: frozenset[str] = frozenset()


class Builder:
    """Finds the groups of ``network`` as its layers are named in order of execution."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.modules = dict(network.named_modules())
        self.drafts: list[Draft] = []
        self.reads: dict[str, Any] = {}
        self.dropped: dict[str, Any] = {}
        self.split: dict[str, Parts] = {}
        self.last: set[str] = set()

    def produce(self, path: str, value: Any, where: str, tokens: bool = False) -> Units:
        """The units that linear layer or convolution ``path`` makes of ``value``.

        ``tokens``: ``value`` is a network input with positions before its last dimension, which a linear layer reads.
        """
        module = self._once(path, value, where)
        image = isinstance(module, EideticConv2d)
        tokens = tokens or (isinstance(value, Units) and value.last and not image)
        if isinstance(value, Units) and (value.spatial and not tokens) != image:
            raise ConversionError(
                f"{where}: {path!r} reads "
                + ("flat units; a convolution needs an image." if image else "an image: flatten it first.")
            )
        if image and isinstance(value, Units) and value.last:
            raise ConversionError(f"{where}: {path!r} reads units in the last dimension; a convolution's lie in 1.")
        if not module.segments.width:
            raise ConversionError(f"{where}: {path!r} has no units at all; give it a width of 1 or more.")
        self.reads[path] = value
        self.source(value, module.weight.shape[1], where)
        draft = Draft(module.segments.width)
        draft.producers[path] = module
        self.drafts.append(draft)
        if tokens:
            self.last.add(path)
        return Units((draft,), spatial=image or tokens, pixels=None if image or tokens else 1, last=tokens)

    def follow(self, path: str, value: Any, where: str) -> Any:
        """``value`` after layer ``path``, which treats each unit by itself (a normalisation)."""
        module = self._once(path, value, where)
        if value is INPUT:
            raise ConversionError(
                f"{where}: {path!r} normalises the network's input, which belongs to no task, so its statistics "
                "could never be frozen task by task. Normalise the data instead."
            )
        if module.segments.width != value.width:
            raise ConversionError(
                f"{where}: {path!r} normalises {module.segments.width} channels, but it is given the "
                f"{value.width} units of {value.name}. Where an image was flattened, put the "
                "normalisation before the flattening."
            )
        if value.last:
            self.last.add(path)
        parts, grain = value.parts, module.segments.grain
        for part in parts:
            if part.width % grain:
                raise ConversionError(
                    f"{where}: {path!r} convolves groups of {grain} channels, and the {part.width} units that "
                    f"{next(iter(part.producers))!r} makes are no whole number of them: such a group would hold units "
                    "of several layers."
                )
            part.grain = lcm(part.grain, grain)  # of widths that both divide, so it divides them too
        if len(parts) == 1:
            parts[0].norms[path] = module
        else:
            self.split[path] = module.in_parts([part.width for part in parts])
            for number, part in enumerate(parts):
                part.norms[f"{path}.{number}"] = self.split[path][number]
        return value

    def grow(self, value: Units, grain: int) -> None:
        """The units of ``value`` live and go in runs of ``grain`` (a head's)."""
        for part in value.parts:
            part.grain = lcm(part.grain, grain)

    def hold(self, constant: Constant, value: Units, dim: int, where: str) -> Units:
        """``value`` after it was combined with ``constant``, whose units lie in dimension ``dim`` (from the end)."""
        module, name = self.modules[constant.path], constant.path
        width = constant.shape[dim] if len(constant.shape) >= -dim else 1
        if len(value.parts) > 1 or width != value.width:
            raise ConversionError(
                f"{where}: {name!r} of shape {list(constant.shape)} is combined with the {value.width} units of "
                f"{value.name}: it must have a slice for each unit of one group, here in dimension {dim}. What all "
                "units share would be trained by every task."
            )
        module.orient(dim)
        value.parts[0].norms[name] = self._once(name, value, where)
        return value

    def drop(self, path: str, value: Any, where: str) -> Any:
        """``value`` after dropout ``path``."""
        self._check(path, value, where)
        if value is INPUT:
            raise ConversionError(
                f"{where}: {path!r} drops out the network's input, which frozen units read: they would not behave "
                "the same in training and in evaluation. Drop out after the first layer, or augment the data."
            )
        if path in self.dropped:
            raise ConversionError(
                f"{where}: {path!r} is called twice. Each place has frozen units of its own to leave alone; give "
                "each place its own dropout."
            )
        self.dropped[path] = value
        if isinstance(value, Units) and value.last:
            self.last.add(path)
        return value

    def tie(self, a: Any, b: Any, where: str) -> Any:
        """The value of an addition or product of ``a`` and ``b``: their units become one group."""
        if a is INPUT and b is INPUT:
            return INPUT
        if a is INPUT or b is INPUT:
            raise ConversionError(
                f"{where}: units are combined with the network's input, which belongs to no task and cannot be "
                "pruned with them. Put a layer (a 1x1 convolution, say) on the input's side."
            )
        if (a.width, a.flat, a.spatial, a.last) != (b.width, b.flat, b.spatial, b.last):
            raise ConversionError(
                f"{where}: {a.width} units are combined with {b.width}; both sides must be as wide and of "
                "the same form (image, flattened image, flat, or tokens with their units last)."
            )
        if [part.width for part in a.parts] != [part.width for part in b.parts]:
            raise ConversionError(
                f"{where}: the units of {a.name} are combined with those of {b.name}, which were concatenated of other "
                "sizes: unit by unit they would belong to several groups at once."
            )
        for left, right in zip(a.drafts, b.drafts):
            self._unite(left.root(), right.root())
        # A gate has one pixel, and is spread over the other operand's.
        pixels = a.pixels if b.pixels in (1, a.pixels) else b.pixels if a.pixels == 1 else None
        return Units(a.parts, a.spatial, a.flat, pixels, a.last)

    def concatenate(self, values: Sequence[Any], where: str) -> Any:
        """The value of a concatenation in dimension 1: the groups side by side."""
        if all(value is INPUT for value in values):
            return INPUT
        if not all(isinstance(value, Units) for value in values):
            raise ConversionError(
                f"{where}: units are concatenated with the network's input or with a tensor of the network's own. Put "
                "a layer (a 1x1 convolution, say) on that side."
            )
        forms = {(value.flat, value.spatial, value.last) for value in values}
        flat, spatial, last = next(iter(forms))
        pixels = {value.pixels for value in values}
        if len(forms) > 1 or (flat and len(pixels | {None}) != 2):
            raise ConversionError(
                f"{where}: the units of {', '.join(value.name for value in values)} are concatenated, which do not "
                "have one form: all must be images, all flat, or all flattened from images of one known size."
            )
        parts = tuple(part for value in values for part in value.drafts)
        return Units(parts, spatial, flat, pixels.pop() if len(pixels) == 1 else None, last)

    def source(self, value: Any, columns: int, where: str) -> tuple[Source, ...] | None:
        """How a layer with ``columns`` input columns reads ``value``; None while groups are being found."""
        if value is INPUT:
            return (Source(Fixed(columns)),)
        if columns % value.width or (not value.flat and columns != value.width):
            raise ConversionError(
                f"{where}: a layer with {columns} input columns reads {value.width} units of "
                f"{value.name}" + (", flattened" if value.flat else "") + ": the sizes do not fit."
            )
        return self._sources(value, columns // value.width)

    def finish(self, output: Any) -> Wiring:
        """The wiring of the network whose forward returns ``output``."""
        if not isinstance(output, Units):
            raise ConversionError(
                "forward must return features that a layer of this package produced: one tensor whose dimension 1 "
                "holds units. It returned " + ("the input." if output is INPUT else "something else.")
            )
        for draft in self.drafts:
            draft.final = Group(Segments(draft.width, grain=draft.grain), draft.width, draft.producers, draft.norms)
        sources = {
            path: self.source(value, self.modules[path].weight.shape[1], path) for path, value in self.reads.items()
        }
        dropouts = {path: self._dropout_sources(value) for path, value in self.dropped.items()}
        groups = tuple(draft.final for draft in self.drafts)
        return Wiring(groups, sources, dropouts, self._features(output), self.split, frozenset(self.last))

    def _check(self, path: str, value: Any, where: str) -> nn.Module:
        module = self.modules.get(path)
        if module is None:
            raise ConversionError(f"{where}: the network has no module {path!r}.")
        if not isinstance(value, (Units, Input)):
            raise ConversionError(f"{where}: {path!r} reads something that is not a tensor of the network.")
        return module

    def _once(self, path: str, value: Any, where: str) -> SegmentedLayer:
        module = self._check(path, value, where)
        normed = [name for draft in self.drafts for name in draft.norms]
        if path in (*self.reads, *normed, *self.split):
            raise ConversionError(
                f"{where}: {path!r} is called twice. A layer shared between two places has two sets of inputs; "
                "give each place its own layer."
            )
        return module

    def _unite(self, left: Draft, right: Draft) -> None:
        if left is right:
            return
        left, right = sorted((left, right), key=self.drafts.index)
        right.parent = left
        left.grain = lcm(left.grain, right.grain)
        left.producers.update(right.producers)
        left.norms.update(right.norms)
        self.drafts.remove(right)

    def _sources(self, value: Units, block: int) -> tuple[Source, ...] | None:
        parts = value.parts
        return tuple(Source(part.final.segments, block) for part in parts) if parts[0].final else None

    def _features(self, output: Units) -> tuple[Source, ...]:
        if output.spatial or output.pixels is None:
            raise ConversionError(
                f"the features are an image of {output.name} whose size is not known from the "
                "code: end with adaptive pooling and flattening (AdaptiveAvgPool2d(1), flatten(1)), or with a "
                "linear layer."
            )
        return self._sources(output, output.pixels)

    def _dropout_sources(self, value: Units) -> tuple[Source, ...]:
        if not value.flat or value.pixels is not None:
            return self._sources(value, value.pixels if value.flat else 1)
        parts = value.parts
        readers = [p for p, read in self.reads.items() if isinstance(read, Units) and read.parts == parts]
        blocks = {self.modules[p].weight.shape[1] // value.width for p in readers if self.reads[p].flat}
        if len(blocks) != 1:
            raise ConversionError(
                f"dropout after flattening {value.name}: the number of pixels a channel was "
                "flattened into is unknown, since not one linear layer reads it. Drop out before flattening."
            )
        return self._sources(value, blocks.pop())
