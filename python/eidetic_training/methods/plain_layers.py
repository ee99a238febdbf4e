"""Torch's own layers in place of this package's, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import (
    EideticBatchNorm1d,
    EideticBatchNorm2d,
    EideticConv2d,
    EideticDropout,
    EideticLinear,
)

# In place, as torchvision's networks have them.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": partial(F.relu, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
    "silu": partial(F.silu, inplace=True),
    "gelu": F.gelu,
    "hardswish": partial(F.hardswish, inplace=True),
}


def plain(module: nn.Module) -> nn.Module:
    """``module`` with this package's layers replaced by torch's, which take over the weights.

    Only fresh layers have a plain version. A layer that owns its norm becomes torch's layer with torch's norm as its
    child ``norm``. Raises InputError for a layer without a plain version.
    """
    if isinstance(module, EideticLinear):
        replacement = _linear(module)
    elif isinstance(module, EideticConv2d):
        replacement = _convolution(module)
    elif isinstance(module, (EideticBatchNorm1d, EideticBatchNorm2d)):
        kind = _BatchNorm1d if isinstance(module, EideticBatchNorm1d) else _BatchNorm2d
        replacement = kind(module.num_features, module.eps, module.momentum, module.affine)
        replacement.activation = module.activation
    elif isinstance(module, EideticDropout):
        return (nn.Dropout2d if module.channels else nn.Dropout)(module.p)
    elif type(module).__module__.startswith("eidetic_kernels."):
        raise InputError(f"{type(module).__name__} has no plain version here: compare on a network without it.")
    else:
        for name, child in list(module.named_children()):
            setattr(module, name, plain(child))
        return module

    replacement.load_state_dict(module.state_dict())
    return replacement.train(module.training)


def _linear(module: EideticLinear) -> nn.Linear:
    sizes = module.in_features, module.out_features, module.bias is not None
    if module.norm is None:
        return nn.Linear(*sizes)
    replacement = _NormedLinear(*sizes)
    replacement.norm = plain(module.norm)
    return replacement


def _convolution(module: EideticConv2d) -> nn.Conv2d:
    kind = nn.Conv2d if module.norm is None else _NormedConv2d
    replacement = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        bias=module.bias is not None,
        padding_mode=cast(Any, module.padding_mode),  # any str to us, one of four to torch
    )
    if isinstance(replacement, _NormedConv2d) and module.norm is not None:
        replacement.norm = plain(module.norm)
    return replacement


class _NormedLinear(nn.Linear):
    """Torch's product, then its norm, which may be given a residual."""

    norm: nn.Module

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(x), residual)


class _NormedConv2d(nn.Conv2d):
    """Torch's convolution, then its norm, which may be given a residual."""

    norm: nn.Module

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.norm(super().forward(x), residual)


class _Activated(_BatchNorm):
    """Torch's norm, then the residual, then the activation."""

    activation = "none"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        if residual is not None:
            y += residual
        return _ACTIVATIONS[self.activation](y)


class _BatchNorm1d(_Activated, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Activated, nn.BatchNorm2d):
    pass
