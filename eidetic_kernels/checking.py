"""Arguments checked at the door, in one form: what was given, what was expected, what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from .errors import InputError

Value = TypeVar("Value")


def whole_number(name: str, value: object, least: int = 0, *, unit: str = "") -> int:
    """``value`` as it is, if it is a whole number of at least ``least``; True and False are none.

    ``unit`` says what is counted ("units", "epochs"). Raises InputError.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        counted = f" of {unit}" if unit else ""
        raise InputError(f"{name} must be a whole number{counted}, {least} or more; got {value!r}.")
    return value


def share(name: str, value: object, least: float = 0.0, most: float = 1.0) -> float:
    """``value`` as a float, if it is a finite number in [``least``, ``most``]. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name} must be a number in [{least:g}, {most:g}]; got {value!r}.")
    return float(value)


def one_of(name: str, value: Value, known: Sequence[Value]) -> Value:
    """``value`` as it is, if it is one of ``known``. Raises InputError, which names the nearest."""
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}{nearest(value, known)}.")
    return value


def nearest(given: object, known: Iterable[object]) -> str:
    """The words " (did you mean ...?)", for the name in ``known`` that is written most like ``given``; else nothing."""
    alike = difflib.get_close_matches(str(given), [str(name) for name in known], n=1)
    return f" (did you mean {alike[0]!r}?)" if alike else ""
