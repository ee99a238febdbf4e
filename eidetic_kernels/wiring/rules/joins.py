"""Operations that put groups side by side or take them apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..values import INPUT, Constant, Units
from .elementwise import unknown
from .step import Step


def concatenates(step: Step) -> Any:
    """Groups are put side by side in dimension 1."""
    tensors = step.first_argument()
    (dim,) = step.rest(("dim", 0))
    pieces = step.of(tensors)  # of a split, as they are
    values = pieces if isinstance(pieces, list) else []
    if isinstance(tensors, (list, tuple)):
        values = [step.of(tensor) for tensor in tensors]
    if all(value is None or value is INPUT for value in values):
        return INPUT if any(value is INPUT for value in values) else unknown(step)
    if not isinstance(dim, int):
        step.refuse("in which dimension it concatenates is not known: give a number.")
    units = [value for value in values if isinstance(value, Units)]
    rank = len(step.shape(step.node) or ())
    if units and rank and dim % rank == units[0].batch:
        step.refuse(f"a concatenation in dimension {dim} adds samples; a network answers for those it is given.")
    if units and all(isinstance(value, Constant) or (isinstance(value, Units) and value.last) for value in values):
        if rank and dim % rank != rank - 1:  # more positions of the same units
            whole = units[0]
            for value in units[1:]:
                whole = step.builder.tie(whole, value, step.where())
            for value in values:
                if isinstance(value, Constant):
                    step.builder.hold(value, whole, -1, step.where())
            return replace(whole, pixels=None)
        unit_dims = {-1, rank - 1}
    else:
        rank = rank or (4 if any(value.spatial for value in units) else 2)
        unit_dims = {1, 1 - rank}
    if dim not in unit_dims:
        step.refuse(f"a concatenation in dimension {dim} does not put units side by side: concatenate in dimension 1.")
    if len({value.batch for value in units}) > 1:
        step.refuse("the samples of what is concatenated lie in different dimensions.")
    joined = step.builder.concatenate(values, step.where())
    return replace(joined, batch=units[0].batch)


def divides(step: Step) -> Any:
    """``chunk`` and ``split``: a layer's units would be shared out by counts that pruning changes."""
    value = step.first()
    if isinstance(value, Units):
        step.refuse(
            "it cuts units apart at a fixed place, which pruning would move. Give each part a layer of its own, and "
            "concatenate them where they are read together (ek.convert understands it in dimension 1)."
        )
    return unknown(step)


def separates(step: Step) -> Any:
    """A split that knows the groups it cuts apart."""
    value = step.first()
    if value is not INPUT and not isinstance(value, Units):
        return unknown(step)
    if isinstance(value, Units) and value.spatial and value.last != (step.module.unit_dim == -1):
        step.refuse("it cuts positions apart, not units; only x[...] of positions is understood.")
    return step.builder.divide(step.path, value, step.module.sizes, step.where())


def shuffles(step: Step) -> Any:
    """A channel shuffle that leaves groups side by side."""
    value = step.first()
    return step.builder.shuffle(step.path, value, step.module.groups) if isinstance(value, Units) else unknown(step)


def merges_patches(step: Step) -> Any:
    """Swin's patch merging: four neighbours' units side by side."""
    value = step.first()
    if not isinstance(value, Units) or not value.last:
        step.refuse("patches are merged of units in the last dimension.")
    return step.builder.concatenate([value] * 4, step.where())
