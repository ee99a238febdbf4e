"""The networks of the paper's section 6.1, by name.

Each returns features and is an `EideticNetwork`; the task heads belong to the network, not to the model.
"""

import inspect
import math
from collections.abc import Callable, Sequence

from eidetic_kernels import EideticNetwork
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

# From this many pixels a side on, a residual network gets the large stem unless it is told otherwise: there
# the large stem still leaves 3x3 positions to the last stage, and the small one costs 16 times the work.
LARGE_IMAGE = 96


def build(name: str, example_shape: Sequence[int], **kwargs) -> EideticNetwork:
    """The model `name` for inputs of `example_shape`, which is one sample's: `(C, H, W)`, or any for "mlp".

    What follows from the shape (`in_features`, `in_channels`, a residual network's `small`) is filled in;
    every argument of the model may be given in `kwargs`, those included.

    Raises `InputError` for an unknown model, an argument it does not take, or a shape it cannot process.
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; there are: {', '.join(MODELS)}")
    shape = tuple(int(size) for size in example_shape)
    if not shape or min(shape) < 1:
        raise InputError(f"example_shape is {shape}; expected one sample's shape, all sizes >= 1")
    model = MODELS[name]
    known = inspect.signature(model).parameters
    unknown = sorted(set(kwargs) - set(known))
    if unknown:
        raise InputError(f"model {name!r} takes no {', '.join(unknown)}; it takes: {', '.join(known)}")
    return model(**{**_from_shape(name, shape), **kwargs})


def _from_shape(name: str, shape: tuple[int, ...]) -> dict[str, int | bool]:
    """The arguments of model `name` that a sample's shape decides."""
    if name == "mlp":
        return {"in_features": math.prod(shape)}
    if len(shape) != 3:
        raise InputError(f"model {name!r} needs images (channels, height, width); a sample has shape {shape}")
    side = min(shape[1:])
    if name == "convnet":
        if side < 8:
            raise InputError(f"'convnet' halves images three times: 8 pixels a side at least; given {shape}")
        return {"in_channels": shape[0]}
    return {"in_channels": shape[0], "small": side < LARGE_IMAGE}
