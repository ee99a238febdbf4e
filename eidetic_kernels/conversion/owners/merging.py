"""What numbers of several owners together tie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .constraints import distinct
from .maps import Owners, small
from .step import Step


def settled(step: Step, x: Owners, dims: Any = None) -> Owners:
    """``x``, where units that differ from position to position are tied: a class token's and the patches'.

    Units of one layer that differ along a dimension are others: heads. ``dims``: only these are looked at.
    """
    units = x.units
    for d in x.unit_dims:
        if dims is not None and d not in dims:
            continue
        first = units.narrow(d, 0, 1)
        a, b = torch.broadcast_tensors(first, units)
        differ = (a != b) & (a >= 0) & (b >= 0)
        if not bool(differ.any()):
            if bool((a != b).any()):  # some are nobody's: zeros
                if len(x.unit_dims) > 1:
                    best = units.amax(d, keepdim=True)
                    units = best
            continue
        made_a, made_b = step.constraints.makers(a[differ]), step.constraints.makers(b[differ])
        if bool(((made_a == made_b) & (made_a >= 0)).any()):
            continue
        if dims is None and len([s for s in units.shape if s > 1]) == 1:  # the units' own dimension
            continue
        (step.constraints.together if x.coarse else step.constraints.same)(first, units)
        units = _standing_for(step, units, d)
    samples = x.samples
    for d, size in enumerate(samples.shape):
        if size > 1:
            most = samples.amax(d, keepdim=True)
            if bool(((samples == most) | (samples < 0)).all()):
                samples = most
    return Owners(x.shape, small(units), samples, x.coarse)


def _standing_for(step: Step, units: Tensor, dim: int) -> Tensor:
    """One of the tied units along ``dim`` for all: a layer's where there is one, since others may be cut with it."""
    first = units.narrow(dim, 0, 1)
    best = torch.where(first >= 0, first, units.amax(dim, keepdim=True))
    if bool((step.constraints.makers(first) >= 0).all()):
        return best
    made = torch.where(step.constraints.makers(units) >= 0, units, -1).amax(dim, keepdim=True)
    return torch.where((step.constraints.makers(best) < 0) & (made >= 0), made, best)


def combined(step: Step, *given: Owners) -> Owners:
    """The owners of numbers that are each made of those at the same place of all ``given``."""
    shape = torch.broadcast_shapes(*(each.shape for each in given))
    whole = given[0]
    for other in given[1:]:
        units, coarse = merged(step, whole, other)
        samples = merged_samples(step, whole.samples, other.samples)
        unit_dims = [d - units.dim() for d, s in enumerate(units.shape) if s > 1]
        for each in (whole, other):
            if not each.owned:
                bad = [d for d in unit_dims if len(each.shape) >= -d and each.shape[d] > 1]
                if bad and (each.sampled or bool((units < 0).any())):
                    step.refuse("units are combined with what belongs to no task (the input)")
        whole = Owners(tuple(torch.broadcast_shapes(whole.shape, other.shape)), units, samples, coarse)
    rank = len(shape)
    units, samples = (each.view([1] * (rank - each.dim()) + list(each.shape)) for each in (whole.units, whole.samples))
    return Owners(tuple(shape), units, samples, whole.coarse)


def merged(step: Step, a: Owners, b: Owners) -> tuple[Tensor, bool]:
    """The units of numbers made of ``a`` and ``b``, which are tied; and whether these are coarse.

    Units that meet one to one are the same. Where one meets many (a head's scale and its units), they live together.
    """
    if not b.owned or not a.owned:
        one = a if a.owned else b
        x, y = torch.broadcast_tensors(a.units, b.units)
        return small(torch.maximum(x, y)), one.coarse
    x, y = torch.broadcast_tensors(a.units, b.units)
    if not (a.coarse or b.coarse):
        many_x, many_y = _meets_many(x, y)
        if many_x or many_y:
            a, b = settled(step, a, _only_in(a, b)), settled(step, b, _only_in(b, a))
            x, y = torch.broadcast_tensors(a.units, b.units)
            many_x, many_y = _meets_many(x, y)
        if not (many_x or many_y):
            step.constraints.same(x, y)
            return small(torch.where(x >= 0, x, y)), False
        step.constraints.together(x, y)
        if many_x and not many_y:
            return small(torch.where(y >= 0, y, x)), False
        return small(torch.where(x >= 0, x, y)) if many_y and not many_x else small(
            torch.where(y >= 0, y, x)
        ), many_x and many_y
    step.constraints.together(x, y)
    # A number that a unit made and something of its whole grain scaled is the unit's; tensors' elements are slices.
    if a.coarse and not b.coarse and bool((step.constraints.makers(b.units) >= 0).any()):
        x, y, a = y, x, b
    elif b.coarse and not a.coarse and not bool((step.constraints.makers(a.units) >= 0).any()):
        x, y, a = y, x, b
    elif a.coarse and b.coarse and b.units.numel() > a.units.numel():
        x, y, a = y, x, b
    return small(torch.where(x >= 0, x, y)), a.coarse


def _only_in(a: Owners, b: Owners) -> list[int] | None:
    """The dimensions along which units of ``a`` vary and those of ``b`` do not; None where there is none of both."""
    rank = a.units.dim()
    both = [d for d in a.unit_dims if rank - d <= b.units.dim() and b.units.shape[d - rank] > 1]
    return [d for d in a.unit_dims if d not in both] if both else None


def _meets_many(x: Tensor, y: Tensor) -> tuple[bool, bool]:
    """Whether some unit of ``x`` meets several of ``y``, and the other way round."""
    both = (x >= 0) & (y >= 0) & (x != y)
    pairs = distinct(torch.stack([x[both], y[both]]))
    if not pairs.numel():
        return False, False
    count = pairs.shape[1]
    return len(torch.unique(pairs[0])) < count, len(torch.unique(pairs[1])) < count


def merged_samples(step: Step, a: Tensor, b: Tensor) -> Tensor:
    x, y = torch.broadcast_tensors(a, b)
    both = (x >= 0) & (y >= 0)
    if bool((x[both] != y[both]).any()):
        step.refuse("mixes samples")
    return small(torch.where(x >= 0, x, y))
