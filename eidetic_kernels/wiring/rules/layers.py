"""Layers that know segments: what makes units, what follows them, and tensors that belong to them."""

from __future__ import annotations

from dataclasses import replace

from ...layers import EideticLayerNorm, EideticLinear, EideticParameter, EideticPReLU
from ...layers.prelu import ONE_SLOPE
from ..values import Constant, Input, Units, Value
from .step import Step


def produces(step: Step) -> Value:
    """A layer that makes units."""
    value = step.first()
    shape, linear = step.shape(step.first_argument()), isinstance(step.module, EideticLinear)
    if shape is not None and not linear and len(shape) != 4:
        step.refuse(f"it reads a tensor of shape {list(shape)}; a convolution reads [N, K, H, W].")
    tokens = linear and shape is not None and len(shape) > 2 and not isinstance(value, Units)
    made = step.builder.produce(step.path, value, step.where(), tokens)
    if isinstance(value, Units):
        made = replace(made, batch=value.batch)
    return _with_residual(step, made)


def follows(step: Step) -> Value:
    """A layer of ours that treats each unit by itself, in dimension 1, and may add a residual."""
    value = step.first()
    if isinstance(value, Units) and value.last:
        step.refuse("it normalises dimension 1, and the units lie in the last: transpose before it.")
    return _with_residual(step, step.builder.follow(step.path, value, step.where()))


def _with_residual(step: Step, value: Units) -> Input | Units:
    residual = step.of(step.rest(("residual", None))[0])
    return value if residual is None else step.builder.tie(value, residual, step.where())


def slopes(step: Step) -> Value:
    """PReLU: a slope for each unit of a layer, or one for all of a task's."""
    value, module = step.first(), step.module_as(EideticPReLU)
    if isinstance(value, Units):
        if value.folded or (value.last and module.each):
            step.refuse("its slopes are for units in dimension 1, one column each: put it before flattening.")
        if not module.each and (len(value.parts) > 1 or value.order is not None):
            step.refuse(ONE_SLOPE)
        module.fit(value.width)
    return step.builder.follow(step.path, value, step.where())


def normalises(step: Step) -> Value:
    """LayerNorm over units."""
    value = step.first()
    if isinstance(value, Units) and value.spatial and value.last == step.module_as(EideticLayerNorm).channels_first:
        step.refuse(
            "it normalises over positions, and not over units, which lie in "
            + ("the last dimension." if value.last else "dimension 1: permute before it.")
        )
    return step.builder.follow(step.path, value, step.where())


def filters(step: Step) -> Value:
    """A grouped convolution: each group of units by itself."""
    value = step.first()
    if not isinstance(value, Units) or not value.spatial or value.last:
        step.refuse(
            "a grouped or depthwise convolution follows the units of an image; what it is given here belongs to no "
            "task or has no pixels. Begin with an ordinary convolution."
        )
    return replace(step.builder.follow(step.path, value, step.where()), pixels=None)


def drops(step: Step) -> Value:
    """Dropout and stochastic depth: they leave frozen units alone."""
    return step.builder.drop(step.path, step.first(), step.where())


def holds(step: Step) -> Value:
    """A tensor of the network itself, which belongs to the units it will be combined with."""
    return Constant(step.path, step.module_as(EideticParameter).shape)
