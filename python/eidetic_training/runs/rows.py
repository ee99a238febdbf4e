"""The rows of a run folder's tables, and what router.json holds."""

from __future__ import annotations

from typing import NamedTuple

# Phases whose rows are epochs of training a task. The others are events ("prune", "restore", "finish"), or epochs that
# belong to no task ("router").
EPOCH_PHASES = ("train", "settle", "recover", "polish")
PHASES = (*EPOCH_PHASES, "prune", "restore", "finish", "router")


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


class CapacityEntry(NamedTuple):
    """One row of capacity.csv: task ``task`` kept ``units`` of the ``width`` units of a layer (a unit group)."""

    task: int
    layer: str
    width: int
    units: int


class RouterScore(NamedTuple):
    """What router.json holds; all numbers lie in [0, 1].

    accuracy: how often the router named the right task. oracle: test accuracy of every task if the task is given.
    routed: the same if the router names the task.
    """

    accuracy: float
    oracle: list[float]
    routed: list[float]
