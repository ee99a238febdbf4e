"""Rebuilds modules from their parts, where their own forward cannot be traced or hides a layer.

torch's TransformerEncoder looks at values to choose a fused kernel for inference, whose outputs agree up to rounding.
timm's layers call functions with their own tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn


class _Decomposed(nn.Module):
    """Abstract. A module with the children of ``old``, under their names."""

    def __init__(self, old: nn.Module):
        super().__init__()
        for name, child in old.named_children():
            self.add_module(name, child)
        self.training = old.training


class EncoderLayer(_Decomposed):
    """What :class:`torch.nn.TransformerEncoderLayer` computes without masks."""

    self_attn: nn.MultiheadAttention
    linear1: nn.Linear
    linear2: nn.Linear
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    dropout: nn.Dropout
    dropout1: nn.Dropout
    dropout2: nn.Dropout
    activation: Callable[[Tensor], Tensor]

    def __init__(self, old: nn.TransformerEncoderLayer):
        super().__init__(old)
        self.norm_first = old.norm_first
        if not hasattr(self, "activation"):
            self.activation = old.activation

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.feed_forward(x))

    def attend(self, x: Tensor) -> Tensor:
        return self.dropout1(self.self_attn(x, x, x, need_weights=False)[0])

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class Encoder(_Decomposed):
    """What :class:`torch.nn.TransformerEncoder` computes without masks."""

    layers: nn.ModuleList

    def __init__(self, old: nn.TransformerEncoder):
        super().__init__(old)
        self.norm = old.norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if self.norm is None else self.norm(x)


class NormAct(_Decomposed):
    """What timm's BatchNormAct2d computes."""

    act: nn.Module
    drop: nn.Module

    def __init__(self, old: nn.BatchNorm2d):
        super().__init__(old)
        self.norm = nn.BatchNorm2d(old.num_features, old.eps, old.momentum, old.affine, old.track_running_stats).train(
            old.training
        )
        for name, parameter in old.named_parameters(recurse=False):
            setattr(self.norm, name, parameter)
        for name, buffer in old.named_buffers(recurse=False):
            setattr(self.norm, name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.norm(x)))


_NORM_ACT = "timm.layers.norm_act.BatchNormAct2d"
# Subclasses of torch's layers that compute what these do.
_SAME = {"timm.layers.linear.Linear": nn.Linear, "timm.layers.norm.LayerNorm": nn.LayerNorm}


def decompose(module: nn.Module) -> nn.Module:
    """``module`` with every such module in it decomposed, in place; or what it is rebuilt as, if it is one itself."""
    for name, child in module.named_children():
        setattr(module, name, decompose(child))
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if name == _NORM_ACT:
        return NormAct(cast(nn.BatchNorm2d, module))
    if name in _SAME:
        module.__class__ = _SAME[name]
    if isinstance(module, nn.TransformerEncoderLayer) and type(module).forward is nn.TransformerEncoderLayer.forward:
        return EncoderLayer(module)
    if isinstance(module, nn.TransformerEncoder) and type(module).forward is nn.TransformerEncoder.forward:
        return Encoder(module)
    return module
