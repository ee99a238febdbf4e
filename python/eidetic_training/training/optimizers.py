"""Optimizers by name, for configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from eidetic_kernels.checking import explained, known_names, one_of, real_number, shown

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

    Raises InputError for another name, and for arguments that the optimizer does not take: its first step is tried, on
    a parameter of its own.
    """
    one_of("the optimizer's name", name, tuple(OPTIMIZERS))
    kind: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[name]  # their base class has no common arguments
    known_names(arguments, list(inspect.signature(kind).parameters)[1:], "argument", f"the optimizer {name!r}")
    for argument, value in arguments.items():
        if argument == "lr" or isinstance(value, float):
            real_number(argument, value)
    if name in FUSED:
        arguments = {"fused": True, **arguments}

    with explained(f"the optimizer {name!r} cannot be made with {shown(arguments)}"):
        tried = torch.nn.Parameter(torch.zeros(2))
        tried.grad = torch.ones(2)
        kind([tried], **arguments).step()
        return kind(parameters, **arguments)
