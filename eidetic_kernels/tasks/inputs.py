"""What a network is given: a tensor [N, ...], or several, in a sequence or by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

from torch import Tensor

from ..checking import shown
from ..errors import InputError

# forward gets a sequence's tensors one after the other, those of a mapping by the names of its parameters.
Inputs: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def parts_of(x: object) -> tuple[object, ...]:
    """What stands in a sequence or a mapping; else the thing itself."""
    if isinstance(x, Mapping):
        return tuple(cast("Mapping[object, object]", x).values())
    return tuple(cast("Sequence[object]", x)) if isinstance(x, (tuple, list)) else (x,)


def tensors_of(x: Inputs) -> tuple[Tensor, ...]:
    """The tensors of an input, in order. Raises InputError for what is none."""
    found = parts_of(x)
    for each in found:
        if not isinstance(each, Tensor):
            raise InputError(
                f"the input must be a tensor [N, ...]; got {shown(x)}. Several are given in a tuple of tensors, or in "
                "a mapping from names to tensors."
            )
    found = cast("tuple[Tensor, ...]", found)
    if not found:
        raise InputError("the input must hold at least one tensor.")
    for each in found:
        if each.dim() == 0 or not len(each):
            raise InputError(f"the input must hold at least one sample, [N, ...]; got shape {list(each.shape)}.")
        if len(each) != len(found[0]):
            sizes = [list(tensor.shape) for tensor in found]
            raise InputError(f"the tensors of an input must hold as many samples each, [N, ...]; got shapes {sizes}.")
    return found


def samples_of(x: Inputs) -> int:
    """How many samples an input holds."""
    return len(tensors_of(x)[0])


def each_of(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same input, each tensor of it changed."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, Mapping):
        return {name: change(each) for name, each in x.items()}
    return tuple(change(each) for each in x)


def arguments_of(x: Inputs) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
    """The input as what forward is called with."""
    return ((), x) if isinstance(x, Mapping) else (tensors_of(x), {})
