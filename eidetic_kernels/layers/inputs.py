"""The tensors that layers are called with, checked before anything moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checking import shown
from ..errors import InputError


def check_tensor(layer: nn.Module, x: Tensor, like: Tensor | None = None) -> None:
    """Raise InputError unless ``x`` is a dense tensor of floating point, on the device of ``like``, the layer's."""
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"{layer} expects a tensor; got {shown(x)}.")
    if x.layout != torch.strided:
        raise InputError(f"{layer} expects a dense tensor, and was given the layout {x.layout}: give x.to_dense().")
    if not x.is_floating_point():
        dtype = torch.get_default_dtype() if like is None else like.dtype
        raise InputError(f"{layer} holds {dtype} and was given {x.dtype}: convert the input (x.to({dtype})).")
    if like is not None and x.device != like.device:
        raise InputError(f"{layer} lies on {like.device} and was given a tensor on {x.device}: move one of them.")


def check_dtype(layer: nn.Module, x: Tensor, like: Tensor) -> None:
    """Raise InputError unless ``x`` has the dtype of ``like``, the layer's; inside autocast it is cast."""
    if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise InputError(
            f"{layer} holds {like.dtype} and was given {x.dtype}: convert the input (x.to({like.dtype})), or the "
            f"network (net.to({x.dtype}))."
        )
