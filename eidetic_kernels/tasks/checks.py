"""Arguments of a network's calls, checked before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..checking import explained, flag, instance, known_names, require, share, shown, whole_number
from ..errors import CapacityError, InputError, TaskError
from ..layers import SegmentedLayer
from ..wiring.groups import Group
from .inputs import Inputs, parts_of

# What can be iterated over, and never gives batches.
_NO_BATCHES: tuple[type, ...] = (str, bytes, Mapping, Tensor, np.ndarray, np.generic)


def choices(forward_transfer: bool | Mapping[str, bool], names: Sequence[str]) -> dict[str, bool]:
    """Forward transfer for each of ``names``, from one choice for all or a choice by name.

    Names that are not given transfer. Raises InputError for an unknown name, and for what is no choice.
    """
    known_names(forward_transfer, names, "layer", "the network")
    if isinstance(forward_transfer, Mapping):
        return {name: flag(f"forward_transfer of {name}", forward_transfer.get(name, True)) for name in names}
    return dict.fromkeys(names, flag("forward_transfer", forward_transfer))


def cap_units(group: Group, free: int, max_units: int | float | Mapping[str, int | float] | None) -> int:
    """How many of ``free`` units a group gives to a new task: whole grains, and a multiple of what it is aligned to.

    Raises:
        InputError: ``max_units`` is neither a count nor a share.
        CapacityError: a count by name is larger than ``free``.
    """
    segments = group.segments
    limit = max_units.get(group.name) if isinstance(max_units, Mapping) else max_units
    if limit is None:
        return free
    limit = count_or_share("max_units", limit)
    if isinstance(limit, float):
        return segments.fitting(round(limit * segments.width), free, nearest=True)
    if limit > free and isinstance(max_units, Mapping):
        raise CapacityError(
            f"{group.name}: {limit} new units were asked for, but only {free} of {segments.width} are free. "
            "Ask for fewer, or widen the network (net.widen)."
        )
    return segments.fitting(limit, free)


def count_or_share(name: str, value: object) -> int | float:
    """``value`` as an int, if it is a count of units, or as a float, if it is a share of a group's width in [0, 1].

    1 is a count and 1.0 is a share. Raises InputError.
    """
    for check in (whole_number, share):
        with suppress(InputError):
            return check(name, value)
    raise InputError(
        f"{name} must be a count of units (an int, 0 or more) or a share of the width (a float in [0, 1]); got "
        f"{shown(value)}."
    )


def an_optimizer(optimizer: object) -> Optimizer:
    """``optimizer`` as it is, if it is one of torch's. Raises InputError."""
    return instance("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer, made from net.parameters()")


def trainable(network: nn.Module) -> None:
    """Raise TaskError where a layer of ``network`` has tensors that torch will not train."""
    for path, layer in cast("Iterator[tuple[str, nn.Module]]", network.named_modules()):
        tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        if isinstance(layer, SegmentedLayer) and any(tensor.is_inference() for tensor in tensors):
            raise TaskError(
                f"the tensors of {path!r} were made inside torch.inference_mode(), and torch does not train such ones. "
                "Build, copy and move the network outside of it. A copy that is made outside can be trained: "
                "net = copy.deepcopy(net)."
            )


def gradients(call: str) -> None:
    """Raise TaskError where torch records no gradients, so that ``call`` could train nothing."""
    if not torch.is_grad_enabled():
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        raise TaskError(
            f"{call} was called inside torch.{mode}(), where torch records no gradients, so nothing can be trained. "
            "Call it outside, with batches that were made outside."
        )


def pairs(name: str, loader: object) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of ``loader``, one pass of it, as they come. Raises InputError for what is no pair of tensors."""
    return cast("Iterable[tuple[Tensor, Tensor]]", _pairs(name, _walkable(name, loader), _is_tensor))


def pairs_of_inputs(name: str, loader: object) -> Iterable[tuple[Inputs, Tensor]]:
    """As :func:`pairs`, where x may be several tensors."""
    return cast("Iterable[tuple[Inputs, Tensor]]", _pairs(name, _walkable(name, loader), _is_input))


def _walkable(name: str, loader: object) -> Iterable[object]:
    walked = hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")
    fits = walked and not isinstance(loader, _NO_BATCHES)
    require(fits, f"{name} must be an iterable of (x, y) batches, such as a DataLoader", loader)
    return cast("Iterable[object]", loader)


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def _is_input(x: object) -> bool:
    """A tensor, or what :data:`.Inputs` has of several."""
    parts = parts_of(x)
    return bool(parts) and all(isinstance(each, Tensor) for each in parts)


def _pairs(name: str, loader: Iterable[object], is_x: Callable[[object], bool]) -> Iterator[tuple[Any, Tensor]]:
    for batch in loader:
        given = tuple(cast("Sequence[object]", batch)) if isinstance(batch, (tuple, list)) else (batch,)
        if len(given) != 2 or not is_x(given[0]) or not isinstance(given[1], Tensor):
            found = ", ".join(map(shown, given))
            raise InputError(
                f"{name} must give pairs (x, y) of tensors; it gave {found}. Numbers and arrays become tensors by "
                "torch.as_tensor."
            )
        yield given[0], given[1]


def mean_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, y: Tensor) -> Tensor:
    """``loss(logits, y)``. Raises InputError, with both, where that is refused or is no number with a gradient."""
    with explained(
        f"loss cannot compare logits {list(logits.shape)} with labels, {shown(y)}; for cross-entropy they are class "
        f"indices, int64 [N] in 0..{logits.shape[1] - 1}"
    ):
        value = loss(logits, y)
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"loss must return the mean loss of a batch, one number with a gradient; got {shown(value)}.")
    return value
