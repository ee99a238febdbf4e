"""The driver of eidetic networks: models, data, training, run folders, plots and the command."""

from .training.epoch import evaluate, train_epoch
from .training.events import Event
from .training.router import train_router
from .training.router_settings import RouterSettings
from .training.settings import TaskSettings
from .training.trainer import TaskResult, train_task

__all__ = [
    "Event",
    "RouterSettings",
    "TaskResult",
    "TaskSettings",
    "evaluate",
    "train_epoch",
    "train_router",
    "train_task",
]
