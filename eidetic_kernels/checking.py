"""Arguments checked at the door, in one form: what was given, what was expected, what there is."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

Value = TypeVar("Value")

# Units, samples, epochs, bytes: nothing that is counted here comes near it, and sums of a few of them stay in 64 bits.
LARGEST = 2**48
LONGEST_PATH, LONGEST_NAME = 4096, 255  # as systems have it, of a path and of a part of it
SHOWN = 100  # characters of a value in a message

# What torch, and Python, raise of arguments that they cannot work with. Lack of memory has classes of its own.
REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def require(holds: bool, expected: str, given: object, hint: str = "") -> None:
    """Raise InputError unless ``holds``: what was ``expected``, what was ``given``, and ``hint``, what to do."""
    if not holds:
        raise InputError(f"{expected}; got {shown(given)}.{' ' if hint else ''}{hint}")


def whole_number(name: str, value: object, least: int = 0, most: int = LARGEST, *, unit: str = "") -> int:
    """``value`` as an int, if it is a whole number of ``least`` to ``most``; True and False are none.

    ``unit`` says what is counted ("units", "epochs"). Raises InputError.
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        number = int(value)
        if least <= number <= most:
            return number
    counted = f" of {unit}" if unit else ""
    limits = "" if least <= -LARGEST else f", {least} or more" if most >= LARGEST else f", {least} to {most}"
    raise InputError(f"{name} must be a whole number{counted}{limits}; got {shown(value)}.")


def real_number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """``value`` as a float, if it is a finite number from ``least`` to ``most``; True and False are none.

    ``above`` and ``below`` are limits that it must not reach. Raises InputError.
    """
    low, high = least if above is None else above, most if below is None else below
    if not isinstance(value, bool) and isinstance(value, Real):
        with suppress(OverflowError):  # of a whole number that no float can be
            real = float(value)
            if math.isfinite(real) and low <= real <= high and real != above and real != below:
                return real
    if high == math.inf:
        limits = "" if low == -math.inf else f", {low:g} or more" if above is None else f" above {low:g}"
    else:
        limits = f" in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
    finite = "" if limits.startswith(" in") else "finite "
    raise InputError(f"{name} must be a {finite}number{limits}; got {shown(value)}.")


def pair(name: str, value: object, least: int = 0) -> tuple[int, int]:
    """``value`` as two whole numbers, each ``least`` or more, if it is such a pair or one number for both.

    Raises InputError.
    """
    both = tuple(cast("Sequence[object]", value)) if isinstance(value, (tuple, list)) else (value, value)
    try:
        first, second = (whole_number(name, each, least) for each in both)
    except ValueError:  # of one that is none, or of another count than two
        raise InputError(
            f"{name} must be a whole number, {least} or more, or a pair of them; got {shown(cast(object, value))}."
        ) from None
    return first, second


def sizes(name: str, value: object, count: int, least: int = 0) -> tuple[int, ...]:
    """``value`` as ``count`` whole numbers, each ``least`` or more: such a tuple, or one number for all.

    Raises InputError.
    """
    if count == 2:
        return pair(name, value, least)
    sequence = isinstance(value, (tuple, list))
    given = tuple(cast("Sequence[object]", value)) if sequence else (value,) * count
    if len(given) != count:
        raise InputError(f"{name} must be a whole number, {least} or more, or {count} of them; got {shown(value)}.")
    return tuple(whole_number(name, each, least) for each in given)


def share(name: str, value: object) -> float:
    """``value`` as a float, if it is a number in [0, 1]. Raises InputError."""
    return real_number(name, value, 0.0, 1.0)


def random_seed(name: str, value: object) -> int:
    """``value`` as an int, if random numbers can begin with it: a whole number of 64 bits. Raises InputError."""
    return whole_number(name, value, -(2**63), 2**63 - 1)


def flag(name: str, value: object) -> bool:
    """``value`` as it is, if it is True or False: neither 1 nor "no". Raises InputError."""
    if isinstance(value, (bool, np.bool_)):
        return bool(cast(object, value))
    raise InputError(f"{name} must be True or False; got {shown(value)}.")


def one_of(name: str, value: Value, known: Sequence[Value]) -> Value:
    """``value`` as it is, if it is one of ``known``. Raises InputError, which names the nearest."""
    if not any(_same(value, each) for each in known):
        there_are = ", ".join(map(str, known))
        raise InputError(f"{name} must be one of {there_are}; got {shown(value)}{nearest(value, known)}.")
    return value


def known_names(given: object, known: Iterable[str], kind: str, of: str) -> None:
    """Raise InputError where a mapping, ``given``, has a key that is not among ``known``.

    The message says that ``of`` ("the network") has no such ``kind`` ("unit group"), and which it has. What is no
    mapping passes: it is a choice for all.
    """
    if not isinstance(given, Mapping):
        return
    names = list(known)
    unknown = [name for name in cast("Mapping[object, Any]", given) if name not in names]
    if unknown:
        named = " or ".join(f"{shown(name)}{nearest(name, names)}" for name in unknown)
        raise InputError(f"{of} has no {kind} {named}; it has: {', '.join(names)}.")


def instance(name: str, value: object, kind: type[Value] | tuple[type[Value], ...], expected: str) -> Value:
    """``value`` as it is, if it is of ``kind``. ``expected`` says so in words, and where it comes from.

    Raises InputError.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be {expected}; got {shown(value)}.")
    return value


def function(name: str, value: Value, expected: str) -> Value:
    """``value`` as it is, if it can be called. ``expected`` says with what. Raises InputError."""
    if not callable(value):
        raise InputError(f"{name} must be {expected}; got {shown(value)}.")
    return value


def a_list(name: str, value: Iterable[Value], expected: str) -> list[Value]:
    """``value`` as a list, if it can be iterated over and is neither text nor a tensor. Raises InputError."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, Tensor, np.ndarray)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"{name} must be {expected}; got {shown(cast(object, value))}.")
    return list(value)


def a_mapping(name: str, value: object) -> Mapping[str, Any]:
    """``value`` as it is, if it is a mapping from names. Raises InputError."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in cast("Mapping[object, Any]", value)):
        raise InputError(f"{name} must be values by name, a dict; got {shown(cast(object, value))}.")
    return cast("Mapping[str, Any]", value)


def path(name: str, value: object, what: str = "a file") -> str:
    """``value`` as text, if it is a path that could be that of ``what``. Raises InputError."""
    text = os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and text and "\0" not in text and len(text) <= LONGEST_PATH:
        with suppress(UnicodeEncodeError):  # half a character
            if max(len(os.fsencode(part)) for part in text.split(os.sep)) <= LONGEST_NAME:
                return text
    raise InputError(f"{name} must name {what}, as text or a Path; got {shown(cast(object, value))}.")


def placed(device: object, dtype: object) -> dict[str, Any]:
    """Keyword arguments by which torch makes floating-point tensors on ``device`` and of ``dtype``; None: its own.

    Raises InputError where that cannot be.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"dtype must be a floating-point torch.dtype, such as torch.float32; got {shown(dtype)}.")
    return {"device": None if device is None else a_device(device), "dtype": dtype}


def a_device(device: object) -> torch.device:
    """``device`` as torch has it. Raises InputError where it is none, or not here."""
    with explained(f"device must be one that torch has here; got {shown(device)}"):
        return torch.empty(0, device=torch.device(cast(Any, device))).device


def nearest(given: object, known: Iterable[object]) -> str:
    """The words " (did you mean ...?)", for the name in ``known`` that is written most like ``given``; else nothing."""
    if not isinstance(given, str):
        return ""
    alike = difflib.get_close_matches(given[:SHOWN], [str(name) for name in known], n=1)
    return f" (did you mean {alike[0]!r}?)" if alike else ""


def shown(value: object) -> str:
    """``value`` as messages show it, on one line and cut where it is long."""
    if isinstance(value, (Tensor, np.ndarray)):
        array = cast("Tensor | np.ndarray[Any, np.dtype[Any]]", value)
        return f"{'a tensor' if isinstance(array, Tensor) else 'an array'} {list(array.shape)} of {array.dtype}"
    try:
        text = repr(value)
    except Exception:  # of a user's class
        text = "\n"
    if "\n" in text:  # a module, a table
        return type(value).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({type(value).__name__})"


@contextmanager
def explained(what: str) -> Generator[None, None, None]:
    """Raise InputError, ``what`` and the reason, where torch or Python refuses something inside.

    The package's own errors pass as they are, and so does a lack of memory.
    """
    try:
        yield
    except REFUSALS as error:
        if type(error) not in REFUSALS:
            raise
        raise InputError(f"{what} ({type(error).__name__}: {first_line(error)}).") from error


def first_line(error: Exception) -> str:
    """What an error says, without the traces that torch adds, and cut where it is long."""
    line = str(error).strip().split("\n")[0]
    return line if len(line) <= 2 * SHOWN else f"{line[: 2 * SHOWN]}..."


def _same(value: object, known: object) -> bool:
    """Equal, and of one kind: 1 is not True, and an array is nothing."""
    return isinstance(value, type(known)) and isinstance(value, bool) == isinstance(known, bool) and value == known
