"""Modules that a capture does not look into: each is one node, a mark with the module's path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConversionError
from ...wiring import rules
from ...wiring.rules.registry import REGISTERED


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
        each.forward = _standing_in(path, getattr(each, "inplace", False))
    try:
        yield
    finally:
        for _, each in stood_in:
            del each.forward


def _standing_in(path: str, inplace: bool) -> Callable[[Tensor], Tensor]:
    return lambda x: x.copy_(mark(x, path)) if inplace else mark(x, path)


def drops(module: nn.Module) -> bool:
    """Whether ``module`` drops units or samples' branches in training."""
    cls = type(module)
    known = isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))
    library = cls.__module__.partition(".")[0] in ("torchvision", "timm", "transformers")
    by_name = library and cls.__qualname__.endswith(("DropPath", "StochasticDepth"))
    return known or by_name or own_rule(module) is rules.drops


def own_rule(module: nn.Module) -> Any:
    """The rule that a user registered for the module's class; None where there is none.

    Raises ConversionError for modules with parameters, which no rule excuses.
    """
    cls = type(module)
    rule = REGISTERED.get(cls) or REGISTERED.get(f"{cls.__module__}.{cls.__qualname__}")
    if rule is not None and any(True for _ in module.parameters()):
        raise ConversionError(
            f"{cls.__name__} has parameters that every task would train, so finished tasks would be forgotten. A rule "
            "does not change that: leave the rule out, and its forward is looked into."
        )
    return rule
