"""Arguments of a network's calls, checked before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checking import nearest
from ..errors import CapacityError, InputError
from ..wiring.groups import Group


def choices(forward_transfer: bool | Mapping[str, bool], names: Sequence[str]) -> dict[str, bool]:
    """Forward transfer for each of ``names``, from one choice for all or a choice by name.

    Names that are not given transfer. Raises InputError for an unknown name.
    """
    check_names(forward_transfer, names, "layer")
    if isinstance(forward_transfer, Mapping):
        return {name: bool(forward_transfer.get(name, True)) for name in names}
    return dict.fromkeys(names, bool(forward_transfer))


def cap_units(group: Group, free: int, max_units: int | float | Mapping[str, int | float] | None) -> int:
    """How many of ``free`` units a group gives to a new task: whole grains, and a multiple of what it is aligned to.

    Raises:
        InputError: ``max_units`` is neither a count nor a share.
        CapacityError: a count by name is larger than ``free``.
    """
    segments = group.segments
    limit = max_units.get(group.name) if isinstance(max_units, Mapping) else max_units
    if limit is None:
        return free
    limit = count_or_share("max_units", limit)
    if isinstance(limit, float):
        return segments.fitting(round(limit * segments.width), free, nearest=True)
    if limit > free and isinstance(max_units, Mapping):
        raise CapacityError(
            f"{group.name}: {limit} new units were asked for, but only {free} of {segments.width} are free. "
            "Ask for fewer, or widen the network (net.widen)."
        )
    return segments.fitting(limit, free)


def count_or_share(name: str, value: object) -> int | float:
    """``value`` as it is, if it is a count of units (an int) or a share of a group's width (a float in [0, 1]).

    Raises InputError.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, float) and 0 <= value <= 1:
        return value
    raise InputError(
        f"{name} must be a count of units (an int, 0 or more) or a share of the width (a float in [0, 1]); got "
        f"{value!r}."
    )


def check_names(given: Mapping[str, object] | float | None, known: Sequence[str], kind: str) -> None:
    """Raise InputError where ``given`` is a mapping with a key that is not among ``known``; ``kind`` says what of."""
    unknown = [name for name in given if name not in known] if isinstance(given, Mapping) else []
    if unknown:
        hint = nearest(unknown[0], known)
        raise InputError(f"unknown {kind} {', '.join(map(repr, unknown))}{hint}; there are: {', '.join(known)}.")
