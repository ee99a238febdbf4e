"""EideticGroupedConv2d: a grouped convolution whose channels belong to tasks."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import flag, pair, placed, whole_number
from ..errors import InputError
from ..layout import LIVE, Segments
from ..memory import canonical
from ..ops.conv2d import output_shape
from .conv2d import PADDING_MODES, EideticConv2d, lying_as, window
from .inputs import check_dtype, check_tensor
from .no_channels import image
from .segmented import SegmentedLayer
from .succession import cut, empty_like, fresh, replace


class EideticGroupedConv2d(SegmentedLayer):
    """Drop-in for :class:`torch.nn.Conv2d` with ``groups > 1`` and ``in_channels = out_channels``: the same
    initialisation and names, ``weight`` [L, channels // groups, kh, kw] and ``bias`` [L] of the live channels.

    A group's output channels are made of its own input channels alone, so they belong to the same units: like
    BatchNorm this layer follows its input's unit group. A group of channels (a *grain*) belongs to one task as a
    whole. It is pruned, frozen and recycled as one, so Resistance needs nothing else.

    Args:
        channels: channels of input and output as long as nothing is pruned.
        groups: the number of groups, each convolved by itself; ``channels`` is a multiple of it.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch.

    Raises InputError when ``groups`` does not divide ``channels``, and for an input of another shape.
    """

    frozen_weight: Tensor
    frozen_bias: Tensor | None
    frozen_names = ("frozen_weight", "frozen_bias")

    def __init__(
        self,
        channels: int,
        groups: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ):
        channels, groups = whole_number("channels", channels), whole_number("groups", groups, 1)
        if channels % groups:
            raise InputError(f"groups must divide the channels; {groups} groups of {channels} channels were asked for.")
        super().__init__(channels, channels // groups or 1)
        self.channels, self.groups, self.kernel_size = channels, groups, pair("kernel_size", kernel_size, 1)
        moves = pair("stride", stride, 1), padding, pair("dilation", dilation, 1), padding_mode
        self.geometry, self._pads = window(self.kernel_size, *moves)
        self.padding, self.padding_mode = padding, padding_mode
        self.reads = self.segments.grain  # input channels of each output channel

        factory = placed(device, dtype)
        self.weight = fresh(channels, self.reads, *self.kernel_size, **factory)
        self.bias = fresh(channels, **factory) if flag("bias", bias) else None
        self.register_buffer("frozen_weight", self.weight.detach()[:0].clone(), persistent=False)
        self.register_buffer("frozen_bias", torch.empty(0, **factory) if bias else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the live channels as torch does: uniform in +-1/sqrt(fan in), that of one group."""
        if self.weight.numel():
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            if self.bias is not None:
                bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
                nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        task = self.scope.task
        check_tensor(self, x, self.weight)
        present = self.segments.present(task)
        if x.dim() != 4 or x.shape[1] != present:
            raise InputError(f"{self} expects an input of shape [N, {present}, H, W], got {list(x.shape)}.")
        check_dtype(self, x, self.weight)
        full_input_grad = self.scope.full_input_grad or (not self.owned and x.requires_grad)
        if self._pads is not None:
            x = F.pad(x, self._pads, mode=PADDING_MODES[self.padding_mode])

        parts = []
        for segment in range(self.segments.tasks if task is None else task + 1):
            units = slice(self.segments.start(segment), self.segments.stop(segment))
            if units.start < units.stop:
                # Each segment by itself, in memory of its own, so that its bits depend on nothing beside it.
                own = x[:, units] if full_input_grad else x[:, units].detach()
                bias = None if self.frozen_bias is None else self.frozen_bias[units]
                parts.append(self._convolve(canonical(own), lying_as(x, self.frozen_weight[units]), bias))
        live = self.segments.live if task is None or task == LIVE else 0
        if live:
            weight = lying_as(x, self.weight) if self.segments.tasks else self.weight
            parts.append(self._convolve(x[:, present - live :], weight, self.bias))
        if not parts:
            parts.append(x.new_zeros(output_shape(x, self.kernel_size, 0, self.geometry)))
        return image(parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    def part(self, units: Tensor) -> EideticGroupedConv2d:
        """A fresh layer for some of this fresh layer's channels, whole groups, with their parameters."""
        part = copy.deepcopy(self)
        part.channels = len(units)
        part.groups = part.channels // self.reads
        part.segments = Segments(part.channels, grain=self.reads)
        for name, parameter in self.named_parameters():
            setattr(part, name, nn.Parameter(parameter.detach()[units].clone(), parameter.requires_grad))
        return part

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep)
        if self.bias is not None:
            self.bias = cut(self.bias, keep)

    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.weight.detach()])
        if self.bias is not None and self.frozen_bias is not None:
            self.frozen_bias = torch.cat([self.frozen_bias, self.bias.detach()])

    def allocate_frozen(self) -> None:
        self.frozen_weight = empty_like(self.weight, self.segments.frozen_total, *self.weight.shape[1:])
        if self.bias is not None:
            self.frozen_bias = empty_like(self.bias, self.segments.frozen_total)

    def renew_live(self) -> None:
        self.weight = replace(self.weight, empty_like(self.weight, self.segments.live, *self.weight.shape[1:]))
        if self.bias is not None:
            self.bias = replace(self.bias, empty_like(self.bias, self.segments.live))
        self.reset_parameters()

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *self.geometry, groups=x.shape[1] // self.reads)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, groups={self.groups}, kernel_size={self.kernel_size}, stride={self.geometry.stride}, "
            f"padding={self.padding}, dilation={self.geometry.dilation}, bias={self.bias is not None}"
        )


class EideticDepthwiseConv2d(EideticGroupedConv2d):
    """Drop-in for :class:`torch.nn.Conv2d` with ``groups = in_channels = out_channels``: each channel is a group.

    Args:
        channels: channels of input and output as long as nothing is pruned.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch.
    """

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
        super().__init__(channels, channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype)


# The layers whose units are channels of images.
CONVOLUTIONS = (EideticConv2d, EideticGroupedConv2d)
