"""FixedTensor: what a network's forward makes of fixed tensors alone (a mask, positions), computed once."""

from __future__ import annotations

from torch import Tensor, nn


class FixedTensor(nn.Module):
    """Returns a tensor that is fixed. It is held flat: ``net.to(memory_format=...)`` takes others for images."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.shape = tuple(value.shape)
        self.register_buffer("value", value.flatten())

    def forward(self) -> Tensor:
        return self.value.view(self.shape)
