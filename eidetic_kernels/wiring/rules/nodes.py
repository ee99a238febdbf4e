"""The value that each node of a graph makes, by torch.fx's kinds of nodes.

What a rule did not ask for is refused here, in one place: a second tensor of units that nobody tied, a count of units
used as a number, a buffer that would not follow the units when some of them go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...layers import HeadedAttention, SegmentedLayer
from ..values import INPUT, Constant, Count, Fixed, Heads, Sizes, Units
from .attention import on_heads
from .elementwise import casts, passes, ties, unknown
from .joins import concatenates
from .numbers import IN_PLACE, computed, measures, refuse_count
from .positions import indexes_or_attribute
from .registry import module_rule, rule_of
from .shapes import expands, reshapes, squeezes
from .step import Step, name_of

# What may be done to a tensor of the network before it is combined with units.
CONSTANT_RULES = (
    ties,
    passes,
    casts,
    expands,
    concatenates,
    measures,
    reshapes,
    squeezes,
    indexes_or_attribute,
)


def value_of(step: Step) -> Any:
    """The value that a node makes of its arguments' values, by the rule for it."""
    value = _value(step)
    for argument in step.given:
        if argument not in step.taken and step.node.op != "output":
            _refuse_untaken(step, step.values[argument])
    shape = step.shape(step.node)
    if isinstance(value, Units) and value.spatial and not value.last and value.pixels is None and shape is not None:
        value = replace(value, pixels=torch.Size(shape[2:]).numel())
    return value


def _value(step: Step) -> Any:
    given, op = [step.values[each] for each in step.given], step.node.op
    if op == "placeholder":
        return INPUT
    if op == "output":
        return step.of(step.node.args[0])
    if op == "get_attr":
        return _held(step)
    tensors = [value for value in given if not isinstance(value, (Count, Sizes)) and not _is_number(value)]
    if any(isinstance(value, Fixed) for value in given):
        _check_in_place(step)
    if not tensors and op != "call_module":
        for argument in step.given:
            step.take(argument)
        return computed(step)
    if any(isinstance(value, Fixed) for value in tensors):
        return _with_fixed(step, tensors)
    if any(isinstance(value, Heads) for value in tensors):
        return on_heads(step)
    rule = rule_of(step) or unknown
    if any(isinstance(value, Constant) for value in tensors) and rule not in CONSTANT_RULES:
        step.refuse("a tensor of the network must be combined with units (added, multiplied, concatenated) as it is.")
    if op == "call_module":
        return _call_module(step)
    if rule is ties and op == "call_method" and step.node.target.endswith("_") and not step.node.users:
        step.refuse("its result is not used: the operand it changes in place would not be known to be combined.")
    return rule(step)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, Fixed) and value.scalar)


def _held(step: Step) -> Fixed | None:
    """A tensor of the network, which is read as it is."""
    attribute = step.builder.network
    for name in step.path.split("."):
        attribute = getattr(attribute, name)
    if isinstance(attribute, nn.Parameter):
        step.refuse("a tensor of the network is used directly, so its units have no owner.")
    return Fixed(step.path, attribute.numel() == 1 and attribute.dim() <= 1) if _is_tensor(attribute) else None


def _is_tensor(attribute: Any) -> bool:
    return isinstance(attribute, torch.Tensor)


def _check_in_place(step: Step) -> None:
    """Refuse a change of a buffer: finished tasks read it too."""
    node = step.node
    first = step.values.get(step.first_argument())
    in_place = node.op == "call_method" and node.target.endswith("_") and not node.target.startswith("__")
    if isinstance(first, Fixed) and first.path and (in_place or node.target in IN_PLACE):
        step.refuse(
            f"{first.path!r}, a tensor of the network, is changed in place, and finished tasks read it too: what they "
            "answer would change."
        )


def _with_fixed(step: Step, tensors: list[Any]) -> Any:
    """What is done to tensors of no task, alone or together with the input (its normalisation)."""
    rule = rule_of(step)
    if rule is casts:
        return rule(step)
    if step.node.op == "call_module" or not all(value is INPUT or isinstance(value, Fixed) for value in tensors):
        step.refuse(
            "a tensor of the network is used directly, so its units have no owner. (Only the input may be combined "
            "with buffers and with tensors made on the way. One with a slice for each unit must be an nn.Parameter "
            "that ek.convert finds, or an ek.EideticParameter.)"
        )
    for argument in step.given:
        if not isinstance(step.values[argument], (Count, Sizes)):
            step.take(argument)
    if any(value is INPUT for value in tensors):
        return INPUT
    paths = [value.path for value in tensors if value.path]
    return Fixed(paths[0] if paths else "", step.shape(step.node) == ())


def _refuse_untaken(step: Step, value: Any) -> None:
    """Refuse an argument that the rule did not ask for, if it is anything that matters."""
    if isinstance(value, (Count, Sizes)):
        refuse_count(step, value)
    if isinstance(value, (Units, Heads, Constant)):
        step.refuse(
            f"it is given {name_of(value)} too, and its rule knows of one tensor alone: units of two tensors would "
            "part when some are pruned. (ek.rules.ties combines any number of them unit by unit.)"
        )
    if not _is_number(value):
        step.refuse("it is given more tensors than its rule knows of.")


def _call_module(step: Step) -> Any:
    module = step.module
    rule = module_rule(module)
    ours = isinstance(module, (SegmentedLayer, HeadedAttention))
    if rule is not None and (ours or not any(True for _ in module.parameters())):
        return rule(step)
    if step.first() is INPUT and not module.state_dict():
        return INPUT
    step.refuse(_remedy(module))


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    twins = (
        {"Linear": "EideticLinear", "Conv2d": "EideticConv2d"}
        | {f"BatchNorm{d}d": f"EideticBatchNorm{d}d" for d in (1, 2)}
        | {"LayerNorm": "EideticLayerNorm", "MultiheadAttention": "EideticMultiheadAttention", "PReLU": "EideticPReLU"}
    )
    if name in twins:
        return f"a plain {name} would be trained by every task and forget: use ek.{twins[name]}."
    if any(True for _ in module.parameters()):
        return f"{name} has parameters that every task would train, so finished tasks would be forgotten."
    return f"{name} is not known to keep units apart."
