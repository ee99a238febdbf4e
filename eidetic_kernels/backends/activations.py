"""The activations that a normalisation can apply in its own pass, in the order of their numbers in every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FUNCTIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}

ACTIVATIONS = tuple(FUNCTIONS)

# Their derivatives can be read off the output, so the value before the activation need not be computed again.
FROM_OUTPUT = ("relu", "relu6")

# On a CPU torch computes these with vector instructions, and with others at the end of a row, where bits then differ.
_UNEVEN = ("silu", "gelu")

aten = torch.ops.aten

_IN_PLACE = {
    "none": lambda z: z,
    "relu": torch.relu_,
    "relu6": lambda z: aten.hardtanh_(z, 0, 6),
    "silu": aten.silu_,
    "gelu": aten.gelu_,
    "hardswish": aten.hardswish_,
}

_GRADIENTS = {
    "none": lambda dy, z: dy,
    "relu": lambda dy, z: aten.threshold_backward(dy, z, 0),
    "relu6": lambda dy, z: aten.hardtanh_backward(dy, z, 0, 6),
    "silu": aten.silu_backward,
    "gelu": aten.gelu_backward,
    "hardswish": aten.hardswish_backward,
}


def activate_(y: Tensor, frozen: int, activation: str) -> None:
    """Activate ``y`` [N, C, *] in place; the bits of the first ``frozen`` channels depend on their values alone."""
    if frozen and y.device.type == "cpu" and activation in _UNEVEN:
        # A gap between values keeps torch from using vector instructions, so it computes all of them in one way.
        rows = y[:, :frozen]
        apart = torch.empty(*rows.shape, 2, dtype=y.dtype)[..., 0]
        rows.copy_(_IN_PLACE[activation](apart.copy_(rows)))
        y = y[:, frozen:]
    _IN_PLACE[activation](y)


def activation_gradient(dy: Tensor, z: Tensor, activation: str) -> Tensor:
    """The gradient at ``z``, the value before the activation (for those of ``FROM_OUTPUT``, the output will do)."""
    return _GRADIENTS[activation](dy, z)
