"""More room between two tasks, where tasks come without end (paper, section 1: maintainability)."""

from __future__ import annotations

from eidetic_kernels import EideticNetwork


def widen_by(network: EideticNetwork, amount: int | float) -> None:
    """Let every unit group hold more units: ``amount`` of them (an int), or this fraction of its present width."""
    widths = {group.name: group.segments.width for group in network.groups}
    network.widen(
        {name: width + (amount if isinstance(amount, int) else round(amount * width)) for name, width in widths.items()}
    )
