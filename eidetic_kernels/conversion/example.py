"""What a module is given as an example: arguments of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import shown
from ..errors import InputError


@dataclass(frozen=True)
class Given:
    """Arguments of a module's forward: tensors [N, ...], and what is no tensor and stays as it is.

    Args:
        names: of all arguments, in order; those of the first ``len(args)`` are given by place.
        args, kwargs: as forward is called.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def values(self) -> tuple[Any, ...]:
        return (*self.args, *self.kwargs.values())

    @property
    def named(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: each for name, each in zip(self.names, self.values, strict=True) if isinstance(each, Tensor)}

    @property
    def tensors(self) -> Tensor | dict[str, Tensor]:
        """What the converted network is given; it may change it."""
        copies = {name: each.clone() for name, each in self.named.items()}
        return next(iter(copies.values())) if len(copies) == 1 else copies

    @property
    def device(self) -> torch.device:
        return next(iter(self.named.values())).device

    def changed(self, change: Callable[[Tensor], Tensor]) -> Given:
        """The same arguments, each tensor of them changed."""

        def new(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return replace(
            self,
            args=tuple(new(each) for each in self.args),
            kwargs={name: new(each) for name, each in self.kwargs.items()},
        )

    def call(self, module: nn.Module) -> Any:
        """``module`` of these arguments, copied, since it may change them."""
        copied = self.changed(Tensor.clone)
        return module(*copied.args, **copied.kwargs)

    def __str__(self) -> str:
        shapes = [f"shape {list(each.shape)} and {each.dtype}" for each in self.named.values()]
        if len(shapes) == 1:
            return shapes[0]
        return "; ".join(f"{name} of {shape}" for name, shape in zip(self.named, shapes, strict=True))


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """The arguments as forward's parameters. Raises InputError for what is no input that a network can have."""
    if not args and set(kwargs) == {"example_input"}:  # as the only input was called
        args, kwargs = (kwargs["example_input"],), {}
    names = _names(module)
    kwargs = dict(sorted(kwargs.items(), key=lambda each: names.index(each[0]) if each[0] in names else len(names)))
    placed = (names[place] if place < len(names) else f"input_{place}" for place in range(len(args)))
    given = Given((*placed, *kwargs), args, kwargs)
    tensors = given.named
    if not tensors:
        what = ", ".join(map(shown, given.values)) or "nothing"
        raise InputError(f"example_input must be a batch that the module accepts, a tensor [N, ...]; got {what}.")
    for name, value in zip(given.names, given.values, strict=True):
        if not isinstance(value, (Tensor, int, float, str, type(None))):
            raise InputError(f"{name} must be a tensor [N, ...], or a number, text or None; got {shown(value)}.")
    samples = len(next(iter(tensors.values()))) if next(iter(tensors.values())).dim() else 0
    for name, tensor in tensors.items():
        if tensor.dim() < (2 if len(tensors) == 1 else 1) or len(tensor) != samples or not samples:
            what = "example_input" if len(tensors) == 1 else name
            raise InputError(
                f"{what} must be a batch that the module accepts, a tensor [N, ...]; got {shown(tensor)}."
                + (f" All inputs hold {samples} samples." if len(tensors) > 1 and samples else "")
            )
    return given


def _names(module: nn.Module) -> list[str]:
    """The names of forward's parameters."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each.name for each in parameters_of(module) if each.kind not in several]


def parameters_of(module: nn.Module) -> list[inspect.Parameter]:
    """Forward's parameters; none where its code cannot be looked at."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []
