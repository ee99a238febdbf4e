"""The record of a finished task, against which a certificate checks later that nothing was forgotten (P6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from ..memory import bytes_of

Environment = dict[str, str | int]


@dataclass(frozen=True)
class TaskRecord:
    """What is written down when a task is finished.

    Args:
        task: the task's index.
        units: how many units the task kept, by unit group.
        fingerprints: SHA-256 of each layer's frozen tensors that belong to the task, by layer.
        logits: SHA-256 of the logits for the task's probe inputs; None if the network never saw an input.
        environment: where the logits were computed. Their bits can be compared in an equal environment only.
        shared: SHA-256 of tensors that belong to no task (a frozen backbone, an input's mean), by module. None in
            records of versions before 0.2, which did not look at them.
        values: the logits as numbers, for another environment: float64 in base64. None in records of those versions.
        probe: SHA-256 of the probe inputs. None without any, and in records of those versions.
    """

    task: int
    units: dict[str, int]
    fingerprints: dict[str, str]
    logits: str | None
    environment: Environment
    shared: dict[str, str] | None = None
    values: str | None = None
    probe: str | None = None


def digest(*tensors: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of the tensors."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(bytes_of(tensor))
    return sha.hexdigest()
