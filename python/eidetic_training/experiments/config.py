"""Configurations of the command: TOML files, checked against what there is, with single values overridden."""

from __future__ import annotations

import copy
import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from eidetic_kernels.errors import InputError

from ..training.optimizers import OPTIMIZERS
from ..training.router_settings import RouterSettings
from ..training.settings import TaskSettings
from .search_space import SweepSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The router is trained by the configuration's own seed, and with the memory that is the default.
ROUTER = {
    field.name: field.default for field in fields(RouterSettings) if field.name not in ("seed", "max_cached_bytes")
}

# Every table and value a configuration may have, with its default; None stands for "not given".
DEFAULTS: dict[str, Any] = {
    "name": "run",
    "seed": 0,
    "device": "auto",  # "auto" is the GPU where there is one
    "data": {
        "sequence": "permuted",  # "permuted" pixels, "split" classes, or "several" data sets one after another
        "source": "digits",  # a data set; for "several" a list of them
        "tasks": 10,  # how many; "several" has one a source
        "folder": None,  # of Parquet files; None is the hub
        "resolution": None,
        "batch_size": 128,
        "augment": True,  # as is usual for the data set; permuted pixels never are
        "learn_first": None,  # so many of the tasks, from the first on; all when not given
        # This share of each class of the training set takes the test set's place, to choose settings on.
        "held_out": None,
    },
    "model": {"name": "mlp"},  # and any argument of that model
    "optimizer": {"name": "adamw", "lr": 1e-3},  # and any argument of that optimizer
    "task": {},  # see TaskSettings
    "capacity": {
        # Caps a task's new units: a share of each layer's width, or "even": what is free over the tasks to come.
        "share": None,
        # Keep what tasks take at multiples of so many units (net.align); "auto" is 16 on a GPU, whose products want it.
        "multiple": "auto",
        "forward_transfer": True,
        "prune_last": True,  # False: the last task takes all that is free
    },
    "compare": {
        "epochs": 10,  # passes over a task's data, for every method
        "polish": 0,  # of these, so many at the end let the learning rate fall to zero
        "seeds": 1,  # how many, from `seed` on; each draws its own tasks and weights
        "tasks_known": True,  # methods that share a network out may know how many tasks will come
    },
    "sweep": {},  # see SweepSettings
    "methods": {},  # arguments of single methods, a table each: [methods.ewc] strength = 100.0
    "router": {"train": True, **ROUTER},  # see RouterSettings
}
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
            raise InputError(f"an override has the form key=value, e.g. task.tolerance=0.02; got {override!r}.")
        _set(given, key.strip(), _value(text.strip()))
    return complete(given)


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with every default filled in; raises InputError for what is unknown."""
    config = _merged(DEFAULTS, given, "")
    _check_types(config, "")
    TaskSettings.of_dict(config["task"])
    SweepSettings.of_dict(config["sweep"])
    data, capacity, optimizer = config["data"], config["capacity"], config["optimizer"]
    if data["sequence"] not in ("permuted", "split", "several"):
        raise InputError(f'data.sequence must be "permuted", "split" or "several"; got {data["sequence"]!r}.')
    held_out = data["held_out"]
    if held_out is not None and not 0 < held_out < 1:
        raise InputError(f"data.held_out must be a share between 0 and 1, such as 0.1; got {held_out!r}.")
    share = capacity["share"]
    if share is not None and share != "even" and not (isinstance(share, float) and 0 < share <= 1):
        raise InputError(f'capacity.share must be a share in (0, 1], such as 0.1, or "even"; got {share!r}.')
    multiple = capacity["multiple"]
    if multiple != "auto" and (not isinstance(multiple, int) or multiple < 1):
        raise InputError(f'capacity.multiple must be a number of units, 1 or more, or "auto"; got {multiple!r}.')
    source = data["source"]
    names = source if isinstance(source, list) else [source]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"data.source must be a data set's name, or a list of them; got {source!r}.")
    try:
        RouterSettings.of_dict({name: config["router"][name] for name in ROUTER})
    except InputError as error:
        raise InputError(f"router.{error}") from None
    if optimizer["name"] not in OPTIMIZERS:
        raise InputError(f"optimizer.name must be one of {', '.join(OPTIMIZERS)}; got {optimizer['name']!r}.")
    return config


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration with the values of dotted keys replaced, checked again."""
    config = copy.deepcopy(dict(config))
    for key, value in values.items():
        _set(config, key, value)
    return complete(config)


def to_toml(config: Mapping[str, Any]) -> str:
    """A configuration as a TOML file's text, which reads back equal; what is not given is left out."""
    return "\n".join(_lines(config, ())) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML writes it: text, numbers, truth values, and lists of these."""
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
    files = resources.files(__package__).joinpath("configs").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _read(name: str | Path) -> dict[str, Any]:
    path = Path(name)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        elif str(name) in built_in():
            text = resources.files(__package__).joinpath("configs", f"{name}.toml").read_text(encoding="utf-8")
        else:
            raise InputError(
                f"there is no configuration {str(name)!r}; built in are {', '.join(built_in())}, or give a .toml file."
            )
        return tomllib.loads(text)
    except OSError as error:
        raise InputError(f"the configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}.") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        config = config.setdefault(table, {})
        if not isinstance(config, dict):
            raise InputError(f"{key!r}: {table!r} is a value, not a table.")
    config[last] = value


# What a value whose default is None, or that may take other forms than its default, may be.
_FORMS = {
    "data.folder": (str, type(None)),
    "data.resolution": (int, type(None)),
    "data.source": (str, list),
    "data.learn_first": (int, type(None)),
    "data.held_out": (float, type(None)),
    "capacity.share": (float, str, type(None)),
    "capacity.multiple": (int, str),
    "capacity.forward_transfer": (bool, dict),
}
_AT_LEAST_ONE = (
    "data.tasks",
    "data.batch_size",
    "data.learn_first",
    "compare.epochs",
    "compare.seeds",
)


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
            raise InputError(f"{name} must be {expected}; got {value!r}.")
        if name in _AT_LEAST_ONE and value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more; got {value!r}.")


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    merged = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if isinstance(default, dict):
            if not isinstance(value, Mapping):
                raise InputError(f"{prefix}{key} is a table of the configuration; got {value!r}.")
            value = {**default, **value} if key in OPEN_TABLES else _merged(default, value, f"{prefix}{key}.")
        merged[key] = value
    for key in given:
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, 1)
            hint = f" Did you mean {prefix}{close[0]}?" if close else ""
            raise InputError(f"unknown key {prefix}{key}; there are: {', '.join(prefix + k for k in defaults)}.{hint}")
    return merged
