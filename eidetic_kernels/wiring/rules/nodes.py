"""The value that each node of a graph makes, by torch.fx's kinds of nodes.

What a rule did not ask for is refused here, in one place: a second tensor of units that nobody tied, a count of units
used as a number, a buffer that would not follow the units when some of them go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ...layers import HeadedAttention, SegmentedLayer
from ...modes import is_frozen
from ..in_place import IN_PLACE
from ..values import INPUT, Constant, Count, Heads, Input, Sizes, Units, Unowned, Value
from .attention import on_heads
from .elementwise import casts, passes, ties, unknown
from .joins import concatenates
from .numbers import computed, measures, refuse_count
from .positions import indexes_or_attribute
from .registry import module_rule, rule_of
from .shapes import expands, reshapes, squeezes
from .step import Step

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

# What takes the place of torch's layers that have parameters.
_REPLACEMENTS = {
    "Linear": "EideticLinear",
    "Conv2d": "EideticConv2d",
    "BatchNorm1d": "EideticBatchNorm1d",
    "BatchNorm2d": "EideticBatchNorm2d",
    "LayerNorm": "EideticLayerNorm",
    "MultiheadAttention": "EideticMultiheadAttention",
    "PReLU": "EideticPReLU",
}


def value_of(step: Step) -> Value:
    """The value that a node makes of its arguments' values, by the rule for it.

    Raises ConversionError where the rule refuses, and for a tensor or a count of units that it did not ask for.
    """
    value = _value(step)
    for argument in step.given:
        if argument not in step.taken and step.node.op != "output":
            _refuse_untaken(step, step.values[argument])

    shape = step.shape(step.node)
    if isinstance(value, Units) and value.spatial and not value.last and value.pixels is None and shape is not None:
        value = replace(value, pixels=torch.Size(shape[2:]).numel())
    return value


def _value(step: Step) -> Value:
    if step.node.op == "placeholder":
        return INPUT
    if step.node.op == "output":
        return step.of(step.node.args[0])
    if step.node.op == "get_attr":
        return _read(step)
    return _called(step)


def _called(step: Step) -> Value:
    """The value of a call: of a function, a method or a module."""
    given, op = [step.values[each] for each in step.given], step.node.op
    tensors = [value for value in given if not isinstance(value, (Count, Sizes)) and not _is_number(value)]
    if any(isinstance(value, Unowned) for value in given):
        _check_in_place(step)

    if not tensors and op != "call_module":
        for argument in step.given:
            step.take(argument)
        return computed(step)
    if any(isinstance(value, Unowned) for value in tensors):
        return _with_unowned(step, tensors)
    if any(isinstance(value, Heads) for value in tensors):
        return on_heads(step)

    rule = rule_of(step) or unknown
    if any(isinstance(value, Constant) for value in tensors) and rule not in CONSTANT_RULES:
        step.refuse("a tensor of the network must be combined with units (added, multiplied, concatenated) as it is.")
    if op == "call_module":
        return _call_module(step)
    if rule is ties and op == "call_method" and step.operation.endswith("_") and not step.node.users:
        step.refuse("its result is not used: the operand it changes in place would not be known to be combined.")
    return rule(step)


def _is_number(value: Value) -> bool:
    return value is None or (isinstance(value, Unowned) and value.scalar)


def _read(step: Step) -> Unowned | None:
    """A tensor of the network, which is read as it is; None for anything else that it holds."""
    attribute: object = step.builder.network
    for name in step.path.split("."):
        attribute = getattr(attribute, name)
    if isinstance(attribute, nn.Parameter):
        step.refuse("a tensor of the network is used directly, so its units have no owner.")
    if not isinstance(attribute, torch.Tensor):
        return None
    return Unowned(step.path, scalar=attribute.numel() == 1 and attribute.dim() <= 1)


def _check_in_place(step: Step) -> None:
    """Refuse a change of a buffer: finished tasks read it too."""
    first, name = step.values.get(step.first_argument()), step.operation
    in_place = step.node.op == "call_method" and name.endswith("_") and not name.startswith("__")
    if isinstance(first, Unowned) and first.path and (in_place or step.node.target in IN_PLACE):
        step.refuse(
            f"{first.path!r}, a tensor of the network, is changed in place, and finished tasks read it too: what they "
            "answer would change."
        )


def _with_unowned(step: Step, tensors: Sequence[Value]) -> Value:
    """What is done to tensors of no task, alone or together with the input (its normalisation)."""
    if rule_of(step) is casts:
        return casts(step)
    if step.node.op == "call_module" or not all(isinstance(value, (Input, Unowned)) for value in tensors):
        step.refuse(
            "a tensor of the network is used directly, so its units have no owner. (Only the input may be combined "
            "with buffers and with tensors made on the way. One with a slice for each unit must be an nn.Parameter "
            "that ek.convert finds, or an ek.EideticParameter.)"
        )

    for argument in step.given:
        if not isinstance(step.values[argument], (Count, Sizes)):
            step.take(argument)
    if any(isinstance(value, Input) for value in tensors):
        return INPUT
    paths = [value.path for value in tensors if isinstance(value, Unowned) and value.path]
    return Unowned(paths[0] if paths else "", scalar=step.shape(step.node) == ())


def _refuse_untaken(step: Step, value: Value) -> None:
    """Refuse an argument that the rule did not ask for, if it is anything that matters."""
    if isinstance(value, (Count, Sizes)):
        refuse_count(step, value)
    if isinstance(value, (Units, Heads, Constant)):
        step.refuse(
            f"it is given {value.name} too, and its rule knows of one tensor alone: units of two tensors would "
            "part when some are pruned. (ek.rules.ties combines any number of them unit by unit.)"
        )
    if not _is_number(value):
        step.refuse("it is given more tensors than its rule knows of.")


def _call_module(step: Step) -> Value:
    module = step.module
    if is_frozen(module):
        if isinstance(step.first(), Input):
            return INPUT
        step.refuse("a frozen module (ek.frozen) must stand before all layers that learn; this one reads their units.")
    rule = module_rule(module)
    ours = isinstance(module, (SegmentedLayer, HeadedAttention))
    if rule is not None and (ours or not _has_parameters(module)):
        return rule(step)
    if isinstance(step.first(), Input) and not module.state_dict():
        return INPUT
    step.refuse(_remedy(module))


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    if name in _REPLACEMENTS:
        return f"a plain {name} would be trained by every task and forget: use ek.{_REPLACEMENTS[name]}."
    if _has_parameters(module):
        return f"{name} has parameters that every task would train, so finished tasks would be forgotten."
    return f"{name} is not known to keep units apart."
