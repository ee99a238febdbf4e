"""What training reports to callbacks: an event for each epoch, and for each thing that happens to the units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import a_list, function

# Events that are neither an epoch nor a change of units, and how their note begins.
NOTES = {
    "features": "Frozen features are computed at every step",
    "graphs": "Steps are launched kernel by kernel, not as a CUDA graph",
    "progress": "Training that is cut off begins anew",
}


@dataclass(frozen=True)
class Event:
    """One line of a task's history.

    Args:
        seconds: since the start of the task's training.
        task: the task in training; for the router, how many tasks it learns to tell apart.
        phase: "train", "settle", "recover", "polish" and "router" (the task classifier) are epochs; "prune", "restore"
            and "finish" are changes of units; "features", "graphs" and "progress" are notes that something is done
            without frozen features, CUDA graphs or a file of progress.
        epoch: the task's epochs so far, from 1.
        step: the task's pruning steps so far; 0 before the first.
        loss, train_accuracy: mean loss, and accuracy in [0, 1], of an epoch; None in other events.
        live_units, frozen_units, width: totals over unit groups.
        note: why something is done without; None in other events.
    """

    seconds: float
    task: int
    phase: str
    epoch: int
    step: int
    loss: float | None
    train_accuracy: float | None
    live_units: int
    frozen_units: int
    width: int
    note: str | None = None


Callback = Callable[[Event], None]


def checked_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """``callbacks`` as a list. Raises InputError unless each can be called."""
    given = a_list("callbacks", callbacks, "a list of functions of an Event")
    return [function("a callback", each, "a function of an Event") for each in given]


class Units(NamedTuple):
    """Totals over unit groups, in the order in which an event states them."""

    live: int
    frozen: int
    width: int


def units_of(network: EideticNetwork) -> Units:
    """How many units the network has, live and frozen, and how many it may have."""
    segments = [group.segments for group in network.groups]
    return Units(
        sum(each.live for each in segments),
        sum(each.frozen_total for each in segments),
        sum(each.width for each in segments),
    )
