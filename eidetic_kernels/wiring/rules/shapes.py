"""Operations that give a tensor another shape: the units' dimension stays whole, or pixels are folded into it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from torch import fx

from ..values import Constant, Count, Heads, Input, Units, Value
from .elementwise import unknown
from .step import Step


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


def numbers(given: Sequence[Any]) -> tuple[Any, ...]:
    """Sizes or dimensions that were given one by one, or as one sequence."""
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else tuple(given)


def count(step: Step, dim: int) -> fx.Node:
    """A node for the size of the first argument's dimension ``dim``."""
    with step.node.graph.inserting_before(step.node):
        return step.node.graph.call_method("size", (step.first_argument(), dim))


def resize(step: Step, sizes: tuple[Any, ...]) -> None:
    """Give the node other sizes.

    torch cannot infer a -1 beside a count of units that has become 0. Where the -1 stands for a dimension that stays,
    that dimension's size is looked up as well.
    """
    shapes = step.shapes()
    if shapes is not None:
        old, new = shapes
        stays = [
            dim < len(old) and prod(old[:dim]) == prod(new[:dim]) and old[dim] == new[dim] for dim in range(len(new))
        ]
        sizes = tuple(count(step, dim) if size == -1 and stays[dim] else size for dim, size in enumerate(sizes))
    nested = len(step.node.args) == 2 and isinstance(step.node.args[1], (tuple, list))
    step.node.args = (step.node.args[0], *([sizes] if nested else sizes))


def flattens(step: Step) -> Value:
    """``flatten(1)``: pixels are folded into units. Dimensions of positions alone may be folded together too."""
    value = step.first()
    if isinstance(value, Input):
        return value
    start, end = _folded_dims(step)
    shape = step.shape(step.first_argument())
    if shape is not None and isinstance(start, int) and isinstance(end, int):
        first, last = start % len(shape), end % len(shape)
        if isinstance(value, Units) and value.spatial:
            folded = _fold_positions(step, value, first, last, len(shape))
            if folded is not None:
                return folded
        whole = (first, last) == (1, len(shape) - 1)
    else:
        whole = False

    if not isinstance(value, Units) or value.last or not (whole or (start, end) == (1, -1)):
        step.refuse(f"flattening dimensions {start} to {end} mixes samples or units: flatten from 1 to -1.")
    return value.flattened()


def _folded_dims(step: Step) -> tuple[Any, Any]:
    """The first and the last dimension that a flattening folds."""
    if step.node.op != "call_module":
        start, end = step.rest(("start_dim", 0), ("end_dim", -1))
        return start, end
    module = step.module  # torch's, or a user's own
    return getattr(module, "start_dim", 1), getattr(module, "end_dim", -1)


def _fold_positions(step: Step, value: Units, first: int, last: int, rank: int) -> Units | None:
    """``value`` with its dimensions ``first`` to ``last`` folded into one; None where units are among them."""
    positions = range(first, last + 1)
    unit, fewer = value.dim(rank), len(positions) - 1
    if not fewer:
        return value
    if unit in positions or (0 in positions and not value.last):
        return None
    batch = first if value.batch in positions else value.batch - fewer * (value.batch > first)
    return placed(step, value, unit - fewer * value.last, rank - fewer, batch)


def reshapes(step: Step) -> Value:
    """``view`` and ``reshape``: positions are folded or unfolded, the units' dimension staying whole; or flattening."""
    value = step.first()
    if isinstance(value, Input):
        return value
    if isinstance(value, Constant):
        return _respaced(step, value)
    sizes = numbers(step.node.args[1:])
    if isinstance(value, Units):
        reshaped = _regrouped(step, value, sizes) or _as_heads(step, value, sizes) or _flattened(step, value, sizes)
        if reshaped is not None:
            return reshaped
    step.refuse(
        "only x.view(x.size(0), -1) is understood: it folds pixels into units. Use x.flatten(1). (ek.convert also "
        "understands reshapes of positions, which leave the dimension of the units whole.)"
    )


def _known(step: Step, value: Units, sizes: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes before and after a view whose sizes may be written anew; None where they may not, or are unknown."""
    shapes = step.shapes() if step.editable else None
    if shapes is None or not all(shapes) or value.folded or len(sizes) != len(shapes[1]):
        return None
    return shapes


def _regrouped(step: Step, value: Units, sizes: tuple[Any, ...]) -> Units | None:
    """A view of positions: one dimension of the result holds the units, all of them and nothing else."""
    shapes = _known(step, value, sizes)
    if shapes is None:
        return None
    old, new = shapes
    unit = value.dim(len(old))
    before, after = prod(old[:unit]), prod(old[unit + 1 :])
    kept = [
        dim
        for dim in {1, len(new) - 1}
        if new[dim] == old[unit] and prod(new[:dim]) == before and prod(new[dim + 1 :]) == after
    ]
    if len(kept) != 1 or (value.batch != 0 and old[: value.batch + 1] != new[: value.batch + 1]):
        return None

    # Whatever number stood there, it is the count of units, which pruning changes.
    (dim,) = kept
    step.take(sizes[dim])
    resize(step, (*sizes[:dim], count(step, unit), *sizes[dim + 1 :]))
    return placed(step, value, dim, len(new))


def _as_heads(step: Step, value: Units, sizes: tuple[Any, ...]) -> Heads | None:
    """A view of units [*, units] as heads [*, heads, head_dim]."""
    shapes = _known(step, value, sizes)
    if shapes is None or not value.last or value.order is not None:
        return None
    old, new = shapes
    if len(new) <= 2 or old[-1] != prod(new[-2:]) or prod(new[:-2]) != prod(old[:-1]):
        return None

    for size in sizes[-2:]:
        step.take(size)
    with step.node.graph.inserting_before(step.node):
        heads = step.node.graph.call_function(operator.floordiv, (count(step, -1), new[-1]))
    resize(step, (*sizes[:-2], heads, new[-1]))
    return Heads(value, -2, new[-1])


def _flattened(step: Step, value: Units, sizes: tuple[Any, ...]) -> Units | None:
    """``x.view(x.size(0), -1)``, or on the example a view that does the same."""
    if len(sizes) != 2 or value.last:
        return None
    samples, columns = sizes
    dynamic = isinstance(samples, fx.Node) and not isinstance(step.values.get(samples), Count)
    shapes = step.shapes() if step.editable else None
    if shapes is not None and (dynamic or samples == -1) and shapes[1] == (shapes[0][0], prod(shapes[0][1:])):
        for size in sizes:
            step.take(size)
        _flatten_instead(step)
        return value.flattened()
    return value.flattened() if dynamic and columns == -1 else None


def _flatten_instead(step: Step) -> None:
    """Make the view a flattening: pruning changes its numbers, and torch cannot infer a -1 once no unit is left."""
    node = step.node
    node.op, node.target, node.args, node.kwargs = "call_method", "flatten", (step.first_argument(), 1), {}


def _respaced(step: Step, value: Constant) -> Constant:
    """A tensor of the network with dimensions of size 1 put in or taken away (``gamma.view(1, -1, 1, 1)``)."""
    new = step.shape(step.node)
    if new is None or not step.editable or not same_but_ones(new, value.shape):
        step.refuse(f"{value.path!r}, a tensor of the network, must be combined with units as it is.")
    for argument in step.given:  # sizes are written anew
        step.take(argument)
    kept = iter([dim for dim, size in enumerate(value.shape) if size != 1])
    sizes = tuple(1 if size == 1 else count(step, next(kept)) for size in new)
    node = step.node
    node.op, node.target, node.args, node.kwargs = "call_method", "reshape", (step.first_argument(), sizes), {}
    return replace(value, shape=tuple(new))


def same_but_ones(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes differ in dimensions of size 1 alone."""
    return [size for size in a if size != 1] == [size for size in b if size != 1]


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


def permutes(step: Step) -> Value:
    """``permute``, ``transpose``: units come to lie in dimension 1 or in the last."""
    value = step.first()
    if isinstance(value, Input):
        return value
    rank = len(step.shape(step.first_argument()) or ())
    if not rank or not isinstance(value, Units) or value.flat:
        step.refuse("where the units come to lie is not known here; ek.convert knows, by the example's shape.")
    order = order_of(step, rank)
    return placed(step, value, order.index(value.dim(rank)), rank, order.index(value.batch))


def expands(step: Step) -> Value:
    """``expand`` over the batch (a class token) or over positions.

    Sizes that stay are left to the tensor (-1), since pruning changes them.
    """
    value = step.first()
    if not step.editable or not isinstance(value, (Constant, Units)):
        return unknown(step)
    sizes = numbers(step.node.args[1:])
    if isinstance(value, Constant):
        added = len(sizes) - len(value.shape)
        _leave(step, sizes, {added + dim for dim, size in enumerate(value.shape) if size != 1})
        return replace(value, shape=(*[1] * added, *value.shape))

    shapes = step.shapes()
    if shapes is None:
        return unknown(step)
    old, new = shapes
    unit = value.dim(len(old))
    if len(sizes) != len(old) or value.folded or new[unit] != old[unit] or new[value.batch] != old[value.batch]:
        step.refuse("units and samples must stay as many as they are; only positions may be expanded.")
    _leave(step, sizes, {unit, *(dim for dim, size in enumerate(old) if size != 1)})
    return replace(value, pixels=None if value.spatial else value.pixels)


def _leave(step: Step, sizes: tuple[Any, ...], dims: set[int]) -> None:
    """Write -1 for the sizes of ``dims``."""
    for dim in dims:
        step.take(sizes[dim])
    step.node.args = (step.node.args[0], *(-1 if dim in dims else size for dim, size in enumerate(sizes)))


def squeezes(step: Step) -> Value:
    """``unsqueeze`` and ``squeeze``: dimensions of size 1 beside units and samples come and go."""
    value, (dim,) = step.first(), step.rest(("dim", None))
    if isinstance(value, Input):
        return value
    if isinstance(value, Constant):
        return _respaced(step, value)
    rank, old = step.rank(step.first_argument()), step.shape(step.first_argument())
    if not isinstance(value, Units) or not rank or not isinstance(dim, int) or value.folded:
        step.refuse("which dimensions come or go is not known here: name one by its number, of a tensor of units.")

    unit = value.dim(rank)
    if step.operation.startswith("un"):
        dim %= rank + 1
        return placed(step, value, unit + (dim <= unit), rank + 1, value.batch + (dim <= value.batch))
    dim %= rank
    if dim in (unit, value.batch) or (old is None and value.pixels != 1):
        step.refuse("units, samples or positions would go where there is only one of them, and stay otherwise.")
    if old is not None and old[dim] != 1:
        return value
    return placed(step, value, unit - (dim < unit), rank - 1, value.batch - (dim < value.batch))
