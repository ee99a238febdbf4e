"""Parameters that are replaced, never resized: who succeeds whom, and what of the old one was kept.

Resizing ``.data`` under a live autograd graph breaks the next backward, so pruning makes new parameters. The old
one remembers its successor; an optimizer that still holds it is stale (see :mod:`.optimizers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Succession(NamedTuple):
    """What became of a retired parameter: its successor, and the rows and columns that were kept (None: all).

    ``cut`` is None when nothing of it lives on (a fresh segment, a restored snapshot).
    """

    successor: nn.Parameter
    cut: tuple[Tensor | None, Tensor | None] | None


def retire(old: nn.Parameter | None, new: nn.Parameter | None, cut=None) -> None:
    """Record that ``new`` stands where ``old`` stood."""
    if old is not None and old is not new:
        old.eidetic_succession = Succession(new, cut)
        old.grad = None


def succession(parameter: nn.Parameter) -> Succession | None:
    """The record left by :func:`retire`; None while the parameter is in use."""
    return getattr(parameter, "eidetic_succession", None)


def select(tensor: Tensor, rows: Tensor | None, columns: Tensor | None = None) -> Tensor:
    """The given rows (dimension 0) and columns (dimension 1) of ``tensor``; None keeps all."""
    if rows is not None:
        tensor = tensor.index_select(0, rows.to(tensor.device))
    if columns is not None and tensor.dim() > 1:
        tensor = tensor.index_select(1, columns.to(tensor.device))
    return tensor


def joined(weights: Sequence[nn.Parameter]) -> Tensor:
    """``torch.cat(weights)``, by which a product has the bits that it has by one parameter.

    torch chooses how to multiply tokens by whether the weight requires a gradient, also where none is recorded.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat(list(weights))
    with torch.inference_mode(False), torch.no_grad():
        return torch.cat(list(weights)).requires_grad_(any(weight.requires_grad for weight in weights))


def cut(parameter: nn.Parameter, rows: Tensor | None, columns: Tensor | None = None) -> nn.Parameter:
    """A new parameter with the kept rows and columns; the old one is retired in its favour."""
    return _succeed(parameter, select(parameter.detach(), rows, columns), (rows, columns))


def replace(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A new parameter holding ``values``, of any shape; the old one is retired."""
    return _succeed(parameter, values.detach(), None)


def _succeed(old: nn.Parameter, values: Tensor, kept: tuple[Tensor | None, Tensor | None] | None) -> nn.Parameter:
    # Without a gradient an optimizer passes an empty parameter by; some divide by its number of elements.
    trainable = bool(values.numel()) and (old.requires_grad or not old.numel())
    new = nn.Parameter(values, requires_grad=trainable)
    retire(old, new, kept)
    return new


def empty_like(parameter: nn.Parameter, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
