"""What training tells whoever listens: an event an epoch, and one for each thing that happens to the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eidetic_kernels import EideticNetwork

# Events that are neither an epoch nor a change of units, and how their note begins.
NOTES = {
    "features": "Frozen features are computed at every step",
    "graphs": "Steps are launched kernel by kernel, not as a CUDA graph",
}


@dataclass(frozen=True)
class Event:
    """One line of a task's history.

    phase: "train", "settle", "recover" and "polish" are epochs; "prune", "restore" and "finish" are changes; "router"
    an epoch of the task classifier; "features" and "graphs" say in their note what is done without them, and why. epoch
    counts a task's epochs from 1, step its pruning steps from 1 (0 before the first). loss is the epoch's mean,
    train_accuracy in [0, 1]; None in events that are no epochs. Units are totals over unit groups. seconds counts from
    the start of the task's training.
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


def units_of(network: EideticNetwork) -> dict[str, int]:
    """Totals over unit groups, as an event states them."""
    segments = [group.segments for group in network.groups]
    return {
        "live_units": sum(s.live for s in segments),
        "frozen_units": sum(s.frozen_total for s in segments),
        "width": sum(s.width for s in segments),
    }
