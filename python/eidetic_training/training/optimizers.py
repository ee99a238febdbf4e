"""Optimizers by name, for configurations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from eidetic_kernels.errors import InputError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
FUSED = ("adam", "adamw", "sgd")


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], **arguments: Any) -> torch.optim.Optimizer:
    """The optimizer ``name`` on its fused kernel where it has one; raises InputError for unknown arguments."""
    if name in FUSED:
        arguments = {"fused": True, **arguments}
    try:
        return OPTIMIZERS[name](parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {name}: {error}") from error
