"""Finds a network's unit groups as its layers are named in order of execution.

A layer that produces units starts a group; an addition or product ties the groups of its operands into one, so ordinary
residual connections need no extra convolution (paper, section 3.1); a concatenation puts groups side by side. Where a
layer's units are read apart (``chunk``), each part of them is a group of its own, and a shuffle leaves groups side by
side and remembers the order. What each operation does is in :mod:`.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import lcm
from typing import Any

import torch
from torch import nn

from ..layers import EideticConv2d, EideticLayerNorm, LayerNormParts, Parts, SegmentedLayer, Shared
from ..layout import Fixed, Segments, Source
from .diagnostics import Place
from .groups import Group, Wiring
from .values import INPUT, Constant, Cut, Draft, Input, Units


def wired(network: nn.Module, read: Callable[[Builder], Wiring]) -> Wiring:
    """What ``read`` finds with a builder, layers' units being cut into as many groups as it turns out they must."""
    cuts: dict[str, set[int]] = {}
    while True:
        try:
            return read(Builder(network, cuts))
        except Cut as cut:
            for path, place in cut.places:
                cuts.setdefault(path, set()).add(place)


class Builder:
    """Finds the groups of ``network`` as its layers are named in order of execution.

    ``cuts``: before which of its units each layer is cut into several groups.
    """

    def __init__(self, network: nn.Module, cuts: dict[str, set[int]]):
        self.network, self.cuts = network, cuts
        self.modules = dict(network.named_modules())
        self.drafts: list[Draft] = []
        self.reads: dict[str, Any] = {}
        self.dropped: dict[str, Any] = {}
        self.dropped_at: dict[str, Place] = {}
        self.split: dict[str, Parts | Shared] = {}
        self.divided: dict[str, tuple[Units, tuple[tuple[int, ...], ...]]] = {}
        self.shuffled: list[str] = []
        self.last: set[str] = set()

    def produce(self, path: str, value: Any, where: Place, tokens: bool = False) -> Units:
        """The units that linear layer or convolution ``path`` makes of ``value``.

        ``tokens``: ``value`` is a network input with positions before its last dimension, which a linear layer reads.
        """
        module = self._once(path, value, where)
        image = isinstance(module, EideticConv2d)
        tokens = tokens or (isinstance(value, Units) and value.last and not image)
        if isinstance(value, Units) and (value.spatial and not tokens) != image:
            raise where.refused(
                f"{path!r} reads "
                + ("flat units; a convolution needs an image." if image else "an image: flatten it first.")
            )
        if image and isinstance(value, Units) and value.last:
            raise where.refused(f"{path!r} reads units in the last dimension; a convolution's lie in 1.")
        if not module.segments.width:
            raise where.refused(f"{path!r} has no units at all; give it a width of 1 or more.")
        self.source(value, module.weight.shape[1], where)
        starts = [0, *sorted(self.cuts.get(path, ()))]
        widths = [stop - start for start, stop in zip(starts, [*starts[1:], module.segments.width])]
        layers = {path: module}
        if len(widths) > 1:
            if module.norm is not None:
                raise where.refused(
                    f"the units of {path!r} are read apart, so its norm would be in several groups at once. "
                    "Give it no norm, and put an EideticBatchNorm after it."
                )
            self.split[path] = Shared(module, widths)
            layers = {f"{path}.{number}": layer for number, layer in enumerate(self.split[path])}
        drafts = tuple(Draft(width, path, start) for width, start in zip(widths, starts))
        for draft, (name, layer) in zip(drafts, layers.items()):
            draft.producers[name] = self.modules[name] = layer
            self.reads[name] = value
        if module.norm is not None:
            drafts[0].norms[f"{path}.norm"] = module.norm
        self.drafts += drafts
        if tokens:
            self.last |= {path, *layers}
        return Units(drafts, spatial=image or tokens, pixels=None if image or tokens else 1, last=tokens)

    def follow(self, path: str, value: Any, where: Place) -> Any:
        """``value`` after layer ``path``, which treats each unit by itself (a normalisation)."""
        module = self._once(path, value, where)
        if value is INPUT:
            raise where.refused(
                f"{path!r} normalises the network's input, which belongs to no task, so its statistics "
                "could never be frozen task by task. Normalise the data instead."
            )
        if module.segments.width != value.width:
            raise where.refused(
                f"{path!r} normalises {module.segments.width} channels, but it is given the "
                f"{value.width} units of {value.name}. Where an image was flattened, put the "
                "normalisation before the flattening."
            )
        if value.last:
            self.last.add(path)
        parts, grain = value.parts, module.segments.grain
        for part in parts:
            if part.width % grain:
                raise where.refused(
                    f"{path!r} convolves groups of {grain} channels, and the {part.width} units that "
                    f"{next(iter(part.producers))!r} makes are no whole number of them: such a group would hold units "
                    "of several layers."
                )
            part.grain = lcm(part.grain, grain)  # of widths that both divide, so it divides them too
        if len(parts) == 1 and value.order is None:
            parts[0].norms[path] = module
        else:
            units = _inverse(value.places).split([part.width for part in parts])
            if not all(module.segments.keeps_whole(each.tolist()) for each in units):
                raise where.refused(
                    f"{path!r} convolves groups of {grain} channels, which were shuffled: its groups would "
                    "hold units of several groups. Put a 1x1 convolution between."
                )
            self.split[path] = (LayerNormParts if isinstance(module, EideticLayerNorm) else Parts)(module, units)
            for number, part in enumerate(parts):
                part.norms[f"{path}.{number}"] = self.split[path][number]
        return value

    def grow(self, value: Units, grain: int) -> None:
        """The units of ``value`` live and go in runs of ``grain`` (a head's)."""
        for part in value.parts:
            part.grain = lcm(part.grain, grain)

    def hold(self, constant: Constant, value: Units, dim: int, where: Place) -> Units:
        """``value`` after it was combined with ``constant``, whose units lie in dimension ``dim`` (from the end)."""
        module, name = self.modules[constant.path], constant.path
        width = constant.shape[dim] if len(constant.shape) >= -dim else 1
        if len(value.parts) > 1 or value.order is not None or width != value.width:
            raise where.refused(
                f"{name!r} of shape {list(constant.shape)} is combined with the {value.width} units of "
                f"{value.name}: it must have a slice for each unit of one group, here in dimension {dim}. What all "
                "units share would be trained by every task."
            )
        if width > 1:  # the tensor's own dimension: those of size 1 may have come or gone on the way
            larger = [place for place, size in enumerate(module.shape) if size > 1]
            dim = larger[-sum(size > 1 for size in constant.shape[dim:])]
        module.orient(dim)
        value.parts[0].norms[name] = self._once(name, value, where)
        return value

    def drop(self, path: str, value: Any, where: Place) -> Any:
        """``value`` after dropout ``path``."""
        self._check(path, value, where)
        if value is INPUT:
            raise where.refused(
                f"{path!r} drops out the network's input, which frozen units read: they would not behave "
                "the same in training and in evaluation. Drop out after the first layer, or augment the data."
            )
        if path in self.dropped:
            raise where.refused(
                f"{path!r} is called twice. Each place has frozen units of its own to leave alone; give "
                "each place its own dropout."
            )
        self.dropped[path], self.dropped_at[path] = value, where
        if isinstance(value, Units) and value.last:
            self.last.add(path)
        return value

    def tie(self, a: Any, b: Any, where: Place) -> Any:
        """The value of an addition or product of ``a`` and ``b``: their units become one group."""
        if a is INPUT and b is INPUT:
            return INPUT
        if a is INPUT or b is INPUT:
            raise where.refused(
                "units are combined with the network's input, which belongs to no task and cannot be "
                "pruned with them. Put a layer (a 1x1 convolution, say) on the input's side."
            )
        if (a.width, a.flat, a.spatial, a.last, a.batch) != (b.width, b.flat, b.spatial, b.last, b.batch):
            raise where.refused(
                f"{a.width} units are combined with {b.width}; both sides must be as wide and of "
                "the same form (image, flattened image, flat, or tokens with their units last)."
            )
        if a.order != b.order:
            raise where.refused(
                f"the units of {a.name} are combined with those of {b.name}, which were shuffled in another "
                "way. Put a layer (a 1x1 convolution, say) on one side."
            )
        _cut_alike(a, b)
        for left, right in zip(a.drafts, b.drafts):
            self._unite(left.root(), right.root())
        # A gate has one pixel, and is spread over the other operand's.
        pixels = a.pixels if b.pixels in (1, a.pixels) else b.pixels if a.pixels == 1 else None
        return replace(a, drafts=a.parts, pixels=pixels)

    def concatenate(self, values: Sequence[Any], where: Place) -> Any:
        """The value of a concatenation in dimension 1: the groups side by side."""
        if all(value is INPUT for value in values):
            return INPUT
        if not all(isinstance(value, Units) for value in values):
            raise where.refused(
                "units are concatenated with the network's input or with a tensor of the network's own. Put "
                "a layer (a 1x1 convolution, say) on that side."
            )
        forms = {(value.flat, value.spatial, value.last) for value in values}
        flat, spatial, last = next(iter(forms))
        pixels = {value.pixels for value in values}
        if len(forms) > 1 or (flat and len(pixels | {None}) != 2):
            raise where.refused(
                f"the units of {', '.join(value.name for value in values)} are concatenated, which do not "
                "have one form: all must be images, all flat, or all flattened from images of one known size."
            )
        parts = tuple(part for value in values for part in value.drafts)
        places, offset = [], 0
        for value in values:
            places += [offset + place for place in value.places]
            offset += value.width
        return Units(parts, spatial, flat, pixels.pop() if len(pixels) == 1 else None, None, last).ordered(places)

    def divide(self, path: str, value: Any, sizes: Sequence[int], where: Place) -> list[Any]:
        """The pieces of ``value`` that split ``path`` makes, of ``sizes`` units: each of whole groups."""
        if value is INPUT:
            return [INPUT] * len(sizes)
        if sum(sizes) != value.width or value.flat or not all(sizes):
            raise where.refused(
                f"{value.width} units of {value.name} cannot be cut into {', '.join(map(str, sizes))}"
                + (" after flattening: cut before it." if value.flat else ": every unit must go somewhere.")
            )
        stops = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        taken = [self._take(value, value.places[stop - size : stop]) for size, stop in zip(sizes, stops)]
        self.divided[path] = value, tuple(numbers for _, numbers in taken)
        if value.last:
            self.last.add(path)
        return [piece for piece, _ in taken]

    def shuffle(self, path: str, value: Units, groups: int) -> Units:
        """``value`` after a channel shuffle: its positions are filled from ``groups`` equal runs of them in turn."""
        self.shuffled.append(path)
        run = value.width // groups
        return value.ordered(value.places[group * run + i] for i in range(run) for group in range(groups))

    def source(self, value: Any, columns: int, where: Place) -> tuple[Source, ...] | None:
        """How a layer with ``columns`` input columns reads ``value``; None while groups are being found."""
        if value is INPUT:
            return (Source(Fixed(columns)),)
        if columns % value.width or (not value.flat and columns != value.width):
            raise where.refused(
                f"a layer with {columns} input columns reads {value.width} units of "
                f"{value.name}" + (", flattened" if value.flat else "") + ": the sizes do not fit."
            )
        return self._sources(value, columns // value.width)

    def finish(self, output: Any, where: Place) -> Wiring:
        """The wiring of the network whose forward returns ``output``, which comes from ``where``."""
        if not isinstance(output, Units):
            raise where.refused(
                "forward must return features that a layer of this package produced: one tensor whose dimension 1 "
                "holds units. It returned " + ("the input." if output is INPUT else "something else.")
            )
        for draft in self.drafts:
            draft.final = Group(Segments(draft.width, grain=draft.grain), draft.width, draft.producers, draft.norms)
        columns = {path: self.modules[path].weight.shape[1] for path in self.reads}
        sources = {path: self.source(value, columns[path], Place(path)) for path, value in self.reads.items()}
        orders = {
            path: tuple(place * block + i for place in value.order for i in range(block))
            for path, value in self.reads.items()
            if isinstance(value, Units) and value.order is not None
            for block in (columns[path] // value.width,)
        }
        pieces = {path: (self._sources(value, 1), numbers) for path, (value, numbers) in self.divided.items()}
        dropouts = {path: self._dropout_sources(path, value) for path, value in self.dropped.items()}
        groups = tuple(draft.final for draft in self.drafts)
        features, shuffled = self._features(output, where), tuple(self.shuffled)
        return Wiring(groups, sources, dropouts, features, self.split, orders, pieces, shuffled, frozenset(self.last))

    def _check(self, path: str, value: Any, where: Place) -> nn.Module:
        module = self.modules.get(path)
        if module is None:
            raise where.refused(f"the network has no module {path!r}.")
        if not isinstance(value, (Units, Input)):
            raise where.refused(f"{path!r} reads something that is not a tensor of the network.")
        return module

    def _once(self, path: str, value: Any, where: Place) -> SegmentedLayer:
        module = self._check(path, value, where)
        normed = [name for draft in self.drafts for name in draft.norms]
        if path in (*self.reads, *normed, *self.split):
            raise where.refused(
                f"{path!r} is called twice. A layer shared between two places has two sets of inputs; "
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

    def _take(self, value: Units, places: Sequence[int]) -> tuple[Units, tuple[int, ...]]:
        """The units of ``value`` that lie at ``places``, and which of its groups they are: whole ones, or Cut."""
        wanted, cuts, numbers, left, offset = set(places), set(), [], [], 0
        for number, part in enumerate(value.parts):
            inside = [offset + unit in wanted for unit in range(part.width)]
            cuts |= part.cuts(unit for unit in range(1, part.width) if inside[unit] != inside[unit - 1])
            if inside[0]:
                numbers.append(number)
                left += range(offset, offset + part.width)
            offset += part.width
        if cuts:
            raise Cut(cuts)
        rank = {place: number for number, place in enumerate(left)}
        piece = replace(value, drafts=tuple(value.parts[number] for number in numbers))
        return piece.ordered(rank[place] for place in places), tuple(numbers)

    def _sources(self, value: Units, block: int) -> tuple[Source, ...] | None:
        parts = value.parts
        return tuple(Source(part.final.segments, block) for part in parts) if parts[0].final else None

    def _features(self, output: Units, where: Place) -> tuple[Source, ...]:
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
        return self._sources(output, output.pixels)

    def _dropout_sources(self, path: str, value: Units) -> tuple[Source, ...]:
        if not value.flat or value.pixels is not None:
            return self._sources(value, value.pixels if value.flat else 1)
        parts = value.parts
        readers = [p for p, read in self.reads.items() if isinstance(read, Units) and read.parts == parts]
        blocks = {self.modules[p].weight.shape[1] // value.width for p in readers if self.reads[p].flat}
        if len(blocks) != 1:
            raise self.dropped_at[path].refused(
                f"dropout after flattening {value.name}: the number of pixels a channel was "
                "flattened into is unknown, since not one linear layer reads it. Drop out before flattening."
            )
        return self._sources(value, blocks.pop())


def _cut_alike(a: Units, b: Units) -> None:
    """Raise Cut unless the groups of ``a`` and ``b`` begin at the same places."""
    starts = [[sum(part.width for part in value.parts[:n]) for n in range(len(value.parts))] for value in (a, b)]
    cuts: set[tuple[str, int]] = set()
    for value, own, others in ((a, *starts), (b, *reversed(starts))):
        for part, start in zip(value.parts, own):
            cuts |= part.cuts(place - start for place in others if start < place < start + part.width)
    if cuts:
        raise Cut(cuts)


def _inverse(places: Sequence[int]) -> torch.Tensor:
    """At which position each place is."""
    return torch.tensor(places).argsort()
