"""Images without channels: what a convolution makes where a task took none of its units.

torch's pooling, padding and resizing refuse them, though what they would make is plain: an image of the new size
without channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

# What torch raises where it wants a channel.
NO_CHANNEL_REFUSALS = (IndexError, NotImplementedError, RuntimeError, ValueError)


class NoChannels(Tensor):
    """An image [N, 0, H, W] for functions that want a channel: it gets one for the call, and the result loses it.

    Everything else that is made with it is a plain tensor.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            try:
                return tree_map(_as_it_is, func(*args, **kwargs))
            except NO_CHANNEL_REFUSALS as refusal:
                try:
                    lent = func(*tree_map(_with_a_channel, list(args)), **tree_map(_with_a_channel, dict(kwargs)))
                except NO_CHANNEL_REFUSALS:
                    raise refusal from None
                return tree_map(_without_channels, lent)


def image(y: Tensor) -> Tensor:
    """``y``; if it is an image without channels, as a :class:`NoChannels`, which can be pooled, padded and resized."""
    return y if y.dim() != 4 or y.shape[1] else y.as_subclass(NoChannels)


def _as_it_is(value: Any) -> Any:
    return image(value.as_subclass(Tensor)) if isinstance(value, Tensor) else value


def _with_a_channel(value: Any) -> Any:
    return value.new_zeros(value.shape[0], 1, *value.shape[2:]) if isinstance(value, NoChannels) else value


def _without_channels(value: Any) -> Any:
    return image(value[:, :0]) if isinstance(value, Tensor) and value.dim() == 4 else value
