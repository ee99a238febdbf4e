"""The least that a training step must do: its multiply-adds and its bytes, counted from the staircase.

A step's limit is the larger of two times: its multiply-adds at the machine's product rate, and its bytes at the
machine's copy rate; both rates are measured in the same run (:mod:`timing`). The dense network's limit is the same
count with nothing frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.layers import EideticBatchNorm, StaircaseLayer

FLOAT = 4
ADAM_TRAFFIC = 7  # read parameter, gradient and two moments; write parameter and two moments


@dataclass
class Work:
    """Multiply-adds and bytes of the forward pass, and of the backward pass with the optimizer's step."""

    forward: int = 0
    backward: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0

    def seconds(self, product_rate: float, copy_rate: float, direction: str = "full") -> float:
        """The least seconds that a machine of these rates needs; ``direction``: "forward", "backward" or "full"."""
        forward, backward = direction != "backward", direction != "forward"
        products = forward * self.forward + backward * self.backward
        moved = forward * self.forward_bytes + backward * self.backward_bytes
        return max(products / product_rate, moved / copy_rate)


def work(net: EideticNetwork, x: Tensor) -> Work:
    """The work of one training step of ``net`` as it stands, on the batch ``x``."""
    total, handles = Work(), []
    for layer in net.modules():
        if isinstance(layer, StaircaseLayer):
            handles.append(layer.register_forward_hook(lambda *call: _count_product(total, *call)))
        elif isinstance(layer, EideticBatchNorm):
            handles.append(layer.register_forward_hook(lambda *call: _count_norm(total, *call)))
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _count_product(total: Work, layer: StaircaseLayer, inputs: tuple[Tensor, ...], y: Tensor) -> None:
    stairs = layer.staircase()
    kernel = layer.weight.shape[2:].numel()
    positions = y.shape[0] * y.shape[2:].numel()
    total.forward += stairs.multiply_adds() * kernel * positions
    live = stairs.live
    trainable = sum(stop - start for start, stop in stairs.trainable)
    total.backward += live.rows * (live.columns + trainable) * kernel * positions
    x, weights = inputs[0], stairs.multiply_adds() * kernel
    total.forward_bytes += FLOAT * (x.numel() + y.numel() + weights)
    live_weights = live.rows * live.columns * kernel
    read = FLOAT * (live.rows * positions + live.columns * x.shape[0] * x.shape[2:].numel() + live_weights)
    written = FLOAT * trainable * x.shape[0] * x.shape[2:].numel()
    total.backward_bytes += read + written + ADAM_TRAFFIC * FLOAT * live_weights
    if layer.norm is not None:  # it is part of the layer, so its own forward does not run
        _count_norm(total, layer.norm, inputs, y)


def _count_norm(total: Work, layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
    live = layer.segments.live * y.shape[0] * y.shape[2:].numel()
    total.forward_bytes += FLOAT * (2 * y.numel() + live)  # statistics, then values: live channels are read twice
    total.backward_bytes += FLOAT * 5 * live  # gradient and input for the sums, both again, and the result


def rates() -> tuple[float, float]:
    """The machine's product rate (multiply-adds a second) and copy rate (bytes a second)."""
    from timing import copy_rate, product_rate

    with torch.no_grad():
        return product_rate(), copy_rate()
