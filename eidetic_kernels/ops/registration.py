"""The ops are registered with torch as ``torch.ops.eidetic.*``: torch.compile, fake tensors and export know them.

A library definition with an ``autograd.Function`` at the ``Autograd`` key costs a fraction of what a ``custom_op``
costs at each call. The staircase goes in as one CPU tensor of integers: a list would be a new graph for each length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..layout import Staircase

LIBRARY = torch.library.Library("eidetic", "DEF")

below_autograd = torch._C._AutoDispatchBelowAutograd


def register(schema: str, run: Callable, fake: Callable) -> Callable:
    """Define an op. ``run`` computes it on any device, ``fake`` makes outputs of the right shape, dtype and strides."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"eidetic::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.eidetic, name).default


def differentiate(op: Callable, function: type[torch.autograd.Function]) -> None:
    """Gradients of ``op`` by ``function``, whose forward calls the op below autograd."""

    def run(*arguments):
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function.apply(*arguments)
        with below_autograd():
            return op(*arguments)

    LIBRARY.impl(op._schema.name.partition("::")[2], run, "Autograd")


def encoded(staircase: Staircase) -> Tensor:
    """``staircase`` as the ops take it, a CPU tensor of int64; made once."""
    if not hasattr(staircase, "numbers"):
        object.__setattr__(staircase, "numbers", torch.tensor(staircase.encode(), dtype=torch.int64))
    return staircase.numbers


def decoded(numbers: Tensor) -> Staircase:
    """The staircase in a tensor that :func:`encoded` made."""
    return _decode(tuple(numbers.tolist()))


@lru_cache(maxsize=4096)
def _decode(numbers: tuple[int, ...]) -> Staircase:
    return Staircase.decode(numbers)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the images ``x`` lie so, else contiguous."""
    return torch._prims_common.suggest_memory_format(x) if x.dim() == 4 else torch.contiguous_format


def nothing(like: Tensor) -> Tensor:
    """What an op returns for a gradient that was not asked for: ops cannot return None."""
    return like.new_empty(0)
