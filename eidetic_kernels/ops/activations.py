"""The activations that a normalisation can apply in its own pass, in the order of their numbers in every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F

FUNCTIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}

ACTIVATIONS = tuple(FUNCTIONS)
