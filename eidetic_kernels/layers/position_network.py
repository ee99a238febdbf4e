"""EideticPositionNetwork: position biases of attention heads that a small network computes."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .segmented import SegmentedLayer
from .succession import cut, empty_like, replace


class EideticPositionNetwork(SegmentedLayer):
    """Position biases [positions, heads] of Swin's second version (Liu et al., 2022): 16 * sigmoid(W relu(A c + a)).

    The coordinates ``c`` [positions, 2] never change, so the biases of a finished task's heads are plain numbers. These
    are frozen, as ``frozen_weight`` [F heads, positions]. ``weight`` [live heads, hidden] has a row for each live head.
    ``hidden_weight`` and ``hidden_bias``, which the live heads share, belong to the task in training alone, and are
    initialised anew for the next.

    Args:
        coordinates: [positions, 2].
        network: the plain one, Linear(2, hidden), an activation, Linear(hidden, heads) without bias.
        shared: how many units a head has.

    Raises InputError for a network of other layers.
    """

    coordinates: Tensor
    frozen_weight: Tensor
    frozen_names = ("frozen_weight",)
    live_names = ("weight", "hidden_weight", "hidden_bias", "coordinates")

    def __init__(self, coordinates: Tensor, network: nn.Sequential, shared: int):
        first, last = network[0], network[-1]
        if len(network) != 3 or not isinstance(first, nn.Linear) or not isinstance(last, nn.Linear):
            raise InputError(f"the network of position biases must be Linear, activation, Linear; got {network}.")
        super().__init__(last.out_features * shared, shared)
        self.shared = shared
        # torch declares these as tensors; they are parameters.
        self.hidden_weight, self.hidden_bias = cast(nn.Parameter, first.weight), cast(nn.Parameter, first.bias)
        self.weight = cast(nn.Parameter, last.weight)
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("frozen_weight", last.weight.new_empty(0, len(coordinates)), persistent=False)

    def forward(self) -> Tensor:
        task = self.scope.task
        if task is not None:
            return self.frozen_weight[: self.segments.present(task) // self.shared].t()
        return torch.cat([self.frozen_weight.t(), self._live()], 1)

    def _live(self) -> Tensor:
        hidden = F.relu(F.linear(self.coordinates, self.hidden_weight, self.hidden_bias))
        return 16 * torch.sigmoid(F.linear(hidden, self.weight))

    def reset_parameters(self) -> None:
        """Initialise what is live as torch does: uniform in +-1/sqrt(columns)."""
        hidden = len(self.hidden_bias)
        for parameter, columns in ((self.hidden_weight, 2), (self.hidden_bias, 2), (self.weight, hidden)):
            if parameter.numel():
                nn.init.uniform_(parameter, -(columns**-0.5), columns**-0.5)

    def cut_live(self, keep: Tensor) -> None:
        self.weight = cut(self.weight, keep[:: self.shared] // self.shared)

    @torch.no_grad()
    def freeze_live(self) -> None:
        self.frozen_weight = torch.cat([self.frozen_weight, self._live().t()])

    def allocate_frozen(self) -> None:
        rows = self.segments.frozen_total // self.shared
        self.frozen_weight = empty_like(self.weight, rows, len(self.coordinates))

    def renew_live(self) -> None:
        self.hidden_weight = replace(self.hidden_weight, torch.empty_like(self.hidden_weight))
        self.hidden_bias = replace(self.hidden_bias, torch.empty_like(self.hidden_bias))
        live = self.segments.live // self.shared
        self.weight = replace(self.weight, empty_like(self.weight, live, self.weight.shape[1]))
        self.reset_parameters()
