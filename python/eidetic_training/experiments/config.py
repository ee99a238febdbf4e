"""Configurations of the command: TOML files, completed with defaults, checked, and overridden value by value."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any

from eidetic_kernels.checking import (
    LARGEST,
    a_mapping,
    first_line,
    flag,
    known_names,
    nearest,
    one_of,
    path,
    real_number,
    require,
    shown,
    whole_number,
)
from eidetic_kernels.errors import InputError

from ..training.optimizers import OPTIMIZERS
from ..training.router_settings import RouterSettings
from ..training.settings import TaskSettings
from ..training.settings_base import Settings
from .search_space import SweepSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  installed on Python 3.10 alone

LARGEST_SEED = 2**32  # methods and tasks draw seeds of their own from it
SEQUENCES = ("permuted", "split", "several")

# The configuration's own seed trains the router too, and its cache always has the default size.
ROUTER = {
    field.name: field.default for field in fields(RouterSettings) if field.name not in ("seed", "max_cached_bytes")
}

# Every table and value that a configuration may have, with its default. None stands for "not given".
DEFAULTS: dict[str, Any] = {
    "name": "run",
    "seed": 0,
    "device": "auto",  # "auto" is the GPU where there is one
    "data": {
        "sequence": "permuted",  # "permuted" pixels, "split" classes, or "several" data sets one after another
        "source": "digits",  # a data set; for "several" a list of them
        "tasks": 10,  # number of tasks; "several" has one for each source
        "folder": None,  # of Parquet files; None downloads from the hub
        "resolution": None,
        "batch_size": 128,
        "augment": True,  # as is usual for the data set; permuted pixels are never augmented
        "learn_first": None,  # learn only this many tasks, the first ones; None learns all
        # Test on this fraction of each class of the training set instead of the test set, to choose settings.
        "held_out": None,
    },
    "model": {"name": "mlp"},  # and any argument of that model
    "optimizer": {"name": "adamw", "lr": 1e-3},  # and any argument of that optimizer
    "task": {},  # see TaskSettings
    "capacity": {
        # Caps a task's new units: a fraction of each layer's width, a list with one for each task, or "even": the free
        # units over the tasks to come.
        "share": None,
        # Round unit counts to multiples of this where possible (net.align). "auto" is 16 on a GPU, which runs them
        # faster, and 1 otherwise.
        "multiple": "auto",
        "forward_transfer": True,
        # What each layer gains in width after every task: a number of units or a fraction of its width. None: nothing.
        "widen": None,
        "prune_last": True,  # False: the last task keeps all units that it begins with
    },
    "compare": {
        "epochs": 10,  # passes over a task's data, for every method
        "polish": 0,  # how many of these, at the end, let the learning rate fall to zero
        "seeds": 1,  # number of seeds, from `seed` on; each draws its own tasks and weights
        "tasks_known": True,  # tell methods that divide a network how many tasks will come
    },
    "sweep": {},  # see SweepSettings
    "methods": {},  # arguments of methods, a table for each: [methods.ewc] strength = 100.0
    "router": {"train": True, **ROUTER},  # see RouterSettings
}
CONFIGS = __name__.rpartition(".")[0]  # the package that the built-in configurations lie in
OPEN_TABLES = ("model", "optimizer", "task", "methods", "sweep")


def load(name: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The complete configuration of a TOML file, or of a built-in one by name, with ``key=value`` overrides.

    Overrides name a value by its dotted key ("task.tolerance=0.02"); values are read as TOML, or else as text.
    Raises InputError for a file that is not there or not TOML, and for keys and values that are not known.
    """
    given = _read(name)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"an override has the form key=value, e.g. task.tolerance=0.02; got {shown(override)}.")
        _set(given, key.strip(), _value(text.strip()))
    return complete(given)


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with every default filled in. Raises InputError for unknown keys and wrong values."""
    try:
        config = _merged(DEFAULTS, a_mapping("the configuration", given), "")
        _check_types(config, "")
        _check_plain(config, "")
        path("name", config["name"], "a run")
        whole_number("seed", config["seed"], -LARGEST_SEED, LARGEST_SEED)
        _check_settings(TaskSettings, "task", config["task"])
        _check_settings(RouterSettings, "router", {name: config["router"][name] for name in ROUTER})
        _check_settings(SweepSettings, "sweep", config["sweep"])

        _check_data(config["data"])
        _check_capacity(config["capacity"])
        one_of("optimizer.name", config["optimizer"]["name"], list(OPTIMIZERS))
        whole_number("compare.polish", config["compare"]["polish"], unit="epochs")
        for method, arguments in config["methods"].items():
            a_mapping(f"methods.{method}", arguments)
    except RecursionError:
        raise InputError("the configuration's tables are nested too deep: no key has more than three parts.") from None
    return config


def _check_settings(kind: type[Settings], table: str, values: Mapping[str, Any]) -> None:
    """Raise InputError for a key or a value of ``table`` that makes no settings of ``kind``."""
    _check_keys(values, [each.name for each in fields(kind)], f"{table}.")
    try:
        kind(**values)
    except InputError as error:
        raise InputError(f"{table}.{error}") from None


def _check_keys(given: Iterable[str], known: Iterable[str], prefix: str) -> None:
    """Raise InputError for a key of a table that is not among ``known``; ``prefix`` is the table's ("task.")."""
    names = [f"{prefix}{key}" for key in known]
    known_names({f"{prefix}{key}": None for key in given}, names, "key", "the configuration")


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration with the values of dotted keys replaced. Raises InputError as :func:`complete`."""
    config = copy.deepcopy(dict(config))
    for key, value in values.items():
        _set(config, key, value)
    return complete(config)


def to_toml(config: Mapping[str, Any]) -> str:
    """A configuration as the text of a TOML file, which reads back equal; None is left out."""
    return "\n".join(_lines(config, ())) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML writes it: a string, number or boolean, or a list of these."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    lines = [f"{_toml_key(key)} = {toml_value(value)}" for key, value in plain.items()]
    if path and (lines or not table):
        lines = ["", f"[{'.'.join(map(_toml_key, path))}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, (*path, key))
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def built_in() -> list[str]:
    """Names of the configurations that come with the package."""
    files = resources.files(CONFIGS).joinpath("configs").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _read(name: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, or of a built-in configuration."""
    name = path("name", name, "a configuration")
    file = Path(name)
    if file.suffix != ".toml" and name not in built_in():
        raise InputError(
            f"there is no configuration {shown(name)}{nearest(name, built_in())}; built in are "
            f"{', '.join(built_in())}, or give a .toml file."
        )
    try:
        if file.suffix == ".toml":
            text = file.read_text(encoding="utf-8")
        else:
            text = resources.files(CONFIGS).joinpath("configs").joinpath(f"{name}.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise InputError(f"the configuration {file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # not TOML, not text, a number of too many digits, nested too deep
        raise InputError(f"{file} is not TOML: {first_line(error)}.") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # not TOML, a number of too many digits, nested too deep
        return text


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        config = config.setdefault(table, {})
        if not isinstance(config, dict):
            raise InputError(f"{shown(key)}: {shown(table)} is a value, not a table.")
    config[last] = value


# The types of values whose default is None, or that may have another type than their default.
_FORMS = {
    "data.folder": (str, type(None)),
    "data.resolution": (int, type(None)),
    "data.source": (str, list),
    "data.learn_first": (int, type(None)),
    "data.held_out": (float, type(None)),
    "capacity.share": (float, str, list, type(None)),
    "capacity.multiple": (int, str),
    "capacity.forward_transfer": (bool, dict),
    "capacity.widen": (int, float, type(None)),
}
_AT_LEAST_ONE = (
    "data.tasks",
    "data.batch_size",
    "data.learn_first",
    "compare.epochs",
    "compare.seeds",
)


def _check_data(data: Mapping[str, Any]) -> None:
    """Raise InputError for a table ``data`` with a wrong value."""
    one_of("data.sequence", data["sequence"], SEQUENCES)
    held_out, source = data["held_out"], data["source"]
    if held_out is not None:
        real_number("data.held_out", held_out, above=0.0, below=1.0)
    if data["resolution"] is not None:
        whole_number("data.resolution", data["resolution"], 1, unit="pixels")
    names = source if isinstance(source, list) else [source]
    named = bool(names) and all(isinstance(name, str) for name in names)
    require(named, "data.source must be a data set's name, or a list of them", source)


def _check_capacity(capacity: Mapping[str, Any]) -> None:
    """Raise InputError for a table ``capacity`` with a wrong value."""
    share, multiple = capacity["share"], capacity["multiple"]
    shares = share if isinstance(share, list) else [share]
    right = share in (None, "even") or (shares and all(isinstance(each, float) and 0 < each <= 1 for each in shares))
    expected = 'capacity.share must be a fraction in (0, 1], such as 0.1, a list with one for each task, or "even"'
    require(bool(right), expected, share)
    right = multiple == "auto" or (isinstance(multiple, int) and 1 <= multiple <= LARGEST)
    require(right, 'capacity.multiple must be a number of units, 1 or more, or "auto"', multiple)
    if isinstance(capacity["forward_transfer"], dict):
        for layer, choice in capacity["forward_transfer"].items():
            flag(f"capacity.forward_transfer of {shown(layer)}", choice)

    widen = capacity["widen"]
    right = widen is None or (1 <= widen <= LARGEST if isinstance(widen, int) else 0 < widen <= 1)
    require(right, "capacity.widen must be a number of units, 1 or more, or a fraction in (0, 1], such as 0.1", widen)


def _check_types(config: Mapping[str, Any], prefix: str, defaults: Mapping[str, Any] = DEFAULTS) -> None:
    for key, default in defaults.items():
        name, value = f"{prefix}{key}", config[key]
        if prefix == "router." and key in ROUTER:
            continue  # RouterSettings checks them
        if isinstance(default, dict):
            _check_types(value, f"{name}.", default)
            continue
        types = _FORMS.get(name) or ((int, float) if type(default) is float else (type(default),))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join("nothing" if t is type(None) else t.__name__ for t in types)
            raise InputError(f"{name} must be {expected}; got {shown(value)}.")
        if name in _AT_LEAST_ONE and value is not None:
            whole_number(name, value, least=1)


def _check_plain(value: object, name: str) -> None:
    """Raise InputError for what a run's config.json could not keep: dates, NaN and infinity."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_plain(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_plain(each, name)
    else:
        plain = value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and isfinite(value))
        require(plain, f"{shown(name)} must be text, finite numbers, true or false, or lists of these", value)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if isinstance(default, dict):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{key} is a table of the configuration; got {shown(value)}.")
            value = {**default, **value} if key in OPEN_TABLES else _merged(default, value, f"{prefix}{key}.")
        merged[key] = value
    _check_keys(given, defaults, prefix)
    return merged
