"""Layers that choose, segment by segment, whether they read earlier tasks' units (forward transfer)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

from ..layers import SegmentedLayer


class TransferringLayer(Protocol):
    """A layer that chooses for each segment whether it reads earlier tasks' units (nested) or not (disjoint)."""

    forward_transfer: tuple[bool, ...]

    def renew_live(self, forward_transfer: bool = True) -> None: ...


def transferring(layers: Iterable[tuple[str, SegmentedLayer]]) -> dict[str, TransferringLayer]:
    """Those of ``layers`` that choose, by path."""
    return {path: cast(TransferringLayer, layer) for path, layer in layers if hasattr(layer, "forward_transfer")}
