"""EideticConv2d: torch.nn.Conv2d whose output channels belong to tasks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..checking import nearest, one_of, pair, shown, sizes, whole_number
from ..errors import InputError
from ..memory import memory_format
from ..ops.conv2d import output_shape
from .batch_norm import EideticBatchNorm2d
from .inputs import check_tensor
from .no_channels import image
from .staircase import StaircaseLayer

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class EideticConv2d(StaircaseLayer):
    """Drop-in for :class:`torch.nn.Conv2d` with ``groups=1``: the same arguments, initialisation and names.

    Args:
        in_channels: channels of the input [N, in_channels, H, W] as long as nothing is pruned.
        out_channels: the layer's width: how many channels all tasks together may own.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch.
        norm: an ``EideticBatchNorm2d(out_channels, activation=...)`` that becomes part of this layer; results are those
            of the two layers one after the other. ``forward`` then takes a ``residual`` as the norm does. Frozen
            channels are normalised in the convolution's own pass where a backend can.

    Raises InputError for ``groups`` other than 1, for an input of another shape or dtype than the weights', and for a
    norm of another width.
    """

    norms = EideticBatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        norm: EideticBatchNorm2d | None = None,
    ):
        if whole_number("groups", groups) != 1:
            raise InputError(
                f"EideticConv2d supports groups=1, got groups={groups}. A grouped convolution is "
                "EideticGroupedConv2d, with a group a channel EideticDepthwiseConv2d."
            )
        self.in_channels, self.groups = whole_number("in_channels", in_channels), 1
        self.out_channels = whole_number("out_channels", out_channels, unit="units")
        self.kernel_size, self.stride = pair("kernel_size", kernel_size, 1), pair("stride", stride, 1)
        self.dilation = pair("dilation", dilation, 1)
        self.geometry, self._pads = window(self.kernel_size, self.stride, padding, self.dilation, padding_mode)
        self.padding, self.padding_mode = padding, padding_mode
        super().__init__(self.in_channels, self.out_channels, self.kernel_size, bias, device, dtype, norm)

    def forward(self, x: Tensor, residual: Tensor | None = None, computed: Tensor | None = None) -> Tensor:
        if computed is not None:  # by all parts of a divided layer together
            return computed
        check_tensor(self, x, self.weight)
        stairs = self.derived(self.scope.task)
        self.check_input(x, stairs.columns, dims=4)
        if self.norm is None and residual is not None:
            raise InputError(f"{self} has no norm to take a residual: add it to the output instead.")
        x, weights, full_input_grad = self._arguments(x)
        if self.order is not None and self.untouched:
            y = self.whole(x, weights.weight, weights.bias)
            return y if self.norm is None else self.norm.normalise(y, residual, full_input_grad)

        x = self._padded(x)
        if self.segments.tasks:
            weights = ops.Weights(lying_as(x, weights.weight), *weights[1:])
        if self.norm is None:
            return image(ops.staircase_conv2d(x, weights, stairs, self.geometry, full_input_grad))

        shape = output_shape(x, self.kernel_size, stairs.rows, self.geometry)
        if min(shape[2:]) < 1:
            raise InputError(
                f"{self} has a kernel larger than its input of {' x '.join(map(str, x.shape[2:]))} pixels, padding "
                "included: give it larger images, or more padding."
            )
        norm, elsewhere = self.norm.arguments(shape, residual), self.norm.num_frozen_elsewhere
        y = ops.staircase_conv2d_norm(x, weights, stairs, norm, self.geometry, residual, full_input_grad, elsewhere)
        return image(y)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(self._padded(x), weight, bias, *self.geometry)

    def _padded(self, x: Tensor) -> Tensor:
        return x if self._pads is None else F.pad(x, self._pads, mode=PADDING_MODES[self.padding_mode])

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )


def lying_as(x: Tensor, weight: Tensor) -> Tensor:
    """``weight`` in memory as the images ``x`` lie. torch's convolution is channels_last where either is: once a task
    is finished that is for the images alone to say, or ``net.to(memory_format=...)`` would change its bits."""
    wanted = memory_format(x)
    return weight if memory_format(weight) == wanted else weight.clone(memory_format=wanted)


def window(kernel, stride, padding, dilation, padding_mode: str) -> tuple[ops.Geometry, list[int] | None]:
    """How a convolution moves over its input, and what F.pad adds before it, where the op itself cannot."""
    one_of("padding_mode", padding_mode, tuple(PADDING_MODES))
    before_after = _before_after(padding, kernel, stride, dilation)
    if padding_mode == "zeros" and all(before == after for before, after in before_after):
        return ops.Geometry(stride, tuple(before for before, _ in before_after), dilation), None
    # F.pad counts from the last dimension backwards.
    sides = [side for pair in reversed(before_after) for side in pair]
    return ops.Geometry(stride, (0,) * len(kernel), dilation), sides


def _before_after(padding, kernel, stride, dilation) -> list[tuple[int, int]]:
    """Pixels added (before, after) in each dimension."""
    if isinstance(padding, str) and padding == "valid":
        return [(0, 0)] * len(kernel)
    if isinstance(padding, str) and padding == "same":
        if set(stride) != {1}:
            raise InputError(f"padding='same' needs stride 1, got stride {stride}.")
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        raise InputError(
            f"padding must be a whole number, a pair, 'same' or 'valid'; got {shown(padding)}"
            f"{nearest(padding, ('same', 'valid'))}."
        )
    return [(side, side) for side in sizes("padding", padding, len(kernel))]
