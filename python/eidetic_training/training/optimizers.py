"""Optimizers by name, for configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]], **arguments: Any
) -> torch.optim.Optimizer:
    """The optimizer ``name``, one of ``OPTIMIZERS``, with its fused kernel if it has one.

    Raises InputError for arguments that the optimizer does not take.
    """
    kind: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[name]  # their base class has no common arguments
    if name in FUSED:
        arguments = {"fused": True, **arguments}
    try:
        return kind(parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer {name}: {error}") from error
