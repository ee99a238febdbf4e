"""What every segmented layer has: its unit group, and the calls that prune and freeze it when the layer is alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import explained, shown, whole_number
from ..errors import CapacityError, InputError, TaskError
from ..layout import Segments
from .scope import Scope


@dataclass(frozen=True)
class Known:
    """What a layer derived from the sizes of its groups when these had this version."""

    version: int
    task: int | None
    value: Any


class SegmentedLayer(nn.Module):
    """Abstract. A layer whose units belong to segments: those of finished tasks, then the live one.

    Alone, a layer owns its ``segments`` and offers ``prune``, ``freeze`` and ``recycle``. Inside an
    :class:`~eidetic_kernels.EideticNetwork` the network owns them, since units are shared with other layers.

    Subclasses implement three steps on their tensors, which leave ``segments`` untouched:
    ``cut_live`` (keep some live units), ``freeze_live`` (append the live tensors to the frozen ones) and
    ``renew_live`` (fresh live tensors for the sizes that ``segments`` now states). A fourth,
    ``allocate_frozen``, makes room for a saved layer's frozen tensors.
    """

    frozen_names: tuple[str, ...] = ()
    # Parameters and statistics that are cut, frozen and renewed with the units. What a subclass adds belongs to no
    # task, unless it names it here and cuts, freezes and renews it.
    live_names: tuple[str, ...] = ("weight", "bias")
    # The dimension of the units in the layer's input and output: 1, or -1 (tokens, images with channels last).
    unit_dim = 1
    # How many neighbouring units share one row of the layer's tensors: a head's, where there is one row for each head.
    shared = 1

    def __init__(self, width: int, grain: int = 1):
        super().__init__()
        self.segments = Segments(width, grain=grain)
        self.scope = Scope()
        self.owned = False
        self.attached = False

    @property
    def segments(self) -> Segments:
        """How the layer's units are owned."""
        return self._segments

    @segments.setter
    def segments(self, segments: Segments) -> None:
        self._segments, self._known = segments, None

    def join(self, segments: Segments, scope: Scope) -> None:
        """Hand the layer's units to a network: from now on they are pruned, frozen and recycled there."""
        if self.segments.tasks or self.segments.live != segments.live:
            raise TaskError(
                f"{self} was already pruned, frozen or added to a network ({self.segments}); only a fresh layer can "
                "join one: build another."
            )
        self.segments, self.scope, self.owned = segments, scope, True

    def kept(self, keep: Tensor) -> Tensor:
        """The layer's live rows that go with the live units ``keep`` of its group."""
        per = self.segments.per
        return keep if per == 1 else (keep.view(-1, 1) * per + torch.arange(per)).flatten()

    def attach(self, part: SegmentedLayer) -> None:
        """Let ``part``, a fresh layer inside this one, have the same units: it is pruned and frozen with them."""
        part.segments, part.scope, part.attached = self.segments, self.scope, True

    def together(self) -> list[SegmentedLayer]:
        """This layer and those attached to it."""
        attached = [part for part in self.children() if isinstance(part, SegmentedLayer) and part.attached]
        return [self, *attached]

    def cut_live(self, keep: Tensor) -> None:
        raise NotImplementedError

    def freeze_live(self) -> None:
        raise NotImplementedError

    def renew_live(self) -> None:
        raise NotImplementedError

    def allocate_frozen(self) -> None:
        raise NotImplementedError

    def derive(self, task: int | None) -> Any:
        """What forward needs to know of the units, in training (None) or in the recall of a finished task."""
        return self.segments.present(task)

    def columns_read(self, task: int | None) -> int:
        """How many columns the layer reads: as many as it has units, for one that follows them."""
        return self.segments.present(task)

    def version(self) -> int:
        """A number that changes whenever the sizes change that :meth:`derive` depends on."""
        return self.segments.version

    def derived(self, task: int | None) -> Any:
        """What :meth:`derive` returns, kept until the units or the task change.

        A network asks for it before each forward pass, so that torch.compile sees the result and not the computation,
        which it would trace again after every change.
        """
        known, version = self._known, self.version()
        if known is None or known.version != version or known.task != task:
            known = self._known = Known(version, task, self.derive(task))
        return known.value

    def prune(self, keep: Sequence[int] | Tensor) -> None:
        """Keep only the live units with these indices (ascending, counted from the first live unit)."""
        self._require_alone("prune")
        with explained(f"keep must be a list of unit indices; got {shown(keep)}"):
            keep = torch.as_tensor(keep)
            keep = keep if keep.numel() else keep.long()
        if keep.dtype != torch.long:
            raise InputError(f"keep must be unit indices (whole numbers), got {keep.dtype}: mask.nonzero().flatten()?")
        if keep.dim() != 1 or (len(keep) and (keep.diff() <= 0).any()):
            raise InputError("keep must be a list of ascending unit indices without repetition.")
        if len(keep) and not (0 <= keep[0] and keep[-1] < self.segments.live):
            raise InputError(f"keep names units outside 0..{self.segments.live - 1}, the live units present.")
        if not self.segments.keeps_whole(keep.tolist()):
            raise InputError(
                f"keep must name whole runs of {self.segments.grain} units, which are pruned and frozen together."
            )
        for layer in self.together():
            layer.cut_live(keep)
        self.segments.prune(len(keep))
        self.derived(None)

    def freeze(self) -> None:
        """The live units become the segment of the task just learned: buffers, out of any optimizer's reach."""
        self._require_alone("freeze")
        for layer in self.together():
            layer.freeze_live()
        self.segments.freeze()
        for layer in self.together():
            layer.renew_live()
        self.derived(None)

    def recycle(self, live: int | None = None) -> None:
        """``live`` fresh units (all free ones by default) for the next task."""
        self._require_alone("recycle")
        if self.segments.live:
            raise TaskError(f"{self.segments.live} live units are in training; freeze them before recycling.")
        if live is None and not self.segments.free:
            raise CapacityError(f"all {self.segments.width} units are frozen; nothing is left to recycle.")
        self.segments.recycle(self.segments.free if live is None else whole_number("live", live, unit="units"))
        for layer in self.together():
            layer.renew_live()
        self.derived(None)

    def _require_alone(self, call: str) -> None:
        if self.owned:
            raise TaskError(f"this layer shares its units with others of its network: call net.{_ON_NETWORK[call]}.")
        if self.attached:
            raise TaskError(f"this layer is part of another, which has the same units: call {call} on that one.")

    # A fresh layer's state_dict has torch's names only, so torch's weights load into it and the other way round;
    # frozen tensors appear once a task is finished.

    def _frozen_tensors(self) -> dict[str, Tensor]:
        if not self.segments.tasks:
            return {}
        return {name: getattr(self, name) for name in self.frozen_names if getattr(self, name) is not None}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self._frozen_tensors().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        frozen = self._frozen_tensors()
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        for name, tensor in frozen.items():
            key = prefix + name
            if key not in state_dict:
                missing.append(key)
                continue
            if key in unexpected:
                unexpected.remove(key)
            if state_dict[key].shape != tensor.shape:
                errors.append(f"{key} has shape {tuple(state_dict[key].shape)}, expected {tuple(tensor.shape)}")
            else:
                tensor.copy_(state_dict[key])


_ON_NETWORK = {"prune": "prune", "freeze": "finish_task", "recycle": "prepare_for_task"}
