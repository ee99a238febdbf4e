"""Operations over positions (pixels, tokens), which leave units and samples apart."""

from __future__ import annotations

import builtins
from dataclasses import replace
from math import prod
from typing import Any

from torch import fx

from ..values import Constant, Input, Units, Value
from .elementwise import unknown
from .numbers import attribute
from .shapes import placed, same_but_ones, squeezes
from .step import Step

_ALL = slice(None)


def passes_images(step: Step) -> Value:
    """Units of images stay apart and in order; the images' size may change. Over flat units it would mix neighbours."""
    value = step.first()
    if isinstance(value, Input):
        return value
    if not isinstance(value, Units) or not value.spatial or value.last or not _is_image(step):
        step.refuse(f"{step.operation} over units without pixels after them would mix neighbouring units.")
    if "adaptive" not in step.operation.lower():
        return replace(value, pixels=None)

    if step.node.op == "call_module":
        size = getattr(step.module, "output_size", None)
    else:
        (size,) = step.rest(("output_size", None))
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    return replace(value, pixels=prod(sides) if sides and all(isinstance(side, int) for side in sides) else None)


def _is_image(step: Step) -> bool:
    shape = step.shape(step.first_argument())
    return not shape or len(shape) == 4


def pads(step: Step) -> Value:
    """``F.pad`` of positions."""
    value, (sides,) = step.first(), step.rest(("pad", ()))
    if isinstance(value, Input):
        return value
    rank = step.rank(step.first_argument())
    if not isinstance(value, Units) or not value.spatial or not rank:
        step.refuse("only positions may be padded, and there are none here.")
    touched = {rank - 1 - place // 2 for place, side in enumerate(sides) if not (isinstance(side, int) and side == 0)}
    if touched & {value.dim(rank), value.batch}:
        step.refuse(
            "it pads units or samples: units that no layer makes belong to no task. Only positions may be padded; "
            "where there are too few channels to add, put a 1x1 convolution."
        )
    return replace(value, pixels=None)


def indexes(step: Step) -> Value:
    """``x[...]`` on positions: a token is picked, a part of an image is taken. Units and samples stay whole."""
    value, given = step.first(), step.node.args[1]
    if isinstance(value, tuple) and isinstance(given, (int, slice)):
        return value[given]
    if isinstance(value, Constant):
        return _of_constant(step, value)
    rank = step.rank(step.first_argument())
    if not isinstance(value, Units) or not rank:
        return unknown(step)

    unit = value.dim(rank)
    places = _kept_dims(step, value, _with_all_units(step, _an_index_a_dim(given, rank), unit), unit)
    if value.folded:
        if places != list(range(rank)):
            step.refuse("pixels were folded into its units: give it other dimensions before flattening.")
        return value
    return placed(step, value, places.index(unit), len(places), places.index(value.batch))


def _an_index_a_dim(given: Any, rank: int) -> tuple[Any, ...]:
    """What stands in ``x[given]``, one index for each of the ``rank`` dimensions; each None adds a dimension."""
    given = given if isinstance(given, tuple) else (given,)
    named = sum(each is not None for each in given) - (Ellipsis in given)
    place = given.index(Ellipsis) if Ellipsis in given else len(given)
    return (*given[:place], *[_ALL] * (rank - named), *given[place + 1 :])


def _kept_dims(step: Step, value: Units, given: tuple[Any, ...], unit: int) -> list[int | None]:
    """Which dimension of ``value`` each dimension of ``x[given]`` is; None for one that is added."""
    dim, places = 0, []
    for each in given:
        if each is None:
            places.append(None)
            continue
        if dim == value.batch and each != _ALL:
            step.refuse("it picks some samples of the batch; a network must answer for each of them.")
        if type(each) not in (int, slice) or (dim == unit and each != _ALL):
            step.refuse("it picks some units, or picks by a tensor; only whole positions may be picked.")
        if not isinstance(each, int):
            places.append(dim)
        dim += 1
    return places


def _with_all_units(step: Step, given: tuple[Any, ...], unit: int) -> tuple[Any, ...]:
    """``given`` without a number in it that says how many units there are (``x[:, :channels]``)."""
    place = [number for number, each in enumerate(given) if each is not None][unit]
    each, shape = given[place], step.shape(step.first_argument())
    if not isinstance(each, slice) or each.start not in (None, 0) or each.step not in (None, 1):
        return given
    numbered = step.editable and shape is not None and isinstance(each.stop, int) and each.stop >= shape[unit]
    if each.stop is not None and not numbered:
        return given

    given = (*given[:place], _ALL, *given[place + 1 :])
    if numbered:
        step.node.args = (step.node.args[0], given)
    return given


def _of_constant(step: Step, value: Constant) -> Value:
    """An index that takes all of a tensor of the network: ``pos[:, :x.size(1)]`` on the example, ``scale[:, None]``."""
    given = step.node.args[1] if isinstance(step.node.args[1], tuple) else (step.node.args[1],)
    if any(each not in (None, Ellipsis) and type(each) not in (int, slice) for each in given):
        step.refuse(
            f"it picks parts of {value.path!r}, a tensor of the network, by a list or another tensor, whose order is "
            "not followed: index it by slices alone."
        )
    if not any(map(_is_computed, given)):
        return squeezes(step)

    shape = step.shape(step.node)
    if shape is None or not same_but_ones(shape, value.shape):
        step.refuse(f"{value.path!r}, a tensor of the network, must be combined with units as it is.")
    for argument in step.given:  # sizes of the input, which differ from input to input
        step.take(argument)
    # Slices take all of it, also when there are more units one day.
    fixed = [isinstance(each, slice) and not _is_computed(each) for each in given]
    step.node.args = (step.node.args[0], tuple(_ALL if whole else each for whole, each in zip(fixed, given)))
    return replace(value, shape=tuple(shape))


def _is_computed(index: Any) -> bool:
    """Whether a slice has a bound that the graph computes."""
    bounds = (index.start, index.stop, index.step) if isinstance(index, slice) else ()
    return any(isinstance(bound, fx.Node) for bound in bounds)


def indexes_or_attribute(step: Step) -> Value:
    """``x[...]`` and ``x.name``, of whatever was made before."""
    argument, key = step.node.args[:2]
    value = step.of(argument)
    if step.node.target is builtins.getattr:
        return attribute(step)
    if isinstance(value, list) and isinstance(key, int):
        return value[key]
    if isinstance(value, Input):
        is_input = isinstance(argument, fx.Node) and argument.op == "placeholder"
        tensor = is_input or step.shape(argument) is not None
        first = key[0] if isinstance(key, tuple) and key else key
        if tensor and first != _ALL and first not in (None, Ellipsis):
            step.refuse("it picks some samples of the batch; a network must answer for each of them.")
        return unknown(step)
    return None if value is None else indexes(step)


def rolls(step: Step) -> Value:
    """``torch.roll`` over positions."""
    value, (_, dims) = step.first(), step.rest(("shifts", None), ("dims", None))
    if isinstance(value, Units):
        rank = step.rank(step.first_argument())
        dims = (dims,) if isinstance(dims, int) else dims
        if not rank or not dims or {value.dim(rank), value.batch} & {dim % rank for dim in dims}:
            step.refuse("it would move units to other units' places; only positions may be rolled.")
    return value


def averages(step: Step) -> Value:
    """A mean (or sum, or extreme) over positions."""
    value, (dims, keep) = step.first(), step.rest(("dim", None), ("keepdim", False))
    if isinstance(value, Input):
        return value
    dims = {dims} if isinstance(dims, int) else set(dims or ())
    if not isinstance(value, Units) or any(isinstance(dim, fx.Node) for dim in dims):
        return unknown(step)

    what = "a mean" if step.operation == "mean" else step.operation
    rank = step.rank(step.first_argument())
    unit, dims = value.dim(rank), {dim % rank for dim in dims} if rank else set()
    if not dims or unit in dims:
        only = "only positions" if value.last else "only space"
        step.refuse(f"{what} over dimensions {sorted(dims) or 'all'} mixes units; {only} may be averaged.")
    if value.batch in dims:
        step.refuse(f"{what} over dimensions {sorted(dims)} mixes samples; a network answers for each of them.")
    if step.shape(step.first_argument()) is None and (dims != {2, 3} or not value.spatial):
        step.refuse(f"{what} over one side of an image is not understood: average over both.")

    if keep:
        whole = dims == set(range(rank)) - {unit, value.batch}
        return replace(value, pixels=1 if whole else None)
    before_unit, before_batch = (sum(dim < place for dim in dims) for place in (unit, value.batch))
    return placed(step, value, unit - before_unit, rank - len(dims), value.batch - before_batch)
