"""The router while it is trained: on standardised columns, with weights that an optimizer may move."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eidetic_kernels.tasks.routing import Router, RouterInput

from .muon import Muon
from .router_data import Moments
from .router_settings import RouterSettings
from .trained_convolutions import TrainedConvolutions


class TrainedRouter(nn.Module):
    """Scores [N, tasks or classes] from columns [N, C] as :func:`~.router_data.router_data` gives them.

    The map reads what the convolutions compute, then the first columns, standardised: all of them, without the input
    where ``settings.inputs`` is off, and none where ``settings.alone`` is on.

    Args:
        settings: which columns are read, and how large the hidden layer is.
        moments: of all columns.
        scored: how many tasks, or classes of all tasks, get a score.
        image_shape: that of an input, whose pixels are the last columns. Convolutions read it.

    Raises InputError if the settings ask for convolutions that cannot read inputs of that shape.
    """

    def __init__(self, settings: RouterSettings, moments: Moments, scored: int, image_shape: tuple[int, ...]):
        super().__init__()
        self.settings = settings
        device = moments.mean.device
        self.images: TrainedConvolutions | None = None
        self.pixels = self.ahead = 0  # columns of the input, and of what convolutions make of it
        if settings.stages:
            self.images = TrainedConvolutions(image_shape, settings.stages, settings.augment).to(device)
            self.pixels, self.ahead = math.prod(image_shape), settings.stages[-1]
            columns = len(moments.mean)
            moments = moments.first(0 if settings.alone else columns if settings.inputs else columns - self.pixels)
        self.moments = moments

        columns = self.ahead + len(moments.mean)
        self.weight = nn.Parameter(torch.zeros(scored, settings.hidden or columns, device=device))
        self.bias = nn.Parameter(torch.zeros(scored, device=device))
        self.hidden_weight = self.hidden_bias = None
        if settings.hidden:
            drawn = torch.randn(settings.hidden, columns, device=device) * math.sqrt(2 / columns)
            self.hidden_weight = nn.Parameter(drawn)
            self.hidden_bias = nn.Parameter(torch.zeros(settings.hidden, device=device))

    def forward(self, rows: Tensor) -> Tensor:
        mean, deviation = self.moments
        columns = (rows[:, : len(mean)] - mean) / deviation
        if self.images is not None:
            columns = torch.cat([self.images(rows[:, -self.pixels :]), columns], 1)
        if self.hidden_weight is not None:
            columns = F.dropout(F.linear(columns, self.hidden_weight, self.hidden_bias).relu(), self.settings.dropout)
        return F.linear(columns, self.weight, self.bias)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for the map and for what is shifted after convolutions, Muon for convolutions' weights."""
        settings = self.settings
        maps = [p for p in (self.weight, self.bias, self.hidden_weight, self.hidden_bias) if p is not None]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(maps, settings.lr, weight_decay=settings.weight_decay, fused=True)
        ]
        if self.images is not None:
            shifts = self.images.shifts()
            optimizers.append(torch.optim.AdamW(shifts, settings.lr, weight_decay=0.0, fused=True))
            optimizers.append(Muon(self.images.weights))
        return optimizers

    @torch.no_grad()
    def folded(self, classes: tuple[int, ...] | None) -> Router:
        """The router that computes the same. The standardisation becomes part of its first map.

        Args:
            classes: how many each task has, where classes are scored and not tasks.
        """
        settings, (mean, deviation) = self.settings, self.moments
        if self.hidden_weight is None or self.hidden_bias is None:
            first, bias = self.weight, self.bias
        else:
            first, bias = self.hidden_weight, self.hidden_bias
        scaled = first[:, self.ahead :] / deviation
        first_map = torch.cat([first[:, : self.ahead], scaled], 1), bias - scaled @ mean

        convolutions = None if self.images is None else self.images.folded()
        reads = RouterInput(settings.layers, settings.inputs, convolutions, settings.mirrored)
        if self.hidden_weight is None:
            return Router(*first_map, reads=reads, classes=classes)
        return Router(self.weight.detach(), self.bias.detach(), *first_map, reads=reads, classes=classes)
