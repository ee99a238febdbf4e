"""Weights that are computed of parameters row by row, before they are multiplied with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .segmented import SegmentedLayer
from .succession import cut, empty_like, replace


class ComputedWeight(SegmentedLayer):
    """Abstract. A layer whose live weight may be ``rule(weight, *extras)``: standardised rows, or a direction and a
    length. What is frozen is the result.

    ``extras`` name parameters [L, *] that belong to the rows as ``weight`` does. Those of fresh rows are drawn from a
    normal distribution with the mean and standard deviation of the first ones (buffers ``fresh_*``).
    """

    weight: nn.Parameter

    def __init__(self, width: int, grain: int = 1):
        super().__init__(width, grain)
        self.rule: nn.Module | None = None
        self.extras: tuple[str, ...] = ()

    def compute_weight(self, rule: nn.Module, extras: Mapping[str, Tensor]) -> None:
        """Let the live weight be ``rule(weight, *extras)``, row by row."""
        self.rule, self.extras = rule, tuple(extras)
        self.live_names = (*self.live_names, *self.extras, *(f"fresh_{name}" for name in self.extras))
        for name, values in extras.items():
            setattr(self, name, values if isinstance(values, nn.Parameter) else nn.Parameter(values))
            spread, mean = torch.std_mean(values.detach(), correction=0)
            self.register_buffer(f"fresh_{name}", torch.stack([mean, spread]))

    def live_weight(self) -> Tensor:
        """The live rows' weight, as it is multiplied with."""
        if self.rule is None or not self.weight.numel():
            return self.weight
        return self.rule(self.weight, *(getattr(self, name) for name in self.extras))

    def cut_extras(self, keep: Tensor) -> None:
        for name in self.extras:
            setattr(self, name, cut(getattr(self, name), keep))

    def renew_extras(self, rows: int) -> None:
        for name in self.extras:
            old, (mean, spread) = getattr(self, name), getattr(self, f"fresh_{name}")
            values = empty_like(old, rows, *old.shape[1:])
            setattr(self, name, replace(old, values.normal_() * spread + mean if rows else values))
