"""Run folders, and what is made from them: tables, reports, figures, exports."""

from .folder import RunFolder, open_run
from .rows import EPOCH_PHASES, PHASES, CapacityEntry, ClassScore, Metric, RouterScore, TaskScore
from .run_environment import environment

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
