"""Modules that a capture does not look into: each is one node, a mark with the module's path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@torch.library.custom_op("eidetic_kernels::mark", mutates_args=())
def mark(x: Tensor, path: str) -> Tensor:
    """Stands in a captured graph for a call of the module at ``path``, which returns a tensor like ``x``."""
    return x.clone()


@mark.register_fake
def _(x: Tensor, path: str) -> Tensor:
    return torch.empty_like(x)


mark.register_autograd(lambda context, gradient: (gradient, None))


@contextmanager
def marked(module: nn.Module, whole: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Inside, calls of the modules in ``module`` that ``whole`` names leave a mark, and their forward does not run."""
    stood_in = [(path, each) for path, each in module.named_modules() if whole(each)]
    for path, each in stood_in:
        each.forward = _standing_in(path)
    try:
        yield
    finally:
        for _, each in stood_in:
            del each.forward


def _standing_in(path: str) -> Callable[[Tensor], Tensor]:
    return lambda x: mark(x, path)
