"""The ops are registered with torch as ``torch.ops.eidetic.*``: torch.compile, fake tensors and export know them.

A library definition with an ``autograd.Function`` at the ``Autograd`` key costs a fraction of what a ``custom_op``
costs at each call. The staircase goes in as one CPU tensor of integers: a list would be a new graph for each length.

An op's forward, fake and ``autograd.Function`` take the schema's arguments one by one; all other functions take the
groups of :mod:`eidetic_kernels.backends.arguments`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..layout import Staircase

LIBRARY = torch.library.Library("eidetic", "DEF")


class Op:
    """A registered op. ``run`` computes it on any device, ``fake`` makes outputs of the right shape, dtype and strides.

    Where they return None, for a gradient that was not asked for, the registered op returns an empty tensor.

    A call goes through torch's dispatcher only where something watches (torch.compile, fake tensors, export). The
    dispatcher costs more than the products of a small layer.
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


def placed(
    found: Sequence[Tensor | None], positions: Sequence[int], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """What the backward of an ``autograd.Function`` returns: one entry for each argument of its forward.

    ``found`` holds gradients, ``positions`` says of which arguments. ``needed`` is ``ctx.needs_input_grad``.
    """
    gradients: list[Tensor | None] = [None] * len(needed)
    for gradient, position in zip(found, positions):
        if needed[position]:
            gradients[position] = gradient
    return tuple(gradients)


def encoded(staircase: Staircase) -> Tensor:
    """``staircase`` as the ops take it, a CPU tensor of int64; made once."""
    if not hasattr(staircase, "numbers"):
        with torch.inference_mode(False):  # it is kept, and a later training step saves it for its backward pass
            numbers, extent = torch.tensor(staircase.encode(), dtype=torch.int64), torch.empty(staircase.rows, 0)
        numbers.staircase = staircase  # pyright: ignore[reportAttributeAccessIssue] so that decoding costs nothing
        object.__setattr__(staircase, "extent", extent)
        object.__setattr__(staircase, "numbers", numbers)
    return staircase.numbers  # pyright: ignore[reportAttributeAccessIssue]


def structure(staircase: Staircase) -> tuple[Tensor, int]:
    """``staircase`` as the ops take it, and its rows.

    torch.compile sees the rows as a tensor's size: code that inductor (of torch 2.13) makes of a number that changes
    uses a name which it does not define, where the number must equal another one.
    """
    numbers = encoded(staircase)
    if torch.compiler.is_compiling():
        return numbers, staircase.extent.shape[0]  # pyright: ignore[reportAttributeAccessIssue]
    return numbers, staircase.rows


def decoded(numbers: Tensor) -> Staircase:
    """The staircase in a tensor that :func:`encoded` made, or in one with the same numbers."""
    return getattr(numbers, "staircase", None) or _decode(tuple(numbers.tolist()))


@lru_cache(maxsize=4096)
def _decode(numbers: tuple[int, ...]) -> Staircase:
    return Staircase.decode(numbers)


def _filled(run: Callable) -> Callable:
    def filled(*arguments):
        results = run(*arguments)
        if isinstance(results, Tensor):
            return results
        return tuple(arguments[0].new_empty(0) if result is None else result for result in results)

    return filled
