"""torch's TransformerEncoder written out: its own forward chooses a fused kernel by looking at values, which cannot be
traced. What it computes is the same, to rounding: the fused kernel for inference has other bits."""

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


def write_out(module: nn.Module) -> nn.Module:
    """``module`` with every encoder of torch's in it, and itself if it is one, written out; changed in place."""
    for name, child in module.named_children():
        setattr(module, name, write_out(child))
    for plain, written in ((nn.TransformerEncoderLayer, EncoderLayer), (nn.TransformerEncoder, Encoder)):
        if isinstance(module, plain) and type(module).forward is plain.forward:
            return written(module)
    return module
