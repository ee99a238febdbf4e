"""EideticGroupedConv2d: a grouped convolution whose channels belong to tasks."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import flag, placed, sizes, whole_number
from ..errors import InputError
from ..layout import LIVE, Segments
from ..memory import canonical
from .computed_weight import ComputedWeight
from .conv2d import PADDING_MODES, EideticConv2d, lying_as, window
from .inputs import check_dtype, check_tensor
from .no_channels import image
from .succession import cut, empty_like, fresh, replace


class EideticGroupedConv2d(ComputedWeight):
    """Drop-in for :class:`torch.nn.Conv2d` with ``groups > 1``: the same initialisation and names, ``weight``
    [L, channels // groups, kh, kw] and ``bias`` [L] of the live output channels.

    A group's output channels are made of its own input channels alone, so they belong to the same units: like
    BatchNorm this layer follows its input's unit group. A group of channels (a *grain*) belongs to one task as a
    whole. It is pruned, frozen and recycled as one, so Resistance needs nothing else.

    Args:
        channels: channels of the input, and of the output, as long as nothing is pruned.
        groups: the number of groups, each convolved by itself; ``channels`` is a multiple of it.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch.
        out_channels: where the output has others than the input: a multiple of ``groups`` as well.

    Raises InputError when ``groups`` does not divide ``channels``, and for an input of another shape.
    """

    frozen_weight: Tensor
    frozen_bias: Tensor | None
    frozen_names = ("frozen_weight", "frozen_bias")
    spatial = 2

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
        *,
        out_channels: int | None = None,
    ):
        channels, groups = whole_number("channels", channels), whole_number("groups", groups, 1)
        made = channels if out_channels is None else whole_number("out_channels", out_channels)
        for each in (channels, made):
            if each % groups:
                raise InputError(f"groups must divide the channels; {groups} groups of {each} channels were asked for.")
        super().__init__(made, made // groups or 1)
        self.channels, self.groups = channels, groups
        self.kernel_size = sizes("kernel_size", kernel_size, self.spatial, 1)
        moves = sizes("stride", stride, self.spatial, 1), padding, sizes("dilation", dilation, self.spatial, 1)
        self.geometry, self._pads = window(self.kernel_size, *moves, padding_mode)
        self.padding, self.padding_mode = padding, padding_mode
        self.reads, self.makes = channels // groups or 1, made // groups or 1  # input and output channels of a group

        factory = placed(device, dtype)
        self.weight = fresh(made, self.reads, *self.kernel_size, **factory)
        self.bias = fresh(made, **factory) if flag("bias", bias) else None
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
        columns = self._columns(self.segments.present(task))
        if x.dim() != self.spatial + 2 or x.shape[1] != columns:
            shape = ", ".join(["N", str(columns), *"DHW"[-self.spatial :]])
            raise InputError(f"{self} expects an input of shape [{shape}], got {list(x.shape)}.")
        check_dtype(self, x, self.weight)
        full_input_grad = self.scope.full_input_grad or (not self.owned and x.requires_grad)
        if self._pads is not None:
            x = F.pad(x, self._pads, mode=PADDING_MODES[self.padding_mode])

        parts = []
        for segment in range(self.segments.tasks if task is None else task + 1):
            units = slice(self.segments.start(segment), self.segments.stop(segment))
            if units.start < units.stop:
                # Each segment by itself, in memory of its own, so that its bits depend on nothing beside it.
                own = x[:, self._columns(units.start) : self._columns(units.stop)]
                own = own if full_input_grad else own.detach()
                bias = None if self.frozen_bias is None else self.frozen_bias[units]
                parts.append(self._convolve(canonical(own), lying_as(x, self.frozen_weight[units]), bias))
        live = self.segments.live if task is None or task == LIVE else 0
        if live:
            weight = self.live_weight()
            weight = lying_as(x, weight) if self.segments.tasks else weight
            parts.append(self._convolve(x[:, columns - self._columns(live) :], weight, self.bias))
        if not parts:
            sides = self.geometry.output_size(x.shape[2:], self.kernel_size)
            parts.append(x.new_zeros(len(x), 0, *sides))
        return image(parts[0] if len(parts) == 1 else torch.cat(parts, 1))

    def part(self, units: Tensor) -> EideticGroupedConv2d:
        """A fresh layer for some of this fresh layer's channels, whole groups, with their parameters."""
        part = copy.deepcopy(self)
        part.channels, part.groups = self._columns(len(units)), len(units) // self.makes
        part.segments = Segments(len(units), grain=self.makes)
        for name, parameter in self.named_parameters():
            setattr(part, name, nn.Parameter(parameter.detach()[units].clone(), parameter.requires_grad))
        return part

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep)
        if self.bias is not None:
            self.bias = cut(self.bias, keep)
        self.cut_extras(keep)

    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self.live_weight().detach()])
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
        self.renew_extras(self.segments.live)
        self.reset_parameters()

    def columns_read(self, task: int | None) -> int:
        return self._columns(self.segments.present(task))

    def _columns(self, rows: int) -> int:
        """How many input channels belong to ``rows`` output channels."""
        return rows // self.makes * self.reads

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        return convolve(x, weight, bias, *self.geometry, groups=x.shape[1] // self.reads)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.groups * self.makes}, groups={self.groups}, kernel_size={self.kernel_size}, "
            f"stride={self.geometry.stride}, "
            f"padding={self.padding}, dilation={self.geometry.dilation}, bias={self.bias is not None}"
        )


class EideticGroupedConv1d(EideticGroupedConv2d):
    """Drop-in for :class:`torch.nn.Conv1d` with ``groups > 1``; see :class:`EideticGroupedConv2d`."""

    spatial = 1


class EideticGroupedConv3d(EideticGroupedConv2d):
    """Drop-in for :class:`torch.nn.Conv3d` with ``groups > 1``; see :class:`EideticGroupedConv2d`."""

    spatial = 3


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
