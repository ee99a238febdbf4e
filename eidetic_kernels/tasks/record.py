"""The record of a finished task, against which a certificate checks later that nothing was forgotten (P6)."""

from __future__ import annotations

from dataclasses import dataclass

Environment = dict[str, str | int]


@dataclass(frozen=True)
class TaskRecord:
    """What is written down when a task is finished.

    Args:
        task: the task's index.
        units: how many units the task kept, by unit group.
        fingerprints: SHA-256 of each layer's frozen tensors that belong to the task, by layer.
        logits: SHA-256 of the logits for the network's probe inputs; None if the network never saw an input.
        environment: where the logits were computed. Their bits can be compared in an equal environment only.
    """

    task: int
    units: dict[str, int]
    fingerprints: dict[str, str]
    logits: str | None
    environment: Environment
