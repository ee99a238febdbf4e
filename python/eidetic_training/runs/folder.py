"""The run folder: the files that a run leaves behind. No other module knows their names and formats.

inputs.json            what the network expects at its input (``inputs.Inputs``)
config.json            {"config": the complete configuration, "environment": versions, threads and commit}
metrics.csv            a row for each epoch and each event (``Metric``)
tests.csv              test accuracy of every finished task after each task learned (``TaskScore``)
classes.csv            test accuracy of every class, with the task given and routed (``ClassScore``)
capacity.csv           units that a task kept in each layer (``CapacityEntry``)
digests.json           what is on record of each task's test logits since it was learned (``answers.Recorded``)
answers/               task_00.safetensors, ...: a sample of each task's test logits when it was learned
network.safetensors    the latest network
checkpoints/           task_00.safetensors, ...: the network after each task
progress.safetensors   how far the task or router in training got; gone when it is finished
router.json            {"accuracy", "oracle", "routed"}, once the router is trained
figures/               what ``plots.all_figures`` draws
.lock, .holder         the lock of the one process that writes here, and while it does, which one that is
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eidetic_kernels import checking
from eidetic_kernels.errors import InputError
from eidetic_kernels.files import write_tensors
from eidetic_kernels.tasks.capacity import Capacity
from eidetic_kernels.tasks.record import digest

from ..training.accuracy import ClassCount
from .answers import Recorded
from .configurations import as_json, differences
from .inputs import Inputs
from .leftovers import check_unused, remove_temporaries
from .locks import only_writer
from .rows import PHASES, CapacityEntry, ClassScore, Metric, RouterScore, TaskScore, problem_of
from .run_environment import environment
from .tables import Table, read_json, write_json


class RunFolder:
    """An existing run folder; :meth:`create` makes a new one. Raises InputError if ``path`` is no run folder."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(checking.path("path", path, "a run folder"))
        if not self._config_path.is_file():
            raise InputError(f"{self.path} is not a run folder: no config.json there. Start a run first.")
        self._metrics = Table(self.path / "metrics.csv", Metric, problem_of)
        self._tests = Table(self.path / "tests.csv", TaskScore, problem_of, named_by=2)
        self._classes = Table(self.path / "classes.csv", ClassScore, problem_of, named_by=2)
        self._capacity = Table(self.path / "capacity.csv", CapacityEntry, problem_of, named_by=2)

    @classmethod
    def create(cls, path: str | PathLike[str], config: Mapping[str, Any]) -> RunFolder:
        """Begin a run, or continue the one in ``path`` if its configuration is the same.

        ``config`` is made of what JSON knows. A run of an earlier version can be continued: a key that it did not know
        counts as equal if its value is empty or off (None, False or {}).

        Raises InputError if the folder holds a run of another configuration (the message names every key that differs)
        or anything that is not a run.
        """
        path = Path(path)
        config = as_json(config)

        if (path / "config.json").is_file():
            run = cls(path)
            different = differences(run.config, config)
            if different:
                raise InputError(
                    f"{path} holds a run with another configuration ({'; '.join(different)}). "
                    "Choose another folder, or give the same configuration to continue."
                )
            return run

        check_unused(path, "a run folder")
        write_json(path / "config.json", {"config": config, "environment": environment()})
        return cls(path)

    @classmethod
    @contextmanager
    def writing(cls, path: str | PathLike[str], config: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Begin or continue a run as :meth:`create` does, and be its only writer inside.

        Removes what a killed process was writing. Raises InputError if another process is the writer, too.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            check_unused(path, "a run folder")
        with only_writer(path):
            remove_temporaries((path, path / "checkpoints", path / "answers"))
            yield cls.create(path, config)

    # ---- paths

    @property
    def network_path(self) -> Path:
        """The latest network."""
        return self.path / "network.safetensors"

    def checkpoint_path(self, task: int) -> Path:
        """The network after task ``task``."""
        return self.path / "checkpoints" / f"task_{task:02d}.safetensors"

    @property
    def checkpoints(self) -> list[int]:
        """The tasks whose checkpoints are there, in order."""
        return sorted(self._by_task("checkpoints"))

    def answers_path(self, task: int) -> Path:
        """A sample of task ``task``'s test logits when it was learned."""
        return self.path / "answers" / f"task_{task:02d}.safetensors"

    @property
    def progress_path(self) -> Path:
        """How far the task in training, or the router, got. The file need not exist."""
        return self.path / "progress.safetensors"

    @property
    def figures_path(self) -> Path:
        """The folder of the figures; it need not exist."""
        return self.path / "figures"

    # ---- what was recorded

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was created with."""
        return self._kept("config")

    @property
    def environment(self) -> dict[str, Any]:
        """The environment in which the run was started; see :func:`environment`."""
        return self._kept("environment")

    @property
    def metrics(self) -> list[Metric]:
        """All rows of metrics.csv in the order they were written."""
        return self._metrics.read()

    @property
    def tests(self) -> list[TaskScore]:
        """All rows of tests.csv in the order they were written."""
        return self._tests.read()

    @property
    def classes(self) -> list[ClassScore]:
        """All rows of classes.csv, by task and class; none in a run of a version that did not count by class."""
        return sorted(self._classes.read(), key=lambda row: (row.task, row.label))

    @property
    def capacity(self) -> list[CapacityEntry]:
        """All rows of capacity.csv in the order they were written."""
        return self._capacity.read()

    @property
    def recorded(self) -> dict[int, Recorded]:
        """What is on record of each task's test logits since it was learned."""
        path = self.path / "digests.json"
        if not path.exists():
            return {}
        found = read_json(path)
        try:
            return {int(task): Recorded.from_json(entry) for task, entry in found.items()}
        except (AttributeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged: {_without_stop(error)}. Restore it from a copy of the run."
            ) from error

    @property
    def digests(self) -> dict[int, str]:
        """SHA-256 of each finished task's test logits when it was learned."""
        return {task: entry.sha256 for task, entry in self.recorded.items()}

    def sample(self, task: int) -> Tensor | None:
        """The sample of task ``task``'s test logits [n, classes] when it was learned.

        None if there is no such file, or it holds other numbers than those on record.
        """
        recorded = self.recorded.get(task)
        try:
            logits = load_file(self.answers_path(task))["logits"]
        except (OSError, SafetensorError, KeyError):
            return None
        return logits if recorded is not None and recorded.sample == digest(logits) else None

    @property
    def inputs(self) -> Inputs:
        """What the network expects at its input. Raises InputError before the run has begun, and for a damaged file."""
        path = self.path / "inputs.json"
        if not path.exists():
            raise InputError(f"{self.path} has no inputs.json: the run has not begun a task. Continue it first.")
        return Inputs.from_json(read_json(path), path)

    @property
    def router(self) -> RouterScore | None:
        """The router's scores; None before it is trained."""
        path = self.path / "router.json"
        if not path.exists():
            return None
        try:
            return RouterScore.from_json(read_json(path))
        except ValueError as error:
            raise InputError(
                f"{path} is damaged: {_without_stop(error)}. Continue the run: it trains the router again."
            ) from error

    @property
    def seconds(self) -> float:
        """Seconds of the last row of metrics.csv: a continued run counts on from there."""
        rows = self.metrics
        return rows[-1].seconds if rows else 0.0

    # ---- recording

    def append_metric(self, **row: Any) -> None:
        """Add a row to metrics.csv; the arguments are the fields of :class:`Metric`. None stands for an unknown float.

        Raises InputError for a missing or unknown field, and for an unknown phase.
        """
        wrong = set(row) ^ set(Metric._fields)
        if wrong:
            raise InputError(
                f"a metrics row has exactly the fields {', '.join(Metric._fields)}; "
                f"missing or unknown: {', '.join(sorted(wrong))}."
            )
        if row["phase"] not in PHASES:
            raise InputError(f"unknown phase {row['phase']!r}; there are: {', '.join(PHASES)}.")
        self._metrics.append(Metric(**row))

    def record_test(self, learned: int, task: int, accuracy: float) -> None:
        """Record test accuracy of task ``task`` after task ``learned``. Raises InputError outside [0, 1]."""
        if not (0 <= task <= learned and 0 <= accuracy <= 1):
            raise InputError(
                f"given learned={learned}, task={task}, accuracy={accuracy}; "
                "expected 0 <= task <= learned and an accuracy in [0, 1]."
            )
        self._tests.append(TaskScore(learned, task, float(accuracy)))

    def record_classes(self, task: int, counts: Sequence[ClassCount]) -> None:
        """Record finished task ``task``'s accuracy by class, with the task given."""
        for label, each in enumerate(counts):
            self._classes.append(ClassScore(task, label, each.samples, each.accuracy, math.nan))

    def record_routed_classes(self, routed: Sequence[Sequence[float]]) -> None:
        """Record accuracy by class of every task, with the task named by the router.

        Raises InputError if classes.csv has a task or a class that ``routed`` has not.
        """
        rows = self.classes
        for row in rows:
            if row.task >= len(routed) or row.label >= len(routed[row.task]):
                raise InputError(
                    f"{self._classes.path} is damaged: the run has no class {row.label} of task {row.task}. Restore it "
                    "from a copy of the run, or delete that line."
                )
        self._classes.replace([row._replace(routed=routed[row.task][row.label]) for row in rows])

    def record_capacity(self, task: int, capacity: Capacity) -> None:
        """Record the units that task ``task`` kept, from a network's ``capacity()`` after the task was finished."""
        for row in capacity.rows:
            self._capacity.append(CapacityEntry(task, row.name, row.width, row.frozen[task]))

    def record_inputs(self, inputs: Inputs) -> None:
        """Write inputs.json."""
        write_json(self.path / "inputs.json", inputs.to_json())

    def record_answers(self, task: int, entry: Recorded, sample: Tensor | None = None) -> None:
        """Record a finished task's test logits, and a sample [n, classes] of them.

        Raises InputError if another SHA-256 was recorded before, CheckpointError where the sample cannot be written.
        """
        recorded = self.recorded
        before = recorded.get(task, entry).sha256
        if before != entry.sha256:
            raise InputError(
                f"task {task} already has the digest {before}; given {entry.sha256}. It is taken once, "
                "when the task is learned: if it differs now, the task's answers have changed."
            )
        if sample is not None:
            write_tensors(self.answers_path(task), {"logits": sample.contiguous()})
        self._write_recorded({**recorded, task: entry})

    def record_router(self, accuracy: float, oracle: Sequence[float], routed: Sequence[float]) -> None:
        """Write router.json; see :class:`RouterScore`."""
        score = RouterScore(float(accuracy), [float(x) for x in oracle], [float(x) for x in routed])
        write_json(self.path / "router.json", score._asdict())

    def truncate_after(self, task: int, events: int = 0) -> None:
        """Make the records those of a run that has just finished task ``task`` (-1: of a run that has not begun).

        The first ``events`` rows of metrics.csv that belong to the training after it (of the next task, or of the
        router) stay. Drops every other row, digest and checkpoint of later tasks, and the router's records.
        network.safetensors stays as it is: the caller loads or replaces it.
        """
        later = count()
        self._metrics.keep(lambda row: (row.task <= task and row.phase != "router") or next(later) < events)
        self._tests.keep(lambda row: row.learned <= task)
        if classes := self.classes:
            self._classes.replace([row._replace(routed=math.nan) for row in classes if row.task <= task])
        self._capacity.keep(lambda row: row.task <= task)

        if (self.path / "digests.json").exists():
            self._write_recorded({key: entry for key, entry in self.recorded.items() if key <= task})

        (self.path / "router.json").unlink(missing_ok=True)
        for folder in ("checkpoints", "answers"):
            for number, file in self._by_task(folder).items():
                if number > task:
                    file.unlink()

    def _by_task(self, folder: str) -> dict[int, Path]:
        """The files of a folder that has one for each task."""
        files = (self.path / folder).glob("task_*.safetensors")
        numbers = {file: file.stem.removeprefix("task_") for file in files}
        return {int(number): file for file, number in numbers.items() if number.isdecimal()}

    def _write_recorded(self, recorded: Mapping[int, Recorded]) -> None:
        write_json(self.path / "digests.json", {str(task): recorded[task].to_json() for task in sorted(recorded)})

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"

    def _kept(self, name: str) -> dict[str, Any]:
        """A table of config.json."""
        found = read_json(self._config_path)
        if not isinstance(found, dict) or not isinstance(found.get(name), dict):
            raise InputError(f"{self._config_path} is damaged: there is no table {name!r}. Restore it from a copy.")
        return found[name]


def _without_stop(error: Exception) -> str:
    """What an error says, to stand inside a sentence."""
    return str(error).rstrip(".")


def open_run(run: RunFolder | str | PathLike[str]) -> RunFolder:
    """The run folder itself, or the one at a path."""
    return run if isinstance(run, RunFolder) else RunFolder(run)
