"""Run folders, and what is made from them: tables, reports, figures, exports."""

from .folder import (
    EPOCH_PHASES,
    PHASES,
    CapacityEntry,
    ClassScore,
    Metric,
    RouterScore,
    RunFolder,
    TaskScore,
    environment,
    open_run,
)

__all__ = [
    "EPOCH_PHASES",
    "PHASES",
    "CapacityEntry",
    "ClassScore",
    "Metric",
    "RouterScore",
    "RunFolder",
    "TaskScore",
    "environment",
    "open_run",
]
