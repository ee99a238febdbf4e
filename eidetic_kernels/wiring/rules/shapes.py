"""Operations that give a tensor another shape, the units' dimension staying whole (or pixels being folded into it)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import fx

from ..values import INPUT, Constant, Count, Heads, Units
from .elementwise import unknown
from .step import Step, unit_dim


def placed(step: Step, value: Units, dim: int, rank: int, batch: int | None = None) -> Units:
    """``value`` as a tensor of ``rank`` dimensions whose units lie in dimension ``dim`` and samples in ``batch``."""
    if dim not in (1, rank - 1) or not dim:
        step.refuse(f"the units would come to lie in dimension {dim} of {rank}; it must be dimension 1 or the last.")
    return replace(
        value,
        spatial=rank > 2,
        last=rank > 2 and dim == rank - 1,
        pixels=None if rank > 2 else 1,
        flat=False,
        batch=value.batch if batch is None else batch,
    )


def is_folded(value: Units) -> bool:
    """Whether each unit covers several columns."""
    return value.flat and value.pixels != 1


def numbers(given: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes or dimensions that were given one by one, or as one sequence."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else tuple(given)


def count(step: Step, dim: int) -> fx.Node:
    """A node for the size of the first argument's dimension ``dim``."""
    with step.node.graph.inserting_before(step.node):
        return step.node.graph.call_method("size", (step.first_argument(), dim))


def resize(step: Step, sizes: tuple[Any, ...]) -> None:
    """Give the node other sizes. A -1 beside a count of units that may become 0 would have no meaning: where it stands
    for a dimension that stays, it is looked up too."""
    old, new = step.shape(step.first_argument()), step.shape(step.node)
    sizes = tuple(
        count(step, dim)
        if size == -1 and dim < len(old) and prod(old[:dim]) == prod(new[:dim]) and old[dim] == new[dim]
        else size
        for dim, size in enumerate(sizes)
    )
    nested = len(step.node.args) == 2 and isinstance(step.node.args[1], (tuple, list))
    step.node.args = (step.node.args[0], *([sizes] if nested else sizes))


def flattens(step: Step) -> Any:
    """``flatten(1)``: pixels are folded into units."""
    value = step.first()
    if value is INPUT:
        return INPUT
    if step.node.op == "call_module":
        start, end = step.module.start_dim, step.module.end_dim
    else:
        start, end = step.rest(("start_dim", 0), ("end_dim", -1))
    shape = step.shape(step.first_argument())
    known = shape is not None and isinstance(start, int) and isinstance(end, int)
    if isinstance(value, Units) and value.spatial and known:
        positions = range(start % len(shape), end % len(shape) + 1)
        unit, fewer = unit_dim(value, len(shape)), len(positions) - 1
        if not fewer:
            return value
        if unit not in positions and (value.last or 0 not in positions):
            batch = positions.start if value.batch in positions else value.batch - fewer * (value.batch > start)
            return placed(step, value, unit - fewer * value.last, len(shape) - fewer, batch)
    whole = known and (start % len(shape), end % len(shape)) == (1, len(shape) - 1)
    if not (whole or (start, end) == (1, -1)) or getattr(value, "last", False):
        step.refuse(f"flattening dimensions {start} to {end} mixes samples or units: flatten from 1 to -1.")
    return value.flattened()


def reshapes(step: Step) -> Any:
    """``view`` and ``reshape``: positions are folded or unfolded, the units' dimension staying whole; or flattening."""
    value = step.first()
    if value is INPUT:
        return INPUT
    sizes = numbers(step.node.args[1:])
    if isinstance(value, Constant):
        return _respaced(step, value)
    old, new = step.shape(step.first_argument()), step.shape(step.node)
    known = isinstance(value, Units) and old and new and step.editable
    if known and not is_folded(value) and len(sizes) == len(new):
        unit = unit_dim(value, len(old))
        before, after = prod(old[:unit]), prod(old[unit + 1 :])
        kept = [
            dim
            for dim in {1, len(new) - 1}
            if new[dim] == old[unit] and prod(new[:dim]) == before and prod(new[dim + 1 :]) == after
        ]
        if len(kept) == 1 and (value.batch == 0 or old[: value.batch + 1] == new[: value.batch + 1]):
            # Whatever number stood there, it is the count of units, which pruning changes.
            step.take(sizes[kept[0]])
            resize(step, (*sizes[: kept[0]], count(step, unit), *sizes[kept[0] + 1 :]))
            return placed(step, value, kept[0], len(new))
        heads_whole = len(new) > 2 and old[-1] == prod(new[-2:]) and prod(new[:-2]) == before
        if value.last and value.order is None and heads_whole:
            for size in sizes[-2:]:
                step.take(size)
            with step.node.graph.inserting_before(step.node):
                heads = step.node.graph.call_function(operator.floordiv, (count(step, unit), new[-1]))
            resize(step, (*sizes[:-2], heads, new[-1]))
            return Heads(value, -2, new[-1])
    if len(sizes) == 2 and isinstance(value, Units) and not value.last:
        samples, columns = sizes
        dynamic = isinstance(samples, fx.Node) and not isinstance(step.values.get(samples), Count)
        if known and (dynamic or samples == -1) and new == (old[0], prod(old[1:])):
            for size in sizes:
                step.take(size)
            _flatten_instead(step)
            return value.flattened()
        if dynamic and columns == -1:
            return value.flattened()
    step.refuse(
        "only x.view(x.size(0), -1) is understood: it folds pixels into units. Use x.flatten(1). (ek.convert also "
        "understands reshapes of positions, which leave the dimension of the units whole.)"
    )


def _flatten_instead(step: Step) -> None:
    """What the numbers in a view count changes with pruning, and -1 means nothing where no unit is left."""
    node = step.node
    node.op, node.target, node.args, node.kwargs = "call_method", "flatten", (step.first_argument(), 1), {}


def _respaced(step: Step, value: Constant) -> Constant:
    """A tensor of the network with dimensions of size 1 put in or taken away (``gamma.view(1, -1, 1, 1)``)."""
    new = step.shape(step.node)
    if new is None or not step.editable or [s for s in new if s != 1] != [s for s in value.shape if s != 1]:
        step.refuse(f"{value.path!r}, a tensor of the network, must be combined with units as it is.")
    for argument in step.given:  # sizes are written anew
        step.take(argument)
    kept = iter([dim for dim, size in enumerate(value.shape) if size != 1])
    sizes = tuple(1 if size == 1 else count(step, next(kept)) for size in new)
    node = step.node
    node.op, node.target, node.args, node.kwargs = "call_method", "reshape", (step.first_argument(), sizes), {}
    return replace(value, shape=tuple(new))


def order_of(step: Step, rank: int) -> list[int]:
    """Which dimension each dimension of a permuted tensor was."""
    given = numbers(step.node.args[1:] or tuple(step.node.kwargs.values()))
    if not all(isinstance(dim, int) for dim in given):
        step.refuse("where the units come to lie is not known here: name the dimensions by numbers.")
    order = [dim % rank for dim in given]
    if step.operation != "permute":
        a, b = order
        order = list(range(rank))
        order[a], order[b] = b, a
    return order


def permutes(step: Step) -> Any:
    """``permute``, ``transpose``: units come to lie in dimension 1 or in the last."""
    value = step.first()
    if value is INPUT:
        return INPUT
    rank = len(step.shape(step.first_argument()) or ())
    if not rank or not isinstance(value, Units) or value.flat:
        step.refuse("where the units come to lie is not known here; ek.convert knows, by the example's shape.")
    order = order_of(step, rank)
    return placed(step, value, order.index(unit_dim(value, rank)), rank, order.index(value.batch))


def expands(step: Step) -> Any:
    """``expand`` over the batch (a class token) or over positions: sizes that stay are left to the tensor, since
    pruning changes them."""
    value, node = step.first(), step.node
    if not step.editable or not isinstance(value, (Constant, Units)):
        return unknown(step)
    sizes, old, new = numbers(node.args[1:]), step.shape(step.first_argument()), step.shape(node)
    old = old if isinstance(value, Units) else value.shape
    added = len(sizes) - len(old)
    stays = [added + dim for dim, size in enumerate(old) if size != 1]
    if isinstance(value, Units):
        unit = unit_dim(value, len(old))
        if added or is_folded(value) or new[unit] != old[unit] or new[value.batch] != old[value.batch]:
            step.refuse("units and samples must stay as many as they are; only positions may be expanded.")
        stays = {*stays, unit}
    for dim in stays:
        step.take(sizes[dim])
    node.args = (node.args[0], *(-1 if dim in stays else size for dim, size in enumerate(sizes)))
    if isinstance(value, Units):
        return replace(value, pixels=None if value.spatial else value.pixels)
    return replace(value, shape=(*[1] * added, *value.shape))


def squeezes(step: Step) -> Any:
    """``unsqueeze`` and ``squeeze``: dimensions of size 1 beside units and samples come and go."""
    value, (dim,) = step.first(), step.rest(("dim", None))
    if value is INPUT:
        return INPUT
    if isinstance(value, Constant):
        return _respaced(step, value)
    rank, old = step.rank(step.first_argument()), step.shape(step.first_argument())
    adds = step.operation.startswith("un")
    if not isinstance(value, Units) or not rank or not isinstance(dim, int) or is_folded(value):
        step.refuse("which dimensions come or go is not known here: name one by its number, of a tensor of units.")
    unit = unit_dim(value, rank)
    if adds:
        dim %= rank + 1
        return placed(step, value, unit + (dim <= unit), rank + 1, value.batch + (dim <= value.batch))
    dim %= rank
    if dim in (unit, value.batch) or (old is None and value.pixels != 1):
        step.refuse("units, samples or positions would go where there is only one of them, and stay otherwise.")
    if old is not None and old[dim] != 1:
        return value
    return placed(step, value, unit - (dim < unit), rank - 1, value.batch - (dim < value.batch))
