"""Optimizers by name, for configurations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
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


def annealed(optimizer: torch.optim.Optimizer, epochs: int) -> Iterator[int]:
    """Counts ``epochs`` from 0, in which the learning rates fall from what they are to zero along half a cosine, a
    value an epoch (Loshchilov and Hutter, 2017). They are left there."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for done in range(epochs):
        share = (1 + math.cos(math.pi * (done + 0.5) / epochs)) / 2
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * share
        yield done
