"""Sizes and other facts about tensors, and what is computed of them.

A size of the units' dimension changes with pruning, so it may stand in a shape, where a rule looks it up anew, and
nowhere else: a tensor divided by its number of units is not what it was once some are gone.
"""

from __future__ import annotations

import operator
from typing import Any

from ..values import Constant, Count, Fixed, Heads, Sizes, Units
from .step import Step, name_of, unit_dim

# Where functions of numbers alone come from.
_ARITHMETIC = ("_operator", "operator", "math", "builtins")

IN_PLACE = tuple(
    getattr(operator, f"i{name}")
    for name in (
        "add",
        "and",
        "floordiv",
        "lshift",
        "matmul",
        "mod",
        "mul",
        "or",
        "pow",
        "rshift",
        "sub",
        "truediv",
        "xor",
    )
)


def sizes_of(step: Step, argument: Any) -> Sizes | None:
    """The shape of an argument's tensor; None where no unit is counted in it."""
    value, rank = step.of(argument), step.rank(argument)
    if isinstance(value, Units):
        if not rank:
            step.refuse("which of its sizes counts units is not known here; ek.convert knows, by the example's shape.")
        counts = [dim == unit_dim(value, rank) for dim in range(rank)]
    elif isinstance(value, Heads):
        counts = [dim == rank + value.axis for dim in range(rank)]
    elif isinstance(value, Constant):  # not known yet which dimension will hold units
        counts = [size > 1 for size in value.shape]
    else:
        return None
    return Sizes(name_of(value), tuple(counts))


def measures(step: Step) -> Any:
    """A size or another fact about a tensor."""
    argument = step.first_argument()
    value = step.of(argument)
    if step.operation in ("numel", "nelement"):
        return None if sizes_of(step, argument) is None else Count(name_of(value))
    if step.operation != "size":  # dim and the like
        return None
    sizes, (dim,) = sizes_of(step, argument), step.rest(("dim", None))
    if sizes is None or dim is None:
        return sizes
    return sizes.at(dim) if isinstance(dim, int) else Count(sizes.name)


def attribute(step: Step) -> Any:
    """``x.shape`` and other facts that are no calls."""
    argument, name = step.node.args[:2]
    value = step.of(argument)
    if name == "shape":
        return sizes_of(step, argument)
    if name in ("device", "dtype", "ndim", "is_cuda", "layout") or not isinstance(value, (Units, Constant)):
        return None
    step.refuse(f"what {name!r} does to units is not known.")


def computed(step: Step) -> Any:
    """What is made of numbers alone: another number, or a tensor of no task."""
    node, given = step.node, [step.values[each] for each in step.given]
    arithmetic = node.op == "call_function" and getattr(node.target, "__module__", "") in _ARITHMETIC
    counted = [value for value in given if isinstance(value, (Count, Sizes))]
    if counted:
        first = given[0]
        if node.target is operator.getitem and isinstance(first, Sizes) and isinstance(node.args[1], (int, slice)):
            return first.at(node.args[1])
        if not arithmetic and node.target not in ("numel", getattr):
            refuse_count(step, counted[0])
        return Count(counted[0].name)
    shape = step.shape(node)
    if arithmetic or (shape is None and node.op == "call_method") or node.target is getattr:
        return None
    return Fixed("", shape == ())


def refuse_count(step: Step, value: Count | Sizes) -> None:
    """Raise ConversionError for a number of units where none may stand."""
    step.refuse(
        f"the number of units of {value.name} is computed with (x.size(1), x.shape[1]), and pruning changes it. Write "
        "the number itself; in a shape (view, reshape, expand) ek.convert looks it up."
    )
