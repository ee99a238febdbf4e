"""What a layer reads: groups of units side by side, in the order in which they lie."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, fx

from ...errors import ConversionError
from ...layout import Fixed, Source
from .emitter import Emitter


def sources_of(emitter: Emitter, columns: Tensor, what: str, heads: bool = False) -> tuple[Source, ...]:
    """Units along a dimension as groups side by side, each unit covering a block of columns."""
    if bool((columns < 0).all()):
        return (Source(Fixed(len(columns))),)
    if bool((columns < 0).any()):
        raise ConversionError(f"{what} reads units and what belongs to no task side by side.")
    group, place = emitter.grouped.group[columns], emitter.grouped.place[columns]
    if bool((group < 0).all()):  # a tensor that meets no layer's units (learned queries), which all tasks share
        return (Source(Fixed(len(columns))),)
    found, at = [], 0
    while at < len(columns):
        number = int(group[at])
        if number < 0:
            raise ConversionError(f"{what} reads what no layer made.")
        width, grain = emitter.grouped.widths[number], emitter.grouped.grains[number]
        if heads and grain > 1 and (at + 1 == len(columns) or int(place[at + 1]) != int(place[at]) + 1):
            block = 1  # columns of each grain, which is as a whole behind all of them
            while (
                at + block < len(columns)
                and int(group[at + block]) == number
                and int(place[at + block]) == int(place[at])
            ):
                block += 1
            end = at + width // grain * block
            expected = torch.arange(width // grain).repeat_interleave(block)
            if end > len(columns) or not bool((place[at:end] // grain == expected).all()):
                raise ConversionError(f"{what} reads heads in another order than they were made.")
            common = gcd(block, grain)
            found.append(Source(emitter.segments[number], block // common, grain // common))
            at = end
            continue
        block = 1
        while (
            at + block < len(columns) and int(group[at + block]) == number and int(place[at + block]) == int(place[at])
        ):
            block += 1
        end = at + width * block
        expected = torch.arange(width).repeat_interleave(block)
        if (
            end > len(columns)
            or not bool((group[at:end] == number).all())
            or not bool((place[at:end] == expected).all())
        ):
            raise ConversionError(f"{what} reads units in another order than they were made.")
        found.append(Source(emitter.segments[number], block))
        at = end
    return tuple(found)


def columns_of(emitter: Emitter, given: fx.Node, columns: Tensor, dim: int) -> Tensor:
    """``columns``, as the units lie when the network runs."""
    if given not in emitter.shuffled:
        return columns
    laid = emitter.shuffled[given]
    units = laid.units
    dim %= len(laid.shape)
    for d in range(units.dim()):
        if d != dim:
            units = units.narrow(d, 0, 1)
    return units.flatten()


def order_of(emitter: Emitter, given: fx.Node, columns: Tensor, dim: int) -> tuple[int, ...] | None:
    """Where each of ``columns`` lies when the network runs; None where each lies in its place."""
    laid = columns_of(emitter, given, columns, dim)
    if laid is columns:
        return None
    own, there = emitter.numbers(columns), emitter.numbers(laid)
    own, there = own.argsort(stable=True), there.argsort(stable=True)
    place = torch.empty_like(own)
    place[own] = there
    return None if bool((place == torch.arange(len(place))).all()) else tuple(place.tolist())
