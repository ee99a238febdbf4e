"""What a hyperparameter search tries: its settings, and the values that keys of the configuration may take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eidetic_kernels.checking import a_mapping, flag, real_number, shown, whole_number
from eidetic_kernels.errors import InputError

from ..training.settings_base import Settings

# A search may change how a sequence is learned, but not which sequence is learned.
TABLES = ("model", "optimizer", "task", "capacity")
KEYS = ("data.batch_size", "data.augment")
MOST = 2**62  # of a number in a range; Optuna's whole numbers have 64 bits
_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Choice:
    """One of several values. Optuna knows a value that is a list by its text, since it keeps plain values only."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, key: str) -> Any:
        """What an Optuna trial chooses for ``key``."""
        return trial.suggest_categorical(key, self.known_as)

    def value(self, chosen: Any) -> Any:
        """The value that Optuna knows as ``chosen``."""
        lists = {_text(each): each for each in self.values if isinstance(each, list)}
        return lists.get(chosen, chosen) if isinstance(chosen, str) else chosen

    @property
    def known_as(self) -> tuple[Any, ...]:
        """The values as Optuna knows them."""
        return tuple(_text(each) if isinstance(each, list) else each for each in self.values)

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values to check: if these are valid, all are."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included. It is a whole number if both of them are.

    ``log``: evenly distributed in its logarithm. ``step``: a multiple of it above ``low``.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def suggest(self, trial: Any, key: str) -> int | float:
        """What an Optuna trial chooses for ``key``."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        step = {} if self.step is None else {"step": self.step}
        return (trial.suggest_int if whole else trial.suggest_float)(key, self.low, self.high, log=self.log, **step)

    def value(self, chosen: int | float) -> int | float:
        """The number itself."""
        return chosen

    @property
    def examples(self) -> tuple[Any, ...]:
        """Values to check: if these are valid, all are."""
        return (self.low, self.high)


@dataclass(frozen=True)
class SweepSettings(Settings):
    """A configuration's table ``sweep``: the settings of a hyperparameter search (paper, section 4).

    Args:
        trials: number of settings to try; a grid tries all of its own.
        grid: try every combination of the values in ``space``, which are lists then, once (as the paper did).
        tasks: number of tasks that each trial learns, the first ones of the sequence.
        held_out: the fraction of every task's training set that is held out to measure accuracy on, in (0, 1).
        prune: give up a trial after a task if its accuracy so far is below the median of the other trials' there.
        space: a list of values or a range ``{low, high, log, step}`` for each dotted key of the configuration. A value
            may be a list itself: ``[["l1", "taylor"], "l2"]``.

    Raises InputError for a value of a wrong type or out of its range, and for a key that a search may not change.
    """

    trials: int = 20
    grid: bool = False
    tasks: int = 3
    held_out: float = 0.1
    prune: bool = False
    space: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.check(whole_number, "trials", "tasks", least=1)
        self.check(real_number, "held_out", above=0.0, below=1.0)
        self.check(flag, "grid", "prune")
        self.check(a_mapping, "space")
        ranges = [key for key, values in self.values().items() if isinstance(values, Range)]
        if self.grid and ranges:
            raise InputError(f"space.{ranges[0]} must be a list of values where grid is true; got a range.")

    @property
    def count(self) -> int:
        """How many settings are tried."""
        return len(self.combinations()) if self.grid else self.trials

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of a grid's values by dotted key, as Optuna knows them; the last key's change first."""
        space = {key: choice.known_as for key, choice in self.values().items() if isinstance(choice, Choice)}
        return [dict(zip(space, values)) for values in itertools.product(*space.values())]

    def chosen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration's values by dotted key, for the ``params`` of an Optuna trial."""
        space = self.values()
        return {key: space[key].value(param) for key, param in params.items()}

    def values(self) -> dict[str, Choice | Range]:
        """The space by dotted key. In TOML a key may be quoted ("optimizer.lr") or a nested table (optimizer.lr)."""
        return _flat(self.space, "")


def _flat(space: Mapping[str, Any], prefix: str) -> dict[str, Choice | Range]:
    found: dict[str, Choice | Range] = {}
    for name, given in space.items():
        key = f"{prefix}{name}"
        if isinstance(given, Mapping) and "low" not in given and "high" not in given:
            found |= _flat(given, f"{key}.")
            continue
        if key not in KEYS and (key.split(".")[0] not in TABLES or key in TABLES):
            raise InputError(
                f"space cannot vary {shown(key)}: it may vary what is in {', '.join(TABLES)}, and {', '.join(KEYS)}."
            )
        found[key] = _values(key, given)
    return found


def _values(key: str, given: Any) -> Choice | Range:
    if isinstance(given, list) and len(given) > 1 and all(map(_is_value, given)):
        return Choice(tuple(given))
    if isinstance(given, Mapping) and set(given) <= set(_RANGE) and {"low", "high"} <= set(given):
        wanted = Range(**given)
        numbers = [n for n in (wanted.low, wanted.high, wanted.step) if n is not None]
        right = all(isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) <= MOST for n in numbers)
        if right and wanted.low < wanted.high and isinstance(wanted.log, bool):
            if wanted.step is None or (wanted.step > 0 and not wanted.log):
                if wanted.low > 0 or not wanted.log:
                    return wanted
    raise InputError(
        f"space.{key} must be a list of two values or more, or a range {{low, high}} with low < high, which "
        f"may have log = true (if low > 0) or a step, but not both; got {shown(given)}."
    )


def _is_value(given: Any) -> bool:
    """Whether a key may have this value: text, a number, true or false, or a list of one or more such."""
    members = given if isinstance(given, list) else [given]
    return bool(members) and all(isinstance(each, (str, int, float, bool)) for each in members)


def _text(value: list[Any]) -> str:
    return json.dumps(value, ensure_ascii=False)
