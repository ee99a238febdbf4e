"""EideticDepthwiseConv2d: a convolution of each channel by itself, whose channels belong to tasks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ..errors import InputError
from ..ops.staircase import canonical
from ..parameters import cut, empty_like, replace
from .conv2d import PADDING_MODES, window
from .segmented import SegmentedLayer


class EideticDepthwiseConv2d(SegmentedLayer):
    """Stands for :class:`torch.nn.Conv2d` with ``groups = in_channels = out_channels``: the same initialisation and
    names, ``weight`` [L, 1, kh, kw] and ``bias`` [L] of the live channels.

    Channel i of the output is made of channel i of the input alone, so it belongs to the same unit: like BatchNorm
    this layer follows its input's unit group, and resistance holds of itself.

    Args:
        channels: channels of input and output as long as nothing is pruned.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch.
    """

    frozen_names = ("frozen_weight", "frozen_bias")

    def __init__(
        self,
        channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ):
        super().__init__(channels)
        self.channels, self.kernel_size, self.padding, self.padding_mode = (
            channels, _pair(kernel_size), padding, padding_mode
        )  # fmt: skip
        self.geometry, self._pads = window(self.kernel_size, _pair(stride), padding, _pair(dilation), padding_mode)
        factory = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(channels, 1, *self.kernel_size, **factory))
        self.bias = nn.Parameter(torch.empty(channels, **factory)) if bias else None
        self.register_buffer("frozen_weight", torch.empty(0, 1, *self.kernel_size, **factory), persistent=False)
        self.register_buffer("frozen_bias", torch.empty(0, **factory) if bias else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the live channels as torch does: uniform in +-1/sqrt(kernel's area)."""
        if self.weight.numel():
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            if self.bias is not None:
                bound = 1 / math.sqrt(math.prod(self.kernel_size))
                nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        task = self.scope.task
        present = self.segments.present(task)
        if x.dim() != 4 or x.shape[1] != present:
            raise InputError(f"{self} expects an input of shape [N, {present}, H, W], got {list(x.shape)}.")
        exact = self.scope.exact or (not self.owned and x.requires_grad)
        if self._pads is not None:
            x = F.pad(x, self._pads, mode=PADDING_MODES[self.padding_mode])
        parts = []
        for segment in range(self.segments.tasks if task is None else task + 1):
            units = slice(self.segments.start(segment), self.segments.stop(segment))
            if units.start < units.stop:
                # Each segment by itself, in memory of its own, so that its bits depend on nothing beside it.
                own = x[:, units] if exact else x[:, units].detach()
                bias = None if self.frozen_bias is None else self.frozen_bias[units]
                parts.append(self._convolve(canonical(own), self.frozen_weight[units], bias))
        live = self.segments.live if task is None else 0
        if live:
            parts.append(self._convolve(x[:, present - live :], self.weight, self.bias))
        if not parts:
            parts.append(x.new_zeros(self._empty_shape(x)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def part(self, units: slice) -> EideticDepthwiseConv2d:
        """A fresh layer for some of this fresh layer's channels, with their parameters."""
        stride, _, dilation = self.geometry
        part = EideticDepthwiseConv2d(
            units.stop - units.start, self.kernel_size, stride, self.padding, dilation, self.bias is not None,
            self.padding_mode, self.weight.device, self.weight.dtype,
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                getattr(part, name).copy_(parameter[units]).requires_grad_(parameter.requires_grad)
        return part

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep)
        if self.bias is not None:
            self.bias = cut(self.bias, keep)

    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.weight.detach()])
        if self.bias is not None:
            self.frozen_bias = torch.cat([self.frozen_bias, self.bias.detach()])

    def allocate_frozen(self) -> None:
        self.frozen_weight = empty_like(self.weight, self.segments.frozen_total, 1, *self.kernel_size)
        if self.bias is not None:
            self.frozen_bias = empty_like(self.bias, self.segments.frozen_total)

    def renew_live(self) -> None:
        self.weight = replace(self.weight, empty_like(self.weight, self.segments.live, 1, *self.kernel_size))
        if self.bias is not None:
            self.bias = replace(self.bias, empty_like(self.bias, self.segments.live))
        self.reset_parameters()

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *self.geometry, groups=x.shape[1])

    def _empty_shape(self, x: Tensor) -> tuple[int, ...]:
        sizes = [
            (size + 2 * padding - dilation * (side - 1) - 1) // stride + 1
            for size, side, stride, padding, dilation in zip(x.shape[2:], self.kernel_size, *self.geometry)
        ]
        return (len(x), 0, *sizes)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.geometry.stride}, padding={self.padding}, "
            f"dilation={self.geometry.dilation}, bias={self.bias is not None}"
        )
