"""Finds a network's unit groups as its layers are named in order of execution.

A layer that produces units starts a group. An addition or product ties the groups of its operands into one, so ordinary
residual connections need no extra convolution (paper, section 3.1). A concatenation puts groups side by side. Where a
layer's units are read in parts (``chunk``), each part is a group of its own; a shuffle leaves groups side by side and
remembers the order. What each operation does is in :mod:`.rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import lcm
from typing import TypeVar, cast

import torch
from torch import nn

from ..layers import (
    EideticConv2d,
    EideticLayerNorm,
    EideticParameter,
    LayerNormParts,
    Parts,
    SegmentedLayer,
    Shared,
    StaircaseLayer,
)
from .cuts import Cut, cut_alike, take
from .diagnostics import Place
from .drafts import Draft
from .found import Found, Reading
from .groups import Wiring
from .values import INPUT, Constant, Input, Units, Value

Module = TypeVar("Module", bound=nn.Module)
Layer = TypeVar("Layer", bound=SegmentedLayer)


def wired(network: nn.Module, read: Callable[[Builder], Wiring]) -> Wiring:
    """What ``read`` finds with a builder. It reads again whenever a layer's units turn out to be several groups."""
    cuts: dict[str, set[int]] = {}
    while True:
        try:
            return read(Builder(network, cuts))
        except Cut as cut:
            for path, place in cut.places:
                cuts.setdefault(path, set()).add(place)


class Builder:
    """Finds the groups of ``network`` as its layers are named in order of execution.

    ``cuts`` says, by a layer's path, before which of its units it is cut into several groups. ``modules`` holds the
    network's modules by path, and the parts of layers that were cut. ``found`` is what was found so far.

    Each call takes the place (:class:`.Place`) where it happens, and raises ConversionError there for what would let
    tasks mix.
    """

    def __init__(self, network: nn.Module, cuts: dict[str, set[int]]):
        self.network, self.cuts = network, cuts
        self.modules = dict(network.named_modules())
        self.found = Found()

    def produce(self, path: str, value: Value, where: Place, tokens: bool = False) -> Units:
        """The units that the linear layer or convolution ``path`` makes of ``value``.

        ``tokens``: ``value`` is a network input with positions before its last dimension, which a linear layer reads.
        """
        layer, value = self._claim(path, StaircaseLayer, value, where)
        image = isinstance(layer, EideticConv2d)
        tokens = tokens or (isinstance(value, Units) and value.last and not image)
        _check_form(path, value, image, tokens, where)
        if not layer.segments.width:
            raise where.refused(f"{path!r} has no units at all; give it a width of 1 or more.")
        reading = Reading(layer, value)
        reading.check(where)

        starts = [0, *sorted(self.cuts.get(path, ()))]
        widths = [stop - start for start, stop in zip(starts, [*starts[1:], layer.segments.width])]
        drafts = tuple(Draft(width, path, start) for width, start in zip(widths, starts))
        layers = self._one_a_group(path, layer, widths, where)
        for draft, (name, part) in zip(drafts, layers.items()):
            draft.producers[name] = self.modules[name] = part
            self.found.reads[name] = Reading(part, value)
        if layer.norm is not None:
            drafts[0].norms[f"{path}.norm"] = layer.norm
        self.found.drafts += drafts
        if tokens:
            self.found.last |= {path, *layers}

        return Units(drafts, spatial=image or tokens, pixels=None if image or tokens else 1, last=tokens)

    def follow(self, path: str, value: Value, where: Place) -> Units:
        """``value`` after layer ``path``, which treats each unit by itself (a normalisation)."""
        layer, value = self._claim(path, SegmentedLayer, value, where)
        if isinstance(value, Input):
            raise where.refused(
                f"{path!r} normalises the network's input, which belongs to no task, so its statistics "
                "could never be frozen task by task. Normalise the data instead."
            )
        if layer.segments.width != value.width:
            raise where.refused(
                f"{path!r} normalises {layer.segments.width} channels, but it is given the "
                f"{value.width} units of {value.name}. Where an image was flattened, put the "
                "normalisation before the flattening."
            )
        if value.last:
            self.found.last.add(path)

        grain = layer.segments.grain
        for part in value.parts:
            if part.width % grain:
                raise where.refused(
                    f"{path!r} convolves groups of {grain} channels, and the {part.width} units that "
                    f"{next(iter(part.producers))!r} makes are not a multiple of that: such a group would hold units "
                    "of several layers."
                )
        self.grow(value, grain)

        if len(value.parts) == 1 and value.order is None:
            value.parts[0].norms[path] = layer
        else:
            self._follow_in_parts(path, layer, value, where)
        return value

    def grow(self, value: Units, grain: int) -> None:
        """The units of ``value`` live, are pruned and frozen in runs of ``grain`` (the units of a head)."""
        for part in value.parts:
            part.grain = lcm(part.grain, grain)

    def hold(self, constant: Constant, value: Units, dim: int, where: Place) -> Units:
        """``value`` after it was combined with ``constant``, whose units lie in dimension ``dim`` (from the end)."""
        name, shape = constant.path, constant.shape
        width, parts = shape[dim] if len(shape) >= -dim else 1, value.parts
        if len(parts) != 1 or value.order is not None or width != value.width:
            raise where.refused(
                f"{name!r} of shape {list(shape)} is combined with the {value.width} units of "
                f"{value.name}: it must have a slice for each unit of one group, here in dimension {dim}. What all "
                "units share would be trained by every task."
            )

        layer, _ = self._claim(name, EideticParameter, value, where)
        if width > 1:  # the tensor's own dimension: those of size 1 may have come or gone on the way
            larger = [place for place, size in enumerate(layer.shape) if size > 1]
            dim = larger[-sum(size > 1 for size in shape[dim:])]
        layer.orient(dim)
        parts[0].norms[name] = layer
        return value

    def drop(self, path: str, value: Value, where: Place) -> Units:
        """``value`` after dropout ``path``."""
        _, value = self._check(path, nn.Module, value, where)
        if isinstance(value, Input):
            raise where.refused(
                f"{path!r} drops out the network's input, which frozen units read: they would not behave "
                "the same in training and in evaluation. Drop out after the first layer, or augment the data."
            )
        if path in self.found.dropped:
            raise where.refused(
                f"{path!r} is called twice. Each place has frozen units of its own to leave alone; give "
                "each place its own dropout."
            )
        self.found.dropped[path] = value, where
        if value.last:
            self.found.last.add(path)
        return value

    def attend(self, path: str, value: Units, where: Place) -> None:
        """Heads of ``value`` attend in module ``path``, which must know which of them are frozen."""
        self.found.dropped[path] = value, where

    def tie(self, a: Value, b: Value, where: Place) -> Input | Units:
        """The value of an addition or product of ``a`` and ``b``: their units become one group."""
        if isinstance(a, Input) and isinstance(b, Input):
            return INPUT
        if isinstance(a, Input) or isinstance(b, Input):
            raise where.refused(
                "units are combined with the network's input, which belongs to no task and cannot be "
                "pruned with them. Put a layer (a 1x1 convolution, say) on the input's side."
            )
        if not isinstance(a, Units) or not isinstance(b, Units):
            raise where.refused("units are combined with something that is not a tensor of units.")
        return self.unite(a, b, where)

    def unite(self, a: Units, b: Units, where: Place) -> Units:
        """``a`` and ``b`` combined unit by unit: their units become one group."""
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
        cut_alike(a, b)
        for left, right in zip(a.drafts, b.drafts):
            self._merge(left.root(), right.root())
        # A gate has one pixel, which is spread over all of the other operand's.
        pixels = a.pixels if b.pixels in (1, a.pixels) else b.pixels if a.pixels == 1 else None
        return replace(a, drafts=a.parts, pixels=pixels)

    def concatenate(self, values: Sequence[Value], where: Place) -> Input | Units:
        """The value of a concatenation in dimension 1: the groups side by side."""
        if all(isinstance(value, Input) for value in values):
            return INPUT
        units = [value for value in values if isinstance(value, Units)]
        if len(units) < len(values):
            raise where.refused(
                "units are concatenated with the network's input or with a tensor of the network's own. Put "
                "a layer (a 1x1 convolution, say) on that side."
            )

        forms = {(value.flat, value.spatial, value.last) for value in units}
        flat, spatial, last = next(iter(forms))
        pixels = {value.pixels for value in units}
        if len(forms) > 1 or (flat and len(pixels | {None}) != 2):
            raise where.refused(
                f"the units of {', '.join(value.name for value in units)} are concatenated, which do not "
                "have one form: all must be images, all flat, or all flattened from images of one known size."
            )

        parts = tuple(part for value in units for part in value.drafts)
        places, offset = [], 0
        for value in units:
            places += [offset + place for place in value.places]
            offset += value.width
        return Units(parts, spatial, flat, pixels.pop() if len(pixels) == 1 else None, None, last).ordered(places)

    def divide(self, path: str, value: Input | Units, sizes: Sequence[int], where: Place) -> list[Value]:
        """The pieces of ``value``, of ``sizes`` units each, that split ``path`` makes: whole groups."""
        if isinstance(value, Input):
            return [INPUT] * len(sizes)
        if sum(sizes) != value.width or value.flat or not all(sizes):
            raise where.refused(
                f"{value.width} units of {value.name} cannot be cut into {', '.join(map(str, sizes))}"
                + (" after flattening: cut before it." if value.flat else ": every unit must go somewhere.")
            )
        stops = [sum(sizes[: number + 1]) for number in range(len(sizes))]
        taken = [take(value, value.places[stop - size : stop]) for size, stop in zip(sizes, stops)]
        self.found.divided[path] = value, tuple(numbers for _, numbers in taken)
        if value.last:
            self.found.last.add(path)
        return [piece for piece, _ in taken]

    def finish(self, output: Value, where: Place) -> Wiring:
        """The wiring of the network whose forward returns ``output``, which comes from ``where``."""
        return self.found.wiring(output, where)

    def _check(self, path: str, kind: type[Module], value: Value, where: Place) -> tuple[Module, Input | Units]:
        """Module ``path`` and ``value``, if they are a ``kind`` of module and a tensor that it can be given."""
        module = self.modules.get(path)
        if module is None:
            raise where.refused(f"the network has no module {path!r}.")
        if not isinstance(value, (Units, Input)):
            raise where.refused(f"{path!r} reads something that is not a tensor of the network.")
        if not isinstance(module, kind):
            raise where.refused(f"{path!r} is a {type(module).__name__}, and here must be a {kind.__name__}.")
        return module, value

    def _claim(self, path: str, kind: type[Layer], value: Value, where: Place) -> tuple[Layer, Input | Units]:
        """As :meth:`_check`, for a layer that has units: it can stand in one place only."""
        layer, value = self._check(path, kind, value, where)
        if self.found.has(path):
            raise where.refused(
                f"{path!r} is called twice. A layer shared between two places has two sets of inputs; "
                "give each place its own layer."
            )
        return layer, value

    def _one_a_group(
        self, path: str, layer: StaircaseLayer, widths: list[int], where: Place
    ) -> dict[str, StaircaseLayer]:
        """``layer``, or one layer for each of the groups that its units are cut into, by path."""
        if len(widths) == 1:
            return {path: layer}
        if layer.norm is not None:
            raise where.refused(
                f"the units of {path!r} are read in parts, so its norm would be in several groups at once. "
                "Give it no norm, and put an EideticBatchNorm after it."
            )
        shared = self.found.split[path] = Shared(layer, widths)
        parts = cast("Iterable[StaircaseLayer]", shared)  # torch does not say what a ModuleList holds
        return {f"{path}.{number}": part for number, part in enumerate(parts)}

    def _follow_in_parts(self, path: str, layer: SegmentedLayer, value: Units, where: Place) -> None:
        """Put a part of ``layer`` on each of the groups that lie side by side in ``value``."""
        units = _inverse(value.places).split([part.width for part in value.parts])
        if not all(layer.segments.keeps_whole(each.tolist()) for each in units):
            raise where.refused(
                f"{path!r} convolves groups of {layer.segments.grain} channels, which were shuffled: its groups would "
                "hold units of several groups. Put a 1x1 convolution between."
            )
        split = self.found.split[path] = (LayerNormParts if isinstance(layer, EideticLayerNorm) else Parts)(
            layer, units
        )
        parts = cast("Iterable[SegmentedLayer]", split)  # torch does not say what a ModuleList holds
        for number, (draft, part) in enumerate(zip(value.parts, parts)):
            draft.norms[f"{path}.{number}"] = part

    def _merge(self, left: Draft, right: Draft) -> None:
        """Make two groups one, under the draft that was found first."""
        if left is right:
            return
        drafts = self.found.drafts
        left, right = sorted((left, right), key=drafts.index)
        right.parent = left
        left.grain = lcm(left.grain, right.grain)
        left.producers.update(right.producers)
        left.norms.update(right.norms)
        drafts.remove(right)


def _check_form(path: str, value: Input | Units, image: bool, tokens: bool, where: Place) -> None:
    """Refuse units whose form layer ``path``, which reads an ``image`` or not, cannot read."""
    if not isinstance(value, Units):
        return
    if (value.spatial and not tokens) != image:
        given = "flat units; a convolution needs an image." if image else "an image: flatten it first."
        raise where.refused(f"{path!r} reads {given}")
    if image and value.last:
        raise where.refused(f"{path!r} reads units in the last dimension; a convolution's lie in 1.")


def _inverse(places: Sequence[int]) -> torch.Tensor:
    """The position of each place."""
    return torch.tensor(places).argsort()
