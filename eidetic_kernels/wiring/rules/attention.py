"""Attention: the units of a head live together (a grain), and no operation may look from one head into another."""

from __future__ import annotations

import operator
from dataclasses import replace
from math import prod
from typing import Any

from torch import fx

from ...layers import EideticMultiheadAttention, EideticScaledDotProduct, HeadedAttention
from ..values import Constant, Heads, Input, Units, Value
from .elementwise import casts, passes, ties
from .numbers import attribute, measures
from .registry import rule_of
from .shapes import count, numbers, order_of, resize
from .step import Step


def attends(step: Step) -> Value:
    """Attention over tokens: a head's query, key and value rows are units that live together."""
    names = ("query", "key", "value")
    arguments = [*step.node.args[:3], *(step.node.kwargs[name] for name in names if name in step.node.kwargs)]
    masks = step.node.args[3:4] + step.node.args[5:6] + step.node.args[7:8]  # padding, attention, causal
    if any(masks) or any(step.node.kwargs.get(name) for name in ("key_padding_mask", "attn_mask", "is_causal")):
        step.refuse("attention with a mask has no rule.")
    for user in step.node.users:
        if user.target is not operator.getitem or (user.args[1] != 0 and user.users):
            step.refuse("only the attention's output ([0]) can be used, not its weights, which mix heads of all tasks.")

    query = step.of(arguments[0])
    if isinstance(query, Input) and not step.module_as(EideticMultiheadAttention).batch_first:
        step.refuse("its queries are the network's input, whose samples come first: use batch_first=True.")
    made = step.builder.produce(f"{step.path}.out_proj", _projected(step, arguments, 3), step.where())
    return replace(made, batch=query.batch if isinstance(query, Units) else 0), None


def attends_in_windows(step: Step) -> Value:
    """Attention in windows of an image; the biases of its positions belong to the heads."""
    return step.builder.drop(f"{step.path}.drop", attends_in_parts(step), step.where())


def attends_in_parts(step: Step) -> Value:
    """The same among the tokens of each part of an image, which was cut into parts before."""
    heads = _projected(step, [step.first_argument()] * 3, 4)
    for name in ("position_bias", "logit_scale"):
        if hasattr(step.module, name):
            step.builder.follow(f"{step.path}.{name}", heads, step.where())
    return step.builder.produce(f"{step.path}.out_proj", heads, step.where())


def _projected(step: Step, arguments: list[Any], rank: int) -> Units:
    """The units that an attention's projections make of its query, key and value: one group."""
    rows: list[Units] = []
    for name, argument in zip(("query", "key", "value"), arguments, strict=True):
        value, shape = step.of(argument), step.shape(argument)
        if (isinstance(value, Units) and not value.last) or not shape or len(shape) != rank:
            form = "tokens [N, T, C]" if rank == 3 else "[N, H, W, C]"
            step.refuse(f"its {name} must be {form} whose units come last; and only ek.convert knows sizes.")
        rows.append(step.builder.produce(f"{step.path}.{name}", value, step.where(), tokens=True))

    heads = rows[0]
    for each in rows[1:]:
        heads = step.builder.unite(heads, each, step.where())
    step.builder.grow(heads, step.module_as(HeadedAttention).head_dim)
    return heads


def on_heads(step: Step) -> Value:
    """What may be done to heads: they are moved, scaled, attended with, and folded into units again."""
    if step.node.op == "call_module" and isinstance(step.module, EideticScaledDotProduct):
        return _attends_by_function(step)

    value, rule = step.first(), rule_of(step)
    if isinstance(value, Heads):
        if rule is measures:
            return measures(step)
        if step.node.target is getattr:
            return attribute(step)
        if rule in (passes, casts) or (rule is ties and sum(_is_tensor(step, each) for each in step.given) == 1):
            return value
        shaped = _moved(step, value) or _joined(step, value)
        if shaped is not None:
            return shaped
    step.refuse("these are attention heads; it is not known to keep them apart, or to leave each head whole.")


def _is_tensor(step: Step, argument: fx.Node) -> bool:
    return isinstance(step.values[argument], (Heads, Units, Constant))


def _moved(step: Step, heads: Heads) -> Heads | None:
    """Heads whose dimensions change places; None where the units of a head would not come last."""
    old = step.shape(step.first_argument())
    if old is None or step.operation not in ("permute", "transpose", "swapaxes"):
        return None
    rank = len(old)
    order = order_of(step, rank)
    axis = order.index(rank + heads.axis) - rank
    return replace(heads, axis=axis) if order[-1] == rank - 1 and axis in (-2, -3) else None


def _joined(step: Step, heads: Heads) -> Units | None:
    """Heads [*, heads, head_dim] folded into units [*, units] again; None where something else is folded."""
    shapes = step.shapes()
    if shapes is None or step.operation not in ("reshape", "view", "flatten") or heads.axis != -2:
        return None
    old, new = shapes
    if old[-2] * old[-1] != new[-1] or prod(old[:-2]) != prod(new[:-1]) or len(new) <= 2:
        return None

    if step.operation != "flatten":
        with step.node.graph.inserting_before(step.node):
            both = step.node.graph.call_function(operator.mul, (count(step, -2), count(step, -1)))
        given = numbers(step.node.args[1:])
        step.take(given[-1])
        resize(step, (*given[:-1], both))
    return heads.units


def _attends_by_function(step: Step) -> Heads:
    """``F.scaled_dot_product_attention`` of heads that layers made."""
    values = [step.of(argument) for argument in step.node.args[:3]]
    heads = [value for value in values if isinstance(value, Heads) and value.axis == -3]
    if len(heads) < len(values) or len({each.dim for each in heads}) > 1:
        step.refuse("its queries, keys and values must be heads [N, heads, T, head_dim] of one size, made by layers.")

    units = heads[0].units
    for each in heads[1:]:
        units = step.builder.unite(units, each.units, step.where())
    if len(units.parts) > 1:
        step.refuse("its heads are made by concatenating several layers' units.")
    step.builder.grow(units, heads[0].dim)
    step.builder.attend(step.path, units, step.where())
    return replace(heads[0], units=units)
