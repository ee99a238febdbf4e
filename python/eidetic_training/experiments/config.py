"""Configurations of the command: TOML files, completed with defaults, checked, and overridden value by value."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from eidetic_kernels.checking import nearest, one_of, whole_number
from eidetic_kernels.errors import InputError

from ..training.optimizers import OPTIMIZERS
from ..training.router_settings import RouterSettings
from ..training.settings import TaskSettings
from .search_space import SweepSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  installed on Python 3.10 alone

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
        # Caps a task's new units: a fraction of each layer's width, or "even": the free units over the tasks to come.
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
            raise InputError(f"an override has the form key=value, e.g. task.tolerance=0.02; got {override!r}.")
        _set(given, key.strip(), _value(text.strip()))
    return complete(given)


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with every default filled in. Raises InputError for unknown keys and wrong values."""
    config = _merged(DEFAULTS, given, "")
    _check_types(config, "")
    TaskSettings.of_dict(config["task"])
    SweepSettings.of_dict(config["sweep"])
    _check_data(config["data"])
    _check_capacity(config["capacity"])
    one_of("optimizer.name", config["optimizer"]["name"], list(OPTIMIZERS))
    try:
        RouterSettings.of_dict({name: config["router"][name] for name in ROUTER})
    except InputError as error:
        raise InputError(f"router.{error}") from None
    return config


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
    path = Path(name)
    try:
        if path.suffix == ".toml":
            text = path.read_text(encoding="utf-8")
        elif str(name) in built_in():
            text = resources.files(CONFIGS).joinpath("configs").joinpath(f"{name}.toml").read_text(encoding="utf-8")
        else:
            raise InputError(
                f"there is no configuration {str(name)!r}{nearest(name, built_in())}; built in are "
                f"{', '.join(built_in())}, or give a .toml file."
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


# The types of values whose default is None, or that may have another type than their default.
_FORMS = {
    "data.folder": (str, type(None)),
    "data.resolution": (int, type(None)),
    "data.source": (str, list),
    "data.learn_first": (int, type(None)),
    "data.held_out": (float, type(None)),
    "capacity.share": (float, str, type(None)),
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
    if held_out is not None and not 0 < held_out < 1:
        raise InputError(f"data.held_out must be a fraction between 0 and 1, such as 0.1; got {held_out!r}.")
    names = source if isinstance(source, list) else [source]
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"data.source must be a data set's name, or a list of them; got {source!r}.")


def _check_capacity(capacity: Mapping[str, Any]) -> None:
    """Raise InputError for a table ``capacity`` with a wrong value."""
    share, multiple = capacity["share"], capacity["multiple"]
    if share is not None and share != "even" and not (isinstance(share, float) and 0 < share <= 1):
        raise InputError(f'capacity.share must be a fraction in (0, 1], such as 0.1, or "even"; got {share!r}.')
    if multiple != "auto" and (not isinstance(multiple, int) or multiple < 1):
        raise InputError(f'capacity.multiple must be a number of units, 1 or more, or "auto"; got {multiple!r}.')
    widen = capacity["widen"]
    if widen is not None and (widen < 1 if isinstance(widen, int) else not 0 < widen <= 1):
        raise InputError(
            f"capacity.widen must be a number of units, 1 or more, or a fraction in (0, 1], such as 0.1; got {widen!r}."
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
        if name in _AT_LEAST_ONE and value is not None:
            whole_number(name, value, least=1)


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
            names = [f"{prefix}{name}" for name in defaults]
            alike = nearest(f"{prefix}{key}", names)
            raise InputError(f"unknown key {prefix}{key}{alike}; there are: {', '.join(names)}.")
    return merged
