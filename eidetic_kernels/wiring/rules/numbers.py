"""Sizes and other facts about tensors, and what is computed of them.

A size of the units' dimension changes with pruning. It may stand in a shape, where a rule looks it up anew, and nowhere
else: a tensor divided by its number of units would change when some are pruned.
"""

from __future__ import annotations

import operator
from typing import NoReturn

from ..values import Constant, Count, Heads, Sizes, Units, Unowned, Value
from .step import Step

# Where functions of numbers alone come from.
_ARITHMETIC = ("_operator", "operator", "math", "builtins")


def sizes_of(step: Step, argument: object) -> Sizes | None:
    """The shape of an argument's tensor; None where no unit is counted in it."""
    value, rank = step.of(argument), step.rank(argument)
    if isinstance(value, Units):
        if not rank:
            step.refuse("which of its sizes counts units is not known here; ek.convert knows, by the example's shape.")
        counts = [dim == value.dim(rank) for dim in range(rank)]
    elif isinstance(value, Heads):
        counts = [dim == rank + value.axis for dim in range(rank)]
    elif isinstance(value, Constant):  # not known yet which dimension will hold units
        counts = [size > 1 for size in value.shape]
    else:
        return None
    return Sizes(value.name, tuple(counts))


def measures(step: Step) -> Value:
    """A size or another fact about a tensor."""
    argument = step.first_argument()
    step.take(argument)
    if step.operation in ("numel", "nelement"):
        sizes = sizes_of(step, argument)
        return None if sizes is None else Count(sizes.name)
    if step.operation != "size":  # dim and the like
        return None

    sizes, (dim,) = sizes_of(step, argument), step.rest(("dim", None))
    if sizes is None or dim is None:
        return sizes
    return sizes.at(dim) if isinstance(dim, int) else Count(sizes.name)


def attribute(step: Step) -> Value:
    """``x.shape`` and other facts that are no calls."""
    argument, name = step.node.args[:2]
    value = step.of(argument)
    if name == "shape":
        return sizes_of(step, argument)
    if name in ("device", "dtype", "ndim", "is_cuda", "layout") or not isinstance(value, (Units, Heads, Constant)):
        return None
    step.refuse(f"what {name!r} does to units is not known.")


def computed(step: Step) -> Value:
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
    return Unowned("", scalar=shape == ())


def refuse_count(step: Step, value: Count | Sizes) -> NoReturn:
    """Raise ConversionError for a number of units where none may stand."""
    step.refuse(
        f"the number of units of {value.name} is computed with (x.size(1), x.shape[1]), and pruning changes it. Write "
        "the number itself; in a shape (view, reshape, expand) ek.convert looks it up."
    )
