"""The networks of the paper's section 6.1, by name.

Each is an :class:`~eidetic_kernels.EideticNetwork` whose forward returns features. The network adds the task heads.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import a_list, explained, known_names, one_of, require, shown, whole_number
from eidetic_kernels.errors import InputError

from .convnet import ConvNet
from .mlp import MLP
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101

__all__ = ["MLP", "MODELS", "ConvNet", "ResNet", "build", "resnet18", "resnet34", "resnet50", "resnet101"]

MODELS: dict[str, Callable[..., EideticNetwork]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}

# The smallest side, in pixels, for which a residual network gets the large stem by default. The large stem still leaves
# 3x3 positions to the last stage then, and the small one costs 16 times the work.
LARGE_IMAGE = 96


def build(name: str, example_shape: Sequence[int], **arguments: Any) -> EideticNetwork:
    """The model ``name``, one of ``MODELS``, for inputs of one shape.

    Args:
        example_shape: of one sample: (C, H, W), or any for "mlp".
        arguments: of the model. Those that follow from the shape (``in_features``, ``in_channels``, a residual
            network's ``small``) are filled in where they are not given.

    Raises InputError for an unknown model, an argument it does not take, or a shape it cannot process.
    """
    model = MODELS[one_of("the model's name", name, tuple(MODELS))]
    sizes = a_list("example_shape", example_shape, "one sample's shape, all sizes 1 or more")
    shape = tuple(whole_number("a size in example_shape", size, 1) for size in sizes)
    require(bool(shape), "example_shape must be one sample's shape, all sizes 1 or more", example_shape)
    known_names(arguments, inspect.signature(model).parameters, "argument", f"the model {name!r}")
    with explained(f"the model {name!r} cannot be made with {shown(arguments)} for samples of shape {shape}"):
        return model(**{**_from_shape(name, shape), **arguments})


def _from_shape(name: str, shape: tuple[int, ...]) -> dict[str, int | bool]:
    """The arguments of model ``name`` that a sample's shape decides."""
    if name == "mlp":
        return {"in_features": math.prod(shape)}
    if len(shape) != 3:
        raise InputError(f"model {name!r} needs images (channels, height, width); got samples of shape {shape}.")
    side = min(shape[1:])
    if name == "convnet":
        if side < 8:
            raise InputError(f"'convnet' halves images three times: a side must have 8 pixels or more; got {shape}.")
        return {"in_channels": shape[0]}
    return {"in_channels": shape[0], "small": side < LARGE_IMAGE}
