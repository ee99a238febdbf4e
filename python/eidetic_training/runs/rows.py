"""The rows of a run folder's tables, and what router.json holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from eidetic_kernels.checking import LARGEST

# Phases whose rows are epochs of training a task. The others are events ("prune", "restore", "finish"), or epochs that
# belong to no task ("router").
EPOCH_PHASES = ("train", "settle", "recover", "polish")
PHASES = (*EPOCH_PHASES, "prune", "restore", "finish", "router")

MOST_TASKS = 100_000  # a damaged number of a task must not make tables of that size
LONGEST = 1e10  # seconds: 300 years


class Metric(NamedTuple):
    """One row of metrics.csv. ``seconds`` counts from the run's start; units are totals over all unit groups."""

    seconds: float
    task: int
    phase: str
    epoch: int
    step: int
    loss: float
    train_accuracy: float
    live_units: int
    frozen_units: int
    width: int


class TaskScore(NamedTuple):
    """One row of tests.csv: ``accuracy``, in [0, 1], of task ``task`` after task ``learned`` was learned."""

    learned: int
    task: int
    accuracy: float


class ClassScore(NamedTuple):
    """One row of classes.csv: test accuracy of a class, in [0, 1].

    Args:
        label: the class, counted from 0 in each task.
        samples: how many test samples it has.
        given: accuracy with the task given; it never changes.
        routed: accuracy with the task named by the router; NaN before it is trained.
    """

    task: int
    label: int
    samples: int
    given: float
    routed: float


class CapacityEntry(NamedTuple):
    """One row of capacity.csv: task ``task`` kept ``units`` of the ``width`` units of a layer (a unit group)."""

    task: int
    layer: str
    width: int
    units: int


class RouterScore(NamedTuple):
    """What router.json holds; all numbers lie in [0, 1].

    Args:
        accuracy: how often the router named the right task.
        oracle: test accuracy of every task if the task is given.
        routed: the same if the router names the task.
    """

    accuracy: float
    oracle: list[float]
    routed: list[float]

    @classmethod
    def from_json(cls, found: Any) -> RouterScore:
        """What ``_asdict()`` gave. Raises ValueError for anything else."""
        if not isinstance(found, dict) or set(found) != set(cls._fields):
            raise ValueError(f"expected a table of {', '.join(cls._fields)}; got {str(found)[:100]}")
        lists = [found["oracle"], found["routed"]]
        if not all(isinstance(each, list) for each in lists) or len(lists[0]) != len(lists[1]) or not lists[0]:
            raise ValueError("oracle and routed must be lists of one number for each task")
        for each in (found["accuracy"], *lists[0], *lists[1]):
            if isinstance(each, bool) or not isinstance(each, (int, float)) or not 0 <= each <= 1:
                raise ValueError(f"expected numbers in [0, 1]; got {str(each)[:100]}")
        return cls(found["accuracy"], *lists)


def problem_of(row: Metric | TaskScore | ClassScore | CapacityEntry, rows: int) -> str | None:
    """What is wrong with a row that was read from a file of ``rows`` rows; None where nothing is."""
    for name, value in row._asdict().items():
        if isinstance(value, int) and not 0 <= value <= LARGEST:
            return f"{name} {value} is none"
    # Every task has rows of its own in tests.csv and capacity.csv: no figure or table gets larger than those files are.
    most = rows if isinstance(row, (TaskScore, CapacityEntry)) else MOST_TASKS
    if row.task > most:
        return f"task {row.task} is none"
    if isinstance(row, Metric):
        return _problem_of_metric(row)

    accuracies = [getattr(row, name) for name in ("accuracy", "given", "routed") if hasattr(row, name)]
    for accuracy in accuracies:
        unknown = isinstance(row, ClassScore) and math.isnan(accuracy)
        if not 0 <= accuracy <= 1 and not unknown:
            return f"an accuracy lies in [0, 1]; got {accuracy}"
    if isinstance(row, TaskScore) and not row.task <= row.learned <= rows:
        return f"task {row.task} cannot be tested after task {row.learned}"
    if isinstance(row, CapacityEntry) and not row.units <= row.width >= 1:
        return f"{row.units} of {row.width} units cannot be kept"
    return None


def _problem_of_metric(row: Metric) -> str | None:
    if row.phase not in PHASES:
        return f"there is no phase {row.phase!r}"
    if not 0 <= row.seconds <= LONGEST:
        return f"seconds must be 0 or more, and finite; got {row.seconds}"
    if not math.isnan(row.train_accuracy) and not 0 <= row.train_accuracy <= 1:
        return f"an accuracy lies in [0, 1]; got {row.train_accuracy}"
    if row.live_units + row.frozen_units > row.width:
        return f"{row.live_units} live and {row.frozen_units} frozen units are more than {row.width}"
    return None
