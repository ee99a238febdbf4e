"""Modules written out as what they are made of, where their own forward cannot be traced or hides a layer.

torch's TransformerEncoder chooses a fused kernel by looking at values. What it computes is the same, to rounding: the
fused kernel for inference has other bits. timm's layers call functions with their own tensors.
"""

from __future__ import annotations

from torch import Tensor, nn


class _Written(nn.Module):
    """A module with the children and settings of ``old``, under their names."""

    def __init__(self, old: nn.Module):
        super().__init__()
        for name, child in old.named_children():
            self.add_module(name, child)
        self.training = old.training


class EncoderLayer(_Written):
    """What :class:`torch.nn.TransformerEncoderLayer` computes without masks."""

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


class Encoder(_Written):
    """What :class:`torch.nn.TransformerEncoder` computes without masks."""

    def __init__(self, old: nn.TransformerEncoder):
        super().__init__(old)
        self.norm = old.norm

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if self.norm is None else self.norm(x)


class NormAct(_Written):
    """What timm's BatchNormAct2d computes."""

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
# What these compute is what torch's do, whose subclasses they are.
_SAME = {"timm.layers.linear.Linear": nn.Linear, "timm.layers.norm.LayerNorm": nn.LayerNorm}


def write_out(module: nn.Module) -> nn.Module:
    """``module`` with every such module in it, and itself if it is one, written out; changed in place."""
    for name, child in module.named_children():
        setattr(module, name, write_out(child))
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if name == _NORM_ACT:
        return NormAct(module)
    if name in _SAME:
        module.__class__ = _SAME[name]
    for plain, written in ((nn.TransformerEncoderLayer, EncoderLayer), (nn.TransformerEncoder, Encoder)):
        if isinstance(module, plain) and type(module).forward is plain.forward:
            return written(module)
    return module
