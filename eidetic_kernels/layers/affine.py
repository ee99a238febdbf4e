"""Scale and shift of norms: parameters of the live units, and frozen ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .segmented import SegmentedLayer
from .succession import cut, empty_like, replace


class AffineNorm(SegmentedLayer):
    """Abstract. A norm whose parameters, ``weight`` and ``bias`` [L] or some of them, have a number for each live unit;
    buffers of the same names with ``frozen_`` in front hold those of finished tasks [F].

    ``forward_transfer`` says of each segment, the live one last, whether its statistics run over earlier tasks' units.
    """

    forward_transfer: tuple[bool, ...]

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def cut_live(self, keep: Tensor) -> None:
        for name, parameter in list(self.named_parameters()):
            setattr(self, name, cut(parameter, keep))

    def freeze_live(self) -> None:
        for name, parameter in self.named_parameters():
            setattr(self, f"frozen_{name}", torch.cat([getattr(self, f"frozen_{name}"), parameter.detach()]))
        self.forward_transfer = (*self.forward_transfer, True)

    def allocate_frozen(self) -> None:
        for name, parameter in self.named_parameters():
            setattr(self, f"frozen_{name}", empty_like(parameter, self.segments.frozen_total))

    def renew_live(self, forward_transfer: bool = True) -> None:
        self.forward_transfer = (*self.forward_transfer[:-1], forward_transfer)
        for name, parameter in list(self.named_parameters()):
            setattr(self, name, replace(parameter, empty_like(parameter, self.segments.live)))
        self.reset_parameters()
