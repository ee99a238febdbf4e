"""EideticBatchNorm1d and 2d: BatchNorm that keeps each task's normalisation for ever."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..checking import flag, one_of, placed, real_number, shown, whole_number
from ..errors import InputError
from ..layout import LIVE
from .inputs import check_dtype, check_tensor
from .no_channels import image
from .segmented import SegmentedLayer
from .succession import cut, empty_like, fresh, replace, select


class EideticBatchNorm(SegmentedLayer):
    """Abstract. ``weight``, ``bias``, ``running_mean``, ``running_var`` [L] belong to the live units.

    When a task is finished, its units' normalisation becomes two frozen numbers each (paper, section 3.1):
    ``frozen_scale = weight / sqrt(running_var + eps)`` and ``frozen_shift = bias - running_mean * frozen_scale``.
    A frozen unit's output is therefore the same in training and in evaluation (P5).
    """

    frozen_names = ("frozen_scale", "frozen_shift")
    live_names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    dims: tuple[int, ...] = ()

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str = "none",
    ):
        super().__init__(whole_number("num_features", num_features))
        if not flag("track_running_stats", track_running_stats):
            raise InputError(
                "track_running_stats=False has no statistics to freeze: a finished task's answers would depend on "
                "the test batch. Leave it True."
            )
        one_of("activation", activation, tuple(ops.ACTIVATIONS))
        self.num_features, self.eps = self.segments.width, real_number("eps", eps, 0.0)
        self.momentum = None if momentum is None else real_number("momentum", momentum, 0.0, 1.0)
        self.affine, self.track_running_stats, self.activation = flag("affine", affine), True, activation
        num_features, factory = self.num_features, placed(device, dtype)
        self.weight = fresh(num_features, **factory) if affine else None
        self.bias = fresh(num_features, **factory) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features, **factory))
        self.register_buffer("running_var", torch.ones(num_features, **factory))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))
        self.register_buffer("frozen_scale", torch.empty(0, **factory), persistent=False)
        self.register_buffer("frozen_shift", torch.empty(0, **factory), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Live units start as torch's: scale 1, shift 0, mean 0, variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        if self.weight is not None and self.weight.numel():
            nn.init.ones_(self.weight)
        if self.bias is not None and self.bias.numel():
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(x) + residual), for ``residual`` shaped as x (a network ties its units to x's).

        Where their dtypes differ, the result has the one that torch promotes their sum to.
        """
        check_tensor(self, x, self.running_mean)
        if x.dtype.itemsize > self.running_mean.dtype.itemsize:
            check_dtype(self, x, self.running_mean)
        return self.normalise(x, residual, self.scope.full_input_grad or (not self.owned and x.requires_grad))

    def normalise(self, x: Tensor, residual: Tensor | None, full_input_grad: bool) -> Tensor:
        """``forward``; ``full_input_grad`` where the gradient at frozen channels is owed too."""
        return image(
            ops.segmented_batch_norm(
                x, self.arguments(x.shape, residual), residual, full_input_grad, self.num_frozen_elsewhere
            )
        )

    @property
    def num_frozen_elsewhere(self) -> int:
        """How many frozen channels a whole batch has, where this pass runs live ones alone."""
        return self.segments.frozen_total if self.scope.task == LIVE else 0

    def arguments(self, shape: Sequence[int], residual: Tensor | None = None) -> ops.Norm:
        """What the op needs beside an input of this shape.

        In training this counts the batch: call it once, when nothing else can be refused any more.
        """
        task = self.scope.task
        present = self.derived(task)
        if len(shape) not in self.dims or shape[1] != present:
            ranks = " or ".join(f"{dim}-dimensional" for dim in self.dims)
            raise InputError(f"{self} expects {ranks} input with {present} channels, got {list(shape)}.")

        live = self.segments.live if task is None or task == LIVE else 0
        training = self.training and live > 0
        if training and math.prod(shape) == present:
            raise InputError(
                f"{self} needs more than one value per channel in training, got a batch of shape {list(shape)}: "
                "batch statistics of one sample are meaningless. Use drop_last=True or a larger batch."
            )
        if residual is not None and not (isinstance(residual, Tensor) and residual.shape == torch.Size(shape)):
            raise InputError(f"{self} adds a residual shaped as its input, {list(shape)}; got {shown(residual)}.")

        scale, shift = self.frozen_scale, self.frozen_shift
        if task is not None:
            frozen = 0 if task == LIVE else present
            scale, shift = scale[:frozen], shift[:frozen]
        # Running statistics move in float32 or better under autocast too; x keeps its dtype.
        mean, var, momentum = self.running_mean, self.running_var, self._momentum() if training else 0.0
        return ops.Norm(self.weight, self.bias, mean, var, scale, shift, training, momentum, self.eps, self.activation)

    def part(self, units: Tensor) -> EideticBatchNorm:
        """A fresh layer for some of this fresh layer's units, with their parameters and statistics."""
        part = type(self)(
            len(units),
            self.eps,
            self.momentum,
            self.affine,
            device=self.running_mean.device,
            dtype=self.running_mean.dtype,
            activation=self.activation,
        )
        with torch.no_grad():
            for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
                if name not in self.frozen_names:
                    getattr(part, name).copy_(tensor[units] if tensor.dim() else tensor)
        for name, parameter in self.named_parameters():
            getattr(part, name).requires_grad_(parameter.requires_grad)
        return part

    def cut_live(self, keep: Tensor) -> None:
        self.weight = None if self.weight is None else cut(self.weight, keep)
        self.bias = None if self.bias is None else cut(self.bias, keep)
        self.running_mean = select(self.running_mean, keep)
        self.running_var = select(self.running_var, keep)

    def freeze_live(self) -> None:
        scale = 1 / torch.sqrt(self.running_var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.detach()
        shift = -self.running_mean * scale
        if self.bias is not None:
            shift = shift + self.bias.detach()
        self.frozen_scale = torch.cat([self.frozen_scale, scale])
        self.frozen_shift = torch.cat([self.frozen_shift, shift])

    def allocate_frozen(self) -> None:
        self.frozen_scale = empty_like(self.running_mean, self.segments.frozen_total)
        self.frozen_shift = empty_like(self.running_mean, self.segments.frozen_total)

    def renew_live(self) -> None:
        if self.weight is not None:
            self.weight = replace(self.weight, empty_like(self.weight, self.segments.live))
        if self.bias is not None:
            self.bias = replace(self.bias, empty_like(self.bias, self.segments.live))
        self.running_mean = empty_like(self.running_mean, self.segments.live)
        self.running_var = empty_like(self.running_var, self.segments.live)
        self.num_batches_tracked = torch.zeros_like(self.num_batches_tracked)  # replaced as all live tensors are
        self.reset_parameters()

    def _momentum(self) -> float:
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def extra_repr(self) -> str:
        activation = "" if self.activation == "none" else f", activation={self.activation!r}"
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}{activation}"


class EideticBatchNorm1d(EideticBatchNorm):
    """Drop-in for :class:`torch.nn.BatchNorm1d` over [N, C] or [N, C, L].

    Args:
        num_features, eps, momentum, affine, device, dtype: as in torch; ``track_running_stats`` must be True.
        activation: "none", "relu", "relu6", "silu", "gelu" (exact) or "hardswish", applied in the same pass.

    ``forward(x, residual=None)`` adds the residual before the activation, in the same pass too.
    """

    dims = (2, 3)


class EideticBatchNorm2d(EideticBatchNorm):
    """Drop-in for :class:`torch.nn.BatchNorm2d` over [N, C, H, W]; arguments as :class:`EideticBatchNorm1d`."""

    dims = (4,)


class EideticBatchNorm3d(EideticBatchNorm):
    """Drop-in for :class:`torch.nn.BatchNorm3d` over [N, C, D, H, W]; arguments as :class:`EideticBatchNorm1d`."""

    dims = (5,)
