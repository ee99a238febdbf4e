"""Dropout and stochastic depth that leave frozen units alone."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ..checking import flag, one_of, real_number
from ..errors import InputError
from ..layout import LIVE, Source, Span, trainable
from ..ops.staircase import concatenate_like
from .inputs import check_tensor
from .scope import Scope


class _Dropping(nn.Module):
    """Abstract. Drops live units only, so what frozen units read and produce is the same in training and evaluation
    (P5). As long as it is not wired or nothing is frozen, it drops as torch does. Subclasses say how: ``_drop``."""

    unit_dim = 1  # or -1: see SegmentedLayer
    least_dims = 1

    def __init__(self, p: float):
        super().__init__()
        self.p = real_number("p", p, 0.0, 1.0)
        self.sources: tuple[Source, ...] = ()
        self.scope = Scope()

    @property
    def source(self) -> Source | None:
        """The group whose units arrive here; the first one, where several are concatenated."""
        return self.sources[0] if self.sources else None

    def wire(self, sources: Source | tuple[Source, ...], scope: Scope) -> None:
        """Learn which columns (dimension ``unit_dim``) are frozen, of one group or of several concatenated."""
        self.sources, self.scope = (sources,) if isinstance(sources, Source) else sources, scope

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        check_tensor(self, x)
        if x.dim() < self.least_dims:
            raise InputError(f"{self} expects a tensor of {self.least_dims} dimensions or more, got {list(x.shape)}.")
        dim, live = self.unit_dim, trainable(self.sources)
        if not self.sources or live == (Span(0, x.shape[dim]),):
            return self._drop(x)

        if self.scope.task == LIVE:  # piece by piece, so that random numbers fall where they fall in a whole batch
            pieces = x.split([stop - start for start, stop in live], dim) if live else ()
            return concatenate_like([self._drop(piece) for piece in pieces], x, dim) if pieces else x

        parts, end = [], 0
        for start, stop in live:
            parts += [x.narrow(dim, end, start - end), self._drop(x.narrow(dim, start, stop - start))]
            end = stop
        return concatenate_like([*parts, x.narrow(dim, end, x.shape[dim] - end)], x, dim) if parts else x

    def _drop(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class EideticDropout(_Dropping):
    """Drops live units only, so what frozen units read and produce is the same in training and evaluation (P5).

    Live units see frozen features undropped. Dropping these too was as accurate at a rate of 0.2, and less so at 0.5
    (bench/results/dropout.md).

    When a network's unit groups are found, this takes the place of :class:`torch.nn.Dropout` (elements) or, with
    ``channels=True``, of Dropout1d/2d/3d (whole channels). As long as it is not wired or nothing is frozen, it is
    torch's dropout.
    """

    def __init__(self, p: float = 0.5, channels: bool = False):
        super().__init__(p)
        self.inner = nn.Dropout(self.p)
        self.channels = flag("channels", channels)
        self.least_dims = 1 + self.channels

    def _drop(self, x: Tensor) -> Tensor:
        return torch.feature_dropout(x, self.p, True) if self.channels else self.inner(x)

    def extra_repr(self) -> str:
        return f"p={self.p}, channels={self.channels}"


class EideticStochasticDepth(_Dropping):
    """Drops the live units of a residual branch, for single samples (``mode="row"``) or the whole batch (``"batch"``).

    Takes the place of ``torchvision.ops.StochasticDepth`` and of timm's ``DropPath``, and draws the same random
    numbers. ``scaled``: what is kept is divided by the probability of being kept, so that the mean stays.
    """

    def __init__(self, p: float, mode: str = "row", scaled: bool = True):
        super().__init__(p)
        self.mode, self.scaled = one_of("mode", mode, ("row", "batch")), flag("scaled", scaled)

    def _drop(self, x: Tensor) -> Tensor:
        kept = 1.0 - self.p
        shape = [len(x) if self.mode == "row" else 1, *[1] * (x.dim() - 1)]
        noise = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(kept)
        return x * (noise.div_(kept) if kept and self.scaled else noise)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode}, scaled={self.scaled}"


class _Dropout(Protocol):
    """What torch's dropouts have in common."""

    p: float


@runtime_checkable
class _StochasticDepth(Protocol):
    """torchvision's StochasticDepth, by its attributes: torchvision need not be installed."""

    p: float
    mode: str


@runtime_checkable
class _DropPath(Protocol):
    """timm's DropPath, likewise."""

    drop_prob: float
    scale_by_keep: bool


def aware_of_segments(module: nn.Module) -> nn.Module:
    """What replaces a dropout or stochastic depth in a wired network; a module of this package stays itself."""
    if hasattr(module, "wire"):
        return module
    if isinstance(module, _StochasticDepth):
        aware = EideticStochasticDepth(module.p, module.mode)
    elif isinstance(module, _DropPath):
        aware = EideticStochasticDepth(module.drop_prob, "row", module.scale_by_keep)
    elif hasattr(module, "drop_prob"):  # Hugging Face's
        aware = EideticStochasticDepth(float(cast("float | None", module.drop_prob) or 0.0))
    else:
        aware = EideticDropout(cast("_Dropout", module).p, channels=not isinstance(module, nn.Dropout))
    aware.train(module.training)
    return aware
