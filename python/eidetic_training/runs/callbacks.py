"""Callbacks for training: the progress bar, the run folder's metrics, TensorBoard."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from eidetic_kernels.errors import InputError

from ..training.events import NOTES, Event
from .folder import RunFolder


class Progress:
    """A progress bar of tasks with accuracy, units kept and time left; without a terminal, a line for each task.

    Notes of events ("frozen features are computed at every step, because ...") are printed once each. ``tasks``: how
    many there are. ``done``: how many of them are finished already. ``file``: where to print; standard error if None.
    """

    def __init__(self, tasks: int, done: int = 0, file: TextIO | None = None):
        self.file = file or sys.stderr
        self.said: set[str] = set()
        self.bar = tqdm(
            total=tasks,
            initial=done,
            file=self.file,
            disable=not self.file.isatty(),
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} tasks [{elapsed}, {remaining} left{postfix}]",
        )

    def __call__(self, event: Event) -> None:
        if event.note is not None and event.note not in self.said:
            self.said.add(event.note)
            self.say(event.note)

        units = f"{event.frozen_units + event.live_units:,}/{event.width:,} units"
        accuracy = "" if event.train_accuracy is None else f"train {event.train_accuracy:.2%}, "
        doing = "router" if event.phase == "router" else f"task {event.task} {event.phase}"
        self.bar.set_description_str(doing, refresh=False)
        self.bar.set_postfix_str(f"epoch {event.epoch}, {accuracy}{units}")

    def task_done(self, line: str) -> None:
        """Advance by one task and print ``line`` above the bar."""
        self.say(line)
        self.bar.update(1)

    def say(self, line: str) -> None:
        """Print ``line`` above the bar."""
        self.bar.clear()
        print(line, file=self.file, flush=True)
        self.bar.refresh()

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


class Recorder:
    """Writes every event to the run folder's metrics.csv, with the seconds since the whole run began."""

    def __init__(self, run: RunFolder, started: float | None = None):
        """``started``: the reading of time.perf_counter() when the run was begun or continued; None is now."""
        self.run = run
        self.began = (time.perf_counter() if started is None else started) - run.seconds

    def __call__(self, event: Event) -> None:
        if event.phase in NOTES:
            return
        seconds = round(time.perf_counter() - self.began, 3)
        row = {name: value for name, value in vars(event).items() if name != "note"}
        self.run.append_metric(**{**row, "seconds": seconds})


class TensorBoard:
    """Writes events as TensorBoard scalars to ``folder``. Raises InputError without the extra ``tensorboard``."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError('TensorBoard is not installed: pip install "eidetic-kernels[tensorboard]".') from error
        self.make_writer, self.folder = SummaryWriter, str(folder)
        self.writer: SummaryWriter | None = None
        self.count = 0

    def __call__(self, event: Event) -> None:
        # Made at the first event: a writer makes its folder at once, and a new run's folder must be empty.
        if self.writer is None:
            self.writer = self.make_writer(self.folder)
        self.count += 1
        scalars = {
            "train/loss": event.loss,
            "train/accuracy": event.train_accuracy,
            "units/live": event.live_units,
            "units/frozen": event.frozen_units,
        }
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, self.count)
        self.writer.flush()
