"""The driver of eidetic networks: models, data, training, run folders, plots and the command."""

from .epoch import evaluate, train_epoch
from .events import Event
from .router import train_router
from .settings import TaskSettings
from .trainer import TaskResult, train_task

__all__ = ["Event", "TaskResult", "TaskSettings", "evaluate", "train_epoch", "train_router", "train_task"]
