"""Parameters that are replaced, never resized: who succeeds whom, and what of the old one was kept.

Resizing ``.data`` under a live autograd graph breaks the next backward, so pruning makes new parameters. The old
one remembers its successor. An optimizer that still holds it is stale (see :mod:`eidetic_kernels.tasks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

# The rows and columns that were kept; None means all of them.
Kept: TypeAlias = "tuple[Tensor | None, Tensor | None]"

# The attribute of a retired parameter that holds its Succession.
_RECORD = "eidetic_succession"

# The attribute of a parameter in use that holds what watches over its optimizers.
_WATCH = "eidetic_watch"


class Succession(NamedTuple):
    """What became of a retired parameter.

    ``successor`` stands in its place (None: nothing does). ``cut`` says which of its rows and columns the successor
    has; it is None when the successor has none of them (a fresh segment, a restored snapshot).
    """

    successor: nn.Parameter | None
    cut: Kept | None


def retire(old: nn.Parameter | None, new: nn.Parameter | None, cut: Kept | None = None) -> None:
    """Record that ``new`` stands where ``old`` stood."""
    if old is not None and old is not new:
        setattr(old, _RECORD, Succession(new, cut))
        old.grad = None


def succession(parameter: nn.Parameter) -> Succession | None:
    """The record left by :func:`retire`; None while the parameter is in use."""
    return getattr(parameter, _RECORD, None)


def select(tensor: Tensor, rows: Tensor | None, columns: Tensor | None = None) -> Tensor:
    """The given rows (dimension 0) and columns (dimension 1) of ``tensor``; None keeps all."""
    if rows is not None:
        tensor = tensor.index_select(0, rows.to(tensor.device))
    if columns is not None and tensor.dim() > 1:
        tensor = tensor.index_select(1, columns.to(tensor.device))
    return tensor


def joined(weights: Sequence[nn.Parameter]) -> Tensor:
    """``torch.cat(weights)``, such that a product with it has the bits of a product with one parameter.

    torch chooses how to multiply tokens by whether the weight requires a gradient, even where none is recorded.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat(list(weights))
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat(list(weights)).requires_grad_(any(weight.requires_grad for weight in weights))


def fresh(*shape: int, **factory: Any) -> nn.Parameter:
    """A new parameter of ``shape``, not initialised; without gradient where it is empty."""
    values = torch.empty(*shape, **factory)
    return nn.Parameter(values, requires_grad=_may_learn(values))


def cut(parameter: nn.Parameter, rows: Tensor | None, columns: Tensor | None = None) -> nn.Parameter:
    """A new parameter with the kept rows and columns; the old one is retired in its favour."""
    return _succeed(parameter, select(parameter.detach(), rows, columns), (rows, columns))


def replace(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A new parameter holding ``values``, of any shape; the old one is retired."""
    return _succeed(parameter, values.detach(), None)


def _succeed(old: nn.Parameter, values: Tensor, kept: Kept | None) -> nn.Parameter:
    new = nn.Parameter(values, requires_grad=_may_learn(values) and (old.requires_grad or not old.numel()))
    watch = getattr(old, _WATCH, None)
    if watch is not None:
        setattr(new, _WATCH, watch)
    retire(old, new, kept)
    return new


def _may_learn(values: Tensor) -> bool:
    # An optimizer skips a parameter without gradient. Some divide by an empty one's number of elements.
    return bool(values.numel())


def empty_like(tensor: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of ``shape``, of the dtype and on the device of ``tensor``."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
