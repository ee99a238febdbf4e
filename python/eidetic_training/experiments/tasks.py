"""The tasks that a configuration describes."""

from __future__ import annotations

from typing import Any

from eidetic_kernels.errors import InputError

from ..data import Task, hold_out, permuted, several, split_classes
from ..runs.folder import RunFolder
from . import config as configuration


def make_tasks(data: dict[str, Any], seed: int) -> list[Task]:
    """The tasks to learn, as a configuration's table ``data`` describes them; ``seed`` permutes pixels and holds out.

    Raises InputError for an unknown data set, and for values that do not fit it.
    """
    tasks = _sequence(data, seed)[: data.get("learn_first")]
    share = data.get("held_out")
    return tasks if share is None else [hold_out(task, share, seed) for task in tasks]


def tasks_of(run: RunFolder) -> list[Task]:
    """The tasks of a run. Raises InputError for a damaged config.json, and for data that is not there any more."""
    try:
        config = configuration.complete(run.config)
    except InputError as error:
        raise InputError(f"{run.path / 'config.json'} is damaged: {error}") from error
    return make_tasks(config["data"], config["seed"])


def planned(data: dict[str, Any]) -> int:
    """The number of tasks in the sequence, whether or not all are learned."""
    return len(data["source"]) if data["sequence"] == "several" else data["tasks"]


def _sequence(data: dict[str, Any], seed: int) -> list[Task]:
    common = {"folder": data["folder"]}
    augment = {} if data["augment"] else {"augment": None}
    if data["sequence"] == "several":
        sources = data["source"]
        if not isinstance(sources, list):
            raise InputError(f'data.source must be a list of data sets for "several"; got {sources!r}.')
        return several(sources, shape=_common_shape(data), **augment, **common)
    common["resolution"] = data["resolution"]
    if data["sequence"] == "permuted":
        return permuted(data["source"], data["tasks"], seed, **common)
    return split_classes(data["source"], data["tasks"], **augment, **common)


def _common_shape(data: dict[str, Any]) -> tuple[int, int, int] | None:
    side = data["resolution"]
    return None if side is None else (3, side, side)
