"""Operations over positions (pixels, tokens), which leave units and samples apart."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

from torch import fx

from ..values import INPUT, Constant, Units
from .elementwise import unknown
from .numbers import attribute
from .shapes import is_folded, placed, squeezes
from .step import Step, unit_dim


def passes_images(step: Step) -> Any:
    """Units stay apart and in order, of images only, whose size may change; over flat ones it would mix neighbours."""
    value = step.first()
    if value is INPUT:
        return INPUT
    if step.node.op == "call_module":
        output_size = getattr(step.module, "output_size", None)
    else:
        output_size = step.rest(("output_size", None))[0]
    _require_image(step, value)
    if "adaptive" not in step.operation.lower():
        return replace(value, pixels=None)
    sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    known = all(isinstance(side, int) for side in sides)
    return replace(value, pixels=sides[0] * sides[1] if known else None)


def _require_image(step: Step, value: Any) -> None:
    image = isinstance(value, Units) and value.spatial and not value.last
    if not image or len(step.shape(step.first_argument()) or "NCHW") != 4:
        step.refuse(f"{step.operation} over units without pixels after them would mix neighbouring units.")


def pads(step: Step) -> Any:
    """``F.pad`` of positions."""
    value, (sides,) = step.first(), step.rest(("pad", ()))
    if value is INPUT:
        return INPUT
    rank = step.rank(step.first_argument())
    if not isinstance(value, Units) or not value.spatial or not rank:
        step.refuse("only positions may be padded, and there are none here.")
    touched = {rank - 1 - place // 2 for place, side in enumerate(sides) if not (isinstance(side, int) and side == 0)}
    if touched & {unit_dim(value, rank), value.batch}:
        step.refuse(
            "it pads units or samples: units that no layer makes belong to no task. Only positions may be padded; "
            "where there are too few channels to add, put a 1x1 convolution."
        )
    return replace(value, pixels=None)


def indexes(step: Step) -> Any:
    """``x[...]`` on positions: a token is picked, a part of an image is taken. Units and samples stay whole."""
    value, given = step.first(), step.node.args[1]
    if isinstance(value, tuple):
        return value[given]
    if isinstance(value, Constant):
        return _of_constant(step, value)
    rank = step.rank(step.first_argument())
    if not isinstance(value, Units) or not rank:
        return unknown(step)
    given = given if isinstance(given, tuple) else (given,)
    named = sum(each is not None for each in given) - (Ellipsis in given)
    if Ellipsis in given:
        place = given.index(Ellipsis)
        given = (*given[:place], *[slice(None)] * (rank - named), *given[place + 1 :])
    else:
        given = (*given, *[slice(None)] * (rank - named))
    unit, dim, places = unit_dim(value, rank), 0, []
    given = _with_all_units(step, given, unit)
    for each in given:  # ``places``: which dimension each dimension of the result was
        if each is None:
            places.append(None)
            continue
        if dim == value.batch and each != slice(None):
            step.refuse("it picks some samples of the batch; a network must answer for each of them.")
        if type(each) not in (int, slice) or (dim == unit and each != slice(None)):
            step.refuse("it picks some units, or picks by a tensor; only whole positions may be picked.")
        if not isinstance(each, int):
            places.append(dim)
        dim += 1
    if is_folded(value):
        if places != list(range(rank)):
            step.refuse("pixels were folded into its units: give it other dimensions before flattening.")
        return value
    return placed(step, value, places.index(unit), len(places), places.index(value.batch))


def _of_constant(step: Step, value: Constant) -> Any:
    """``pos[:, :x.size(1)]``, ``scale[:, None, None]``: a tensor of the network, all of it on the example."""
    given = step.node.args[1] if isinstance(step.node.args[1], tuple) else (step.node.args[1],)
    if any(each not in (None, Ellipsis) and type(each) not in (int, slice) for each in given):
        step.refuse(
            f"it picks parts of {value.path!r}, a tensor of the network, by a list or another tensor, whose order is "
            "not followed: index it by slices alone."
        )
    bounds = [bound for each in given if isinstance(each, slice) for bound in (each.start, each.stop, each.step)]
    if not any(map(_is_node, bounds)):
        return squeezes(step)
    shape = step.shape(step.node)
    if shape is None or [size for size in shape if size != 1] != [size for size in value.shape if size != 1]:
        step.refuse(f"{value.path!r}, a tensor of the network, must be combined with units as it is.")
    for argument in step.given:  # sizes of an input, which other inputs have otherwise
        step.take(argument)
    fixed = [isinstance(each, slice) and not any(map(_is_node, (each.start, each.stop, each.step))) for each in given]
    all_of = tuple(slice(None) if number else each for number, each in zip(fixed, given))
    step.node.args = (step.node.args[0], all_of)  # also where there are more units one day
    return replace(value, shape=tuple(shape))


def _is_node(given: Any) -> bool:
    return isinstance(given, fx.Node)


def _with_all_units(step: Step, given: tuple[Any, ...], unit: int) -> tuple[Any, ...]:
    """``given`` without a number in it that says how many units there are (``x[:, :channels]``)."""
    place = [number for number, each in enumerate(given) if each is not None][unit]
    each, shape = given[place], step.shape(step.first_argument())
    if not isinstance(each, slice) or each.start not in (None, 0) or each.step not in (None, 1):
        return given
    numbered = step.editable and shape is not None and isinstance(each.stop, int) and each.stop >= shape[unit]
    if each.stop is not None and not numbered:
        return given
    given = (*given[:place], slice(None), *given[place + 1 :])
    if numbered:
        step.node.args = (step.node.args[0], given)
    return given


def indexes_or_attribute(step: Step) -> Any:
    """``x[...]`` and ``x.name``, of whatever was made before."""
    argument, key = step.node.args[:2]
    value = step.of(argument)
    if step.node.target is builtins.getattr:
        return attribute(step)
    if isinstance(value, list) and isinstance(key, int):
        return value[key]
    if value is INPUT:
        tensor = step.shape(argument) is not None or argument.op == "placeholder"
        first = key[0] if isinstance(key, tuple) and key else key
        if tensor and first != slice(None) and first not in (None, Ellipsis):
            step.refuse("it picks some samples of the batch; a network must answer for each of them.")
        return unknown(step)
    return None if value is None else indexes(step)


def rolls(step: Step) -> Any:
    """``torch.roll`` over positions."""
    value, (_, dims) = step.first(), step.rest(("shifts", None), ("dims", None))
    if isinstance(value, Units):
        rank = step.rank(step.first_argument())
        dims = (dims,) if isinstance(dims, int) else dims
        if not rank or not dims or {unit_dim(value, rank), value.batch} & {dim % rank for dim in dims}:
            step.refuse("it would move units to other units' places; only positions may be rolled.")
    return value


def averages(step: Step) -> Any:
    """A mean (or sum, or extreme) over positions."""
    value = step.first()
    dims, keep = step.rest(("dim", None), ("keepdim", False))
    if value is INPUT:
        return INPUT
    what = "a mean" if step.operation == "mean" else step.operation
    dims = {dims} if isinstance(dims, int) else set(dims or ())
    if not isinstance(value, Units) or any(isinstance(dim, fx.Node) for dim in dims):
        return unknown(step)
    shape = step.shape(step.first_argument())
    rank = step.rank(step.first_argument())
    dims = {dim % rank for dim in dims} if rank else set()
    if not dims or unit_dim(value, rank) in dims:
        only = "only positions" if value.last else "only space"
        step.refuse(f"{what} over dimensions {sorted(dims) or 'all'} mixes units; {only} may be averaged.")
    if value.batch in dims:
        step.refuse(f"{what} over dimensions {sorted(dims)} mixes samples; a network answers for each of them.")
    if shape is None and (dims != {2, 3} or not value.spatial):
        step.refuse(f"{what} over one side of an image is not understood: average over both.")
    if keep:
        whole = dims == set(range(rank)) - {unit_dim(value, rank), value.batch}
        return replace(value, pixels=1 if whole else None)
    fewer = [sum(dim < place for dim in dims) for place in (unit_dim(value, rank), value.batch)]
    return placed(step, value, unit_dim(value, rank) - fewer[0], rank - len(dims), value.batch - fewer[1])
