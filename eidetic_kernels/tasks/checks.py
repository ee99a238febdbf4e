"""Arguments of the network's calls, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CapacityError, InputError
from ..wiring.groups import Group


def choices(forward_transfer: bool | Mapping[str, bool], names: list[str]) -> dict[str, bool]:
    """Forward transfer for each of ``names``, given for all of them or for some; those not named may transfer."""
    check_names(forward_transfer, names, "layer")
    if isinstance(forward_transfer, Mapping):
        return {name: bool(forward_transfer.get(name, True)) for name in names}
    return dict.fromkeys(names, bool(forward_transfer))


def cap_units(group: Group, free: int, max_units: int | float | Mapping[str, int | float] | None) -> int:
    """How many new units a group gets, of ``free`` ones: whole grains, and the multiple it is aligned to."""
    segments = group.segments
    limit = max_units.get(group.name) if isinstance(max_units, Mapping) else max_units
    if limit is None:
        return free
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 0:
        raise InputError(f"max_units must be a count or a share in [0, 1], got {limit!r}.")
    if isinstance(limit, float):
        if limit > 1:
            raise InputError(f"max_units as a float is a share of the width in [0, 1], got {limit}; a count is an int.")
        return segments.fitting(round(limit * segments.width), free, nearest=True)
    if limit > free and isinstance(max_units, Mapping):
        raise CapacityError(
            f"{group.name}: {limit} new units were asked for, but only {free} of {segments.width} are free. "
            "Ask for fewer, or widen the network (net.widen)."
        )
    return segments.fitting(limit, free)


def check_classes(num_classes: int) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"num_classes must be a positive whole number, got {num_classes!r}.")


def check_names(given: Any, known: list[str], kind: str) -> None:
    unknown = [name for name in given if name not in known] if isinstance(given, Mapping) else []
    if unknown:
        raise InputError(f"unknown {kind} {', '.join(map(repr, unknown))}; there are: {', '.join(known)}.")
