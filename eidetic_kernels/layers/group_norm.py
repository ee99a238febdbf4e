"""EideticGroupNorm: GroupNorm whose statistics run over what a unit's own task may see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checking import flag, placed, real_number, whole_number
from ..errors import InputError
from ..layout import Segments, Source, reads
from ..memory import canonical
from .affine import AffineNorm
from .inputs import check_dtype, check_tensor
from .layer_norm import seen_by_segment
from .succession import fresh


class EideticGroupNorm(AffineNorm):
    """Drop-in for :class:`torch.nn.GroupNorm` over the channels of [N, C, *].

    With several groups, the channels of one are a grain: they belong to one task, are pruned and frozen together, and
    nothing else enters their statistics. With one group, a segment's channels are normalised over all channels that the
    segment may see, as in :class:`.EideticLayerNorm`. Either way a frozen channel's output never depends on
    a later one.

    Args:
        num_groups, num_channels, eps, affine, device, dtype: as in torch.
        bias: whether there is a shift beside the scale; without ``affine`` there is none.

    ``weight`` and ``bias`` [L] belong to the live channels, ``frozen_weight`` and ``frozen_bias`` [F] to the frozen
    ones. Raises InputError when ``num_groups`` does not divide ``num_channels``, and for an input of another shape.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    frozen_weight: Tensor | None
    frozen_bias: Tensor | None
    frozen_names = ("frozen_weight", "frozen_bias")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device=None,
        dtype=None,
        bias: bool = True,
    ):
        groups, channels = whole_number("num_groups", num_groups, 1), whole_number("num_channels", num_channels)
        if channels % groups:
            raise InputError(f"num_groups must divide the channels; got {groups} groups of {channels} channels.")
        super().__init__(channels, 1 if groups == 1 else channels // groups or 1)
        self.num_groups, self.num_channels, self.eps = groups, channels, real_number("eps", eps, 0.0)
        self.affine = flag("affine", affine)
        self.together_in = 0 if groups == 1 else channels // groups  # channels of a group; 0: all that are seen
        self.forward_transfer: tuple[bool, ...] = (True,)

        factory = placed(device, dtype)
        for name, there in (("weight", affine), ("bias", affine and flag("bias", bias))):
            self.register_parameter(name, fresh(channels, **factory) if there else None)
            self.register_buffer(f"frozen_{name}", torch.empty(0, **factory) if there else None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Live channels start as torch's: scale 1, shift 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(self, x, self.weight)
        task = self.scope.task
        present = self.segments.present(task)
        if x.dim() < 2 or x.shape[1] != present:
            raise InputError(f"{self} expects an input of shape [N, {present}, *], got {list(x.shape)}.")
        if self.weight is not None:
            check_dtype(self, x, self.weight)
        tasks = self.segments.tasks
        pieces = [
            self._segment(x, segment)
            for segment in range((tasks if task is None else task) + 1)
            if self.segments.size(segment)
        ]
        return torch.cat(pieces, 1) if len(pieces) > 1 else pieces[0] if pieces else x

    def _segment(self, x: Tensor, segment: int) -> Tensor:
        """The normalised channels of a segment."""
        size, live = self.segments.size(segment), segment == self.segments.tasks
        full_input_grad = self.scope.full_input_grad or (not self.owned and x.requires_grad)
        weight, bias = self._affine_of(segment)
        nested = not self.together_in and self.forward_transfer[segment]
        span = reads((Source(self.segments),), segment, nested, self.scope.task)
        seen = seen_by_segment(x.movedim(1, -1), span, self.segments, segment, live, full_input_grad).movedim(-1, 1)
        seen = seen if live else canonical(seen)
        if seen.shape[1] == size:
            groups = size // self.together_in if self.together_in else 1
            return F.group_norm(seen, groups, weight, bias, self.eps)
        y = F.group_norm(seen, 1, None, None, self.eps)[:, seen.shape[1] - size :]
        columns = (-1, *[1] * (x.dim() - 2))
        y = y if weight is None else y * weight.view(columns)
        return y if bias is None else y + bias.view(columns)

    def _affine_of(self, segment: int) -> tuple[Tensor | None, Tensor | None]:
        if segment == self.segments.tasks:
            return self.weight, self.bias
        rows = slice(self.segments.start(segment), self.segments.stop(segment))
        weight, bias = (None if each is None else each[rows] for each in (self.frozen_weight, self.frozen_bias))
        return weight, bias

    def part(self, units: Tensor) -> EideticGroupNorm:
        """A fresh layer for some of this fresh layer's channels, whole groups, with their parameters.

        Raises InputError where the channels of several unit groups are normalised together.
        """
        if not self.together_in:
            raise InputError(f"{self} takes statistics over several unit groups at once, which is not supported.")
        like = self.weight if self.weight is not None else torch.empty(0)
        groups = len(units) // self.together_in
        part = EideticGroupNorm(
            groups, len(units), self.eps, self.affine, like.device, like.dtype, self.bias is not None
        )
        part.together_in = self.together_in
        part.segments = Segments(len(units), grain=self.together_in)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                getattr(part, name).copy_(parameter[units]).requires_grad_(parameter.requires_grad)
        return part

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"
