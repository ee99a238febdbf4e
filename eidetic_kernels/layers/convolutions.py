"""Convolutions over sequences and volumes, and transposed ones, whose output channels belong to tasks.

They run on the library's convolution segment by segment, without kernels of our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checking import one_of, sizes, whole_number
from ..errors import InputError
from ..layout import Stair
from ..memory import canonical
from ..ops.staircase import frozen_blocks, read
from .batch_norm import EideticBatchNorm
from .conv2d import PADDING_MODES, window
from .inputs import check_tensor
from .layer_norm import seen_by_spans
from .no_channels import image
from .staircase import StaircaseLayer


class EideticConvolution(StaircaseLayer):
    """Abstract. Drop-in for torch's convolution over ``spatial`` dimensions with ``groups=1``: the same initialisation
    and names; ``weight`` [L, K_l, *kernel].

    Args:
        in_channels: channels of the input [N, in_channels, *] as long as nothing is pruned.
        out_channels: the layer's width: how many channels all tasks together may own.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as in torch. ``padding`` is a number
            or one for each dimension.

    Raises InputError for ``groups`` other than 1 and for an input of another shape or dtype than the weights'.
    """

    norms: type[EideticBatchNorm] = EideticBatchNorm
    spatial = 1

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
    ):
        self._set_channels(in_channels, out_channels, groups)
        self.kernel_size = sizes("kernel_size", kernel_size, self.spatial, 1)
        stride, dilation = sizes("stride", stride, self.spatial, 1), sizes("dilation", dilation, self.spatial, 1)
        self.geometry, self._pads = window(self.kernel_size, stride, padding, dilation, padding_mode)
        self.padding, self.padding_mode = padding, padding_mode
        super().__init__(self.in_channels, self.out_channels, self.kernel_size, bias, device, dtype, None)

    def _set_channels(self, in_channels: int, out_channels: int, groups: int) -> None:
        if whole_number("groups", groups) != 1:
            raise InputError(f"{type(self).__name__} supports groups=1, got groups={groups}.")
        self.in_channels, self.groups = whole_number("in_channels", in_channels), 1
        self.out_channels = whole_number("out_channels", out_channels, unit="units")

    def forward(self, x: Tensor, computed: Tensor | None = None) -> Tensor:
        if computed is not None:  # by all parts of a divided layer together
            return computed
        check_tensor(self, x, self.weight)
        stairs = self.derived(self.scope.task)
        self.check_input(x, stairs.columns, dims=self.spatial + 2)
        x, weights, full_input_grad = self._arguments(x)
        if self.order is not None and self.untouched:
            return self.whole(x, weights.weight, weights.bias)

        pieces, row = [], 0
        for stair, block in zip(stairs.frozen, frozen_blocks(weights.frozen_weight, stairs.frozen, self.kernel_size)):
            bias = None if weights.frozen_bias is None else weights.frozen_bias[row : row + stair.rows]
            seen = canonical(read(x if full_input_grad else x.detach(), stair.spans))
            pieces.append(self._segment(seen, block, bias, stair))
            row += stair.rows
        if stairs.live is not None:
            live = stairs.live
            seen = seen_by_spans(x.movedim(1, -1), live.spans, stairs.trainable, full_input_grad).movedim(-1, 1)
            pieces.append(self._segment(seen, weights.weight, weights.bias, live))
        pieces = [piece for piece in pieces if piece.shape[1]] or pieces[:1]
        return image(pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1))

    def _segment(self, x: Tensor, weight: Tensor, bias: Tensor | None, stair: Stair) -> Tensor:
        if stair.rows and stair.columns:
            return self._dense(x, weight, bias)
        # torch refuses convolutions of no channel: one of zeros says what size the result has.
        zeros = self._dense(x.new_zeros(len(x), 1, *x.shape[2:]), weight.new_zeros(1, 1, *self.kernel_size), None)
        y = zeros.new_zeros(len(x), stair.rows, *zeros.shape[2:])
        return y if bias is None else y + bias.view(-1, *[1] * self.spatial)

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.spatial - 1]
        x = x if self._pads is None else F.pad(x, self._pads, PADDING_MODES[self.padding_mode])
        return convolve(x, weight, bias, *self.geometry)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.geometry.stride}, padding={self.padding}, dilation={self.geometry.dilation}, "
            f"bias={self.bias is not None}"
        )


class EideticConv1d(EideticConvolution):
    """Drop-in for :class:`torch.nn.Conv1d` with ``groups=1``; see :class:`EideticConvolution`."""


class EideticConv3d(EideticConvolution):
    """Drop-in for :class:`torch.nn.Conv3d` with ``groups=1``; see :class:`EideticConvolution`."""

    spatial = 3


class EideticConvTranspose(EideticConvolution):
    """Abstract. Drop-in for torch's transposed convolution over ``spatial`` dimensions with ``groups=1``.

    Args:
        in_channels, out_channels: as in :class:`EideticConvolution`.
        kernel_size, stride, padding, output_padding, bias, dilation, device, dtype: as in torch.

    ``weight`` [L, K_l, *kernel] has a row for each output channel, where torch's has one for each of the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups: int = 1,
        bias: bool = True,
        dilation=1,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ):
        one_of("padding_mode", padding_mode, ("zeros",))
        self.output_padding = sizes("output_padding", output_padding, self.spatial)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, "zeros", device, dtype
        )

    def _dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        torchs = weight.transpose(0, 1).contiguous()
        stride, padding, dilation = self.geometry
        return convolve(x, torchs, bias, stride, padding, self.output_padding, 1, dilation)


class EideticConvTranspose1d(EideticConvTranspose):
    """Drop-in for :class:`torch.nn.ConvTranspose1d`; see :class:`EideticConvTranspose`."""


class EideticConvTranspose2d(EideticConvTranspose):
    """Drop-in for :class:`torch.nn.ConvTranspose2d`; see :class:`EideticConvTranspose`."""

    spatial = 2


class EideticConvTranspose3d(EideticConvTranspose):
    """Drop-in for :class:`torch.nn.ConvTranspose3d`; see :class:`EideticConvTranspose`."""

    spatial = 3
