"""Operations that put groups side by side or take them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...layers import Split
from ..values import INPUT, Constant, Input, Units, Value
from .elementwise import unknown
from .step import Step


def concatenates(step: Step) -> Value:
    """Groups are put side by side in the units' dimension; or more positions of the same units are added."""
    tensors = step.first_argument()
    (dim,) = step.rest(("dim", 0))
    pieces = step.of(tensors)  # of a split, as they are
    values = pieces if isinstance(pieces, list) else []
    if isinstance(tensors, (list, tuple)):
        values = [step.of(tensor) for tensor in tensors]
    if all(value is None or isinstance(value, Input) for value in values):
        return INPUT if any(isinstance(value, Input) for value in values) else unknown(step)
    if not isinstance(dim, int):
        step.refuse("in which dimension it concatenates is not known: give a number.")

    units = [value for value in values if isinstance(value, Units)]
    rank = len(step.shape(step.node) or ())
    if units and rank and dim % rank == units[0].batch:
        step.refuse(f"a concatenation in dimension {dim} adds samples; a network answers for those it is given.")
    if units and all(isinstance(value, Constant) or (isinstance(value, Units) and value.last) for value in values):
        if rank and dim % rank != rank - 1:
            return _more_positions(step, values, units)
        unit_dims = {-1, rank - 1}
    else:
        rank = rank or (4 if any(isinstance(value, Units) and value.spatial for value in values) else 2)
        unit_dims = {1, 1 - rank}
    if dim not in unit_dims:
        step.refuse(f"a concatenation in dimension {dim} does not put units side by side: concatenate in dimension 1.")
    if len({value.batch for value in units}) > 1:
        step.refuse("the samples of what is concatenated lie in different dimensions.")

    joined = step.builder.concatenate(values, step.where())
    return replace(joined, batch=units[0].batch) if isinstance(joined, Units) else joined


def _more_positions(step: Step, values: Sequence[Value], units: Sequence[Units]) -> Units:
    """Tokens after tokens: the same units at more positions, some of which a tensor of the network may fill."""
    whole = units[0]
    for value in units[1:]:
        whole = step.builder.unite(whole, value, step.where())
    for value in values:
        if isinstance(value, Constant):
            step.builder.hold(value, whole, -1, step.where())
    return replace(whole, pixels=None)


def divides(step: Step) -> Value:
    """``chunk`` and ``split``: they would hand out a layer's units by counts that pruning changes."""
    value = step.first()
    if isinstance(value, Units):
        step.refuse(
            "it cuts units apart at a fixed place, which pruning would move. Give each part a layer of its own, and "
            "concatenate them where they are read together (ek.convert understands it in dimension 1)."
        )
    return unknown(step)


def separates(step: Step) -> Value:
    """A split that knows the groups it cuts apart."""
    value, split = step.first(), step.module_as(Split)
    if not isinstance(value, (Input, Units)):
        return unknown(step)
    if isinstance(value, Units) and value.spatial and value.last != (split.unit_dim == -1):
        step.refuse("it cuts positions apart, not units; only x[...] of positions is understood.")
    return step.builder.divide(step.path, value, split.sizes, step.where())


def merges_patches(step: Step) -> Value:
    """Swin's patch merging: four neighbours' units side by side."""
    value = step.first()
    if not isinstance(value, Units) or not value.last:
        step.refuse("patches are merged of units in the last dimension.")
    return step.builder.concatenate([value] * 4, step.where())
