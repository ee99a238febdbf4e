"""Configurations as a run folder keeps them: in JSON, and compared key by key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from eidetic_kernels.errors import InputError

_MISSING = object()


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it reads back: tuples become lists, so that equal configurations compare equal.

    Raises InputError for what JSON does not know.
    """
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the configuration must be made of what JSON knows (text, numbers, lists, tables): {error}."
        ) from error


def differences(there: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """How a given configuration differs from the one that a run began with: "seed: 0 there, 1 given".

    A key that the earlier version did not know counts as equal if its value is empty or off (None, False or {}).
    """
    return [
        f"{key}: {_shown(old)} there, {_shown(new)} given"
        for key, old, new in _differing(there, given)
        if not (old is _MISSING and (new is False or new in (None, {})))
    ]


def _differing(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every dotted key at which two configurations differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            below = f"{key}.{name}" if key else name
            yield from _differing(old.get(name, _MISSING), new.get(name, _MISSING), below)
    elif old != new:
        yield key, old, new


def _shown(value: Any) -> str:
    return "nothing" if value is _MISSING else json.dumps(value)
