"""What is written down when a task is finished, so that it can be shown later that nothing was forgotten (P6)."""

from __future__ import annotations

from dataclasses import dataclass

Environment = dict[str, str | int]


@dataclass(frozen=True)
class TaskRecord:
    """What is written down when a task is finished.

    units: by unit group, how many units the task kept. fingerprints: by layer, SHA-256 of its frozen tensors.
    logits: SHA-256 of the logits of the network's probe inputs, None if the network never saw an input.
    environment: where the logits were computed; bits can be compared on an equal one only.
    """

    task: int
    units: dict[str, int]
    fingerprints: dict[str, str]
    logits: str | None
    environment: Environment
