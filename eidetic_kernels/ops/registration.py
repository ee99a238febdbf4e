"""The ops are registered with torch as ``torch.ops.eidetic.*``: torch.compile, fake tensors and export know them.

A library definition with an ``autograd.Function`` at the ``Autograd`` key costs a fraction of what a ``custom_op``
costs at each call. The staircase goes in as one CPU tensor of integers: a list would be a new graph for each length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..layout import Staircase

LIBRARY = torch.library.Library("eidetic", "DEF")


class Op:
    """A registered op. ``run`` computes it on any device, ``fake`` makes outputs of the right shape, dtype and strides.
    Where they return None, for a gradient that was not asked for, the registered op returns an empty tensor.

    Calling it goes through torch's dispatcher only where something watches (torch.compile, fake tensors, export): that
    way costs more than the products of a small layer.
    """

    def __init__(self, schema: str, run: Callable, fake: Callable):
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
        LIBRARY.impl(name, _filled(run), "CompositeExplicitAutograd")
        torch.library.register_fake(f"eidetic::{name}", _filled(fake), lib=LIBRARY)
        self.name, self.run = name, run
        self.registered = getattr(torch.ops.eidetic, name).default

    def differentiate(self, function: type[torch.autograd.Function]) -> None:
        """Let ``function``, whose forward calls :meth:`below_autograd`, have the op's gradients."""
        self.function = function
        LIBRARY.impl(self.name, self._with_gradients, "Autograd")

    def __call__(self, *arguments: Any) -> Any:
        watched = torch.compiler.is_compiling() or _traced()
        return self.registered(*arguments) if watched else self._with_gradients(*arguments)

    def below_autograd(self, *arguments: Any) -> Any:
        """The op without gradients, as autograd functions call it."""
        if not _traced():
            return self.run(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.registered(*arguments)

    def _with_gradients(self, *arguments: Any) -> Any:
        return self.function.apply(*arguments) if torch.is_grad_enabled() else self.below_autograd(*arguments)


def _traced() -> bool:
    return torch._C._len_torch_dispatch_stack() > 0


def encoded(staircase: Staircase) -> Tensor:
    """``staircase`` as the ops take it, a CPU tensor of int64; made once."""
    if not hasattr(staircase, "numbers"):
        with torch.inference_mode(False):  # it is kept, and a later training step saves it for its backward pass
            numbers = torch.tensor(staircase.encode(), dtype=torch.int64)
        numbers.staircase = staircase
        object.__setattr__(staircase, "numbers", numbers)
    return staircase.numbers


def decoded(numbers: Tensor) -> Staircase:
    """The staircase in a tensor that :func:`encoded` made, or in one with the same numbers."""
    return getattr(numbers, "staircase", None) or _decode(tuple(numbers.tolist()))


@lru_cache(maxsize=4096)
def _decode(numbers: tuple[int, ...]) -> Staircase:
    return Staircase.decode(numbers)


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where the images ``x`` lie so, else contiguous."""
    if x.dim() != 4 or x.stride(3) < x.stride(1):  # as torch has it, which takes longer to say so
        return torch.contiguous_format
    return torch._prims_common.suggest_memory_format(x)


def unit_major(x: Tensor) -> bool:
    """Whether the units of ``x`` [N, C] lie one after the other in memory, each with all its samples."""
    return x.dim() == 2 and x.stride(0) == 1 and x.stride(1) == x.shape[0] > 1


def arranged_as(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in memory as ``x`` lies: unit-major, channels_last or contiguous."""
    return y.t().contiguous().t() if unit_major(x) else y.contiguous(memory_format=memory_format(x))


def new_as(x: Tensor, units: int) -> Tensor:
    """Memory for ``units`` units in place of those of ``x`` [N, C, *], lying as they do."""
    if unit_major(x):
        return x.new_empty(units, x.shape[0]).t()
    shape = x.shape[0], units, *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def _filled(run: Callable) -> Callable:
    def filled(*arguments):
        results = run(*arguments)
        if isinstance(results, Tensor):
            return results
        return tuple(arguments[0].new_empty(0) if result is None else result for result in results)

    return filled
