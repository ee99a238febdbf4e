"""Attention: heads are units that live together (a grain), and no operation may look from one into another."""

from __future__ import annotations

import operator
from dataclasses import replace
from math import prod
from typing import Any

from ...layers import EideticScaledDotProduct
from ..values import Constant, Heads, Units
from .elementwise import casts, passes, ties
from .numbers import attribute, measures
from .registry import rule_of
from .shapes import count, numbers, order_of, resize
from .step import Step


def attends(step: Step) -> Any:
    """Attention over tokens: a head's query, key and value rows are units that live together."""
    names = ("query", "key", "value")
    arguments = [*step.node.args[:3], *(step.node.kwargs[name] for name in names if name in step.node.kwargs)]
    options = {**dict(zip(names, arguments)), **step.node.kwargs}
    masks = step.node.args[3:4] + step.node.args[5:6] + step.node.args[7:8]  # padding, attention, causal
    if any(masks) or any(options.get(name) for name in ("key_padding_mask", "attn_mask", "is_causal")):
        step.refuse("attention with a mask has no rule.")
    for user in step.node.users:
        if user.target is not operator.getitem or (user.args[1] != 0 and user.users):
            step.refuse("only the attention's output ([0]) can be used, not its weights, which mix heads of all tasks.")
    made = step.builder.produce(f"{step.path}.out_proj", _heads(step, arguments, 3), step.where())
    return replace(made, batch=step.of(arguments[0]).batch), None


def attends_in_windows(step: Step) -> Any:
    """Attention in windows of an image; the biases of its positions belong to the heads."""
    return step.builder.drop(f"{step.path}.drop", attends_in_parts(step), step.where())


def attends_in_parts(step: Step) -> Any:
    """The same in parts that were cut before."""
    heads = _heads(step, [step.first_argument()] * 3, 4)
    for name in ("position_bias", "logit_scale"):
        if hasattr(step.module, name):
            step.builder.follow(f"{step.path}.{name}", heads, step.where())
    return step.builder.produce(f"{step.path}.out_proj", heads, step.where())


def _heads(step: Step, arguments: list[Any], rank: int) -> Units:
    """The units that an attention's projections make of their ``arguments``: query, key and value rows, tied."""
    heads = None
    for name, argument in zip(("query", "key", "value"), arguments, strict=True):
        value, shape = step.of(argument), step.shape(argument)
        if (isinstance(value, Units) and not value.last) or not shape or len(shape) != rank:
            form = "tokens [N, T, C]" if rank == 3 else "[N, H, W, C]"
            step.refuse(f"its {name} must be {form} whose units come last; and only ek.convert knows sizes.")
        made = step.builder.produce(f"{step.path}.{name}", value, step.where(), tokens=True)
        heads = made if heads is None else step.builder.tie(heads, made, step.where())
    step.builder.grow(heads, step.module.head_dim)
    return heads


def on_heads(step: Step) -> Any:
    """What may be done to heads: they are moved, scaled, attended with, and folded into units again."""
    value, old, new = step.first(), step.shape(step.first_argument()), step.shape(step.node)
    named, rule = step.operation, rule_of(step)
    if step.node.op == "call_module" and isinstance(step.module, EideticScaledDotProduct):
        return _attends_by_function(step)
    if isinstance(value, Heads):
        if rule is measures:
            return measures(step)
        if step.node.target is getattr:
            return attribute(step)
        if rule in (passes, casts) or (rule is ties and sum(_is_tensor(step, each) for each in step.given) == 1):
            return value
        if named in ("permute", "transpose", "swapaxes"):
            order = order_of(step, len(old))
            if order[-1] == len(old) - 1 and (axis := order.index(len(old) + value.axis) - len(old)) in (-2, -3):
                return replace(value, axis=axis)
        if named in ("reshape", "view", "flatten") and value.axis == -2:
            if old[-2] * old[-1] == new[-1] and prod(old[:-2]) == prod(new[:-1]) and len(new) > 2:
                if named != "flatten":
                    with step.node.graph.inserting_before(step.node):
                        both = step.node.graph.call_function(operator.mul, (count(step, -2), count(step, -1)))
                    given = numbers(step.node.args[1:])
                    step.take(given[-1])
                    resize(step, (*given[:-1], both))
                return value.units
    step.refuse("these are attention heads; it is not known to keep them apart, or to leave each head whole.")


def _is_tensor(step: Step, argument: Any) -> bool:
    return isinstance(step.values[argument], (Heads, Units, Constant))


def _attends_by_function(step: Step) -> Heads:
    values = [step.of(argument) for argument in step.node.args[:3]]
    if not all(isinstance(value, Heads) and value.axis == -3 for value in values) or len({v.dim for v in values}) > 1:
        step.refuse("its queries, keys and values must be heads [N, heads, T, head_dim] of one size, made by layers.")
    units = values[0].units
    for value in values[1:]:
        units = step.builder.tie(units, value.units, step.where())
    if len(units.parts) > 1:
        step.refuse("its heads are made by concatenating several layers' units.")
    step.builder.grow(units, values[0].dim)
    step.builder.dropped[step.path] = units
    return replace(values[0], units=units)
