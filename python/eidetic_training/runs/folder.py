"""The run folder: the files that a run leaves behind. No other module knows their names and formats.

inputs.json            what the network expects at its input (``inputs.Inputs``)
config.json            {"config": the complete configuration, "environment": versions, threads and commit}
metrics.csv            a row for each epoch and each event (``Metric``)
tests.csv              test accuracy of every finished task after each task learned (``TaskScore``)
capacity.csv           units that a task kept in each layer (``CapacityEntry``)
digests.json           {"0": SHA-256 of task 0's test logits when it was learned, ...}
network.safetensors    the latest network
checkpoints/           task_00.safetensors, ...: the network after each task
progress.safetensors   how far the task or router in training got; gone when it is finished
router.json            {"accuracy", "oracle", "routed"}, once the router is trained
figures/               what ``plots.all_figures`` draws
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

import eidetic_kernels
from eidetic_kernels.errors import InputError
from eidetic_kernels.tasks.capacity import Capacity
from eidetic_kernels.version import __version__

from .inputs import Inputs
from .tables import Table, read_json, write_json

# Phases whose rows are epochs of training a task. The others are events ("prune", "restore", "finish"), or epochs that
# belong to no task ("router").
EPOCH_PHASES = ("train", "settle", "recover", "polish")
PHASES = (*EPOCH_PHASES, "prune", "restore", "finish", "router")


class Metric(NamedTuple):
    """One row of metrics.csv. ``seconds`` counts from the run's start; units are totals over all unit groups."""

    seconds: float
    task: int
    phase: str
    epoch: int
    step: int
    loss: float
    train_accuracy: float
    live_units: int
    frozen_units: int
    width: int


class TaskScore(NamedTuple):
    """One row of tests.csv: ``accuracy``, in [0, 1], of task ``task`` after task ``learned`` was learned."""

    learned: int
    task: int
    accuracy: float


class CapacityEntry(NamedTuple):
    """One row of capacity.csv: task ``task`` kept ``units`` of the ``width`` units of a layer (a unit group)."""

    task: int
    layer: str
    width: int
    units: int


class RouterScore(NamedTuple):
    """What router.json holds; all numbers lie in [0, 1].

    accuracy: how often the router named the right task. oracle: test accuracy of every task if the task is given.
    routed: the same if the router names the task.
    """

    accuracy: float
    oracle: list[float]
    routed: list[float]


class RunFolder:
    """An existing run folder; :meth:`create` makes a new one. Raises InputError if ``path`` is no run folder."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        if not self._config_path.is_file():
            raise InputError(f"{self.path} is not a run folder: no config.json there. Start a run first")
        self._metrics = Table(self.path / "metrics.csv", Metric)
        self._tests = Table(self.path / "tests.csv", TaskScore)
        self._capacity = Table(self.path / "capacity.csv", CapacityEntry)

    @classmethod
    def create(cls, path: str | PathLike[str], config: Mapping[str, Any]) -> RunFolder:
        """Begin a run, or continue the one in ``path`` if its configuration is the same.

        ``config`` is made of what JSON knows. A run of an earlier version can be continued: a key that it did not know
        counts as equal if its value is empty or off (None, False or {}).

        Raises InputError if the folder holds a run of another configuration (the message names every key that differs)
        or anything that is not a run.
        """
        path = Path(path)
        config = _as_json(config)

        if (path / "config.json").is_file():
            run = cls(path)
            differences = [
                f"{key}: {_shown(old)} there, {_shown(new)} given"
                for key, old, new in _differences(run.config, config)
                if not (old is _MISSING and (new is False or new in (None, {})))
            ]
            if differences:
                raise InputError(
                    f"{path} holds a run with another configuration ({'; '.join(differences)}). "
                    "Choose another folder, or give the same configuration to continue"
                )
            return run

        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder. Choose a folder that is new or empty")
        (path / "checkpoints").mkdir(parents=True)
        write_json(path / "config.json", {"config": config, "environment": environment()})
        return cls(path)

    # ---- paths

    @property
    def network_path(self) -> Path:
        """The latest network."""
        return self.path / "network.safetensors"

    def checkpoint_path(self, task: int) -> Path:
        """The network after task ``task``."""
        return self.path / "checkpoints" / f"task_{task:02d}.safetensors"

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
        return read_json(self._config_path)["config"]

    @property
    def environment(self) -> dict[str, Any]:
        """The environment in which the run was started; see :func:`environment`."""
        return read_json(self._config_path)["environment"]

    @property
    def metrics(self) -> list[Metric]:
        """All rows of metrics.csv in the order they were written."""
        return self._metrics.read()

    @property
    def tests(self) -> list[TaskScore]:
        """All rows of tests.csv in the order they were written."""
        return self._tests.read()

    @property
    def capacity(self) -> list[CapacityEntry]:
        """All rows of capacity.csv in the order they were written."""
        return self._capacity.read()

    @property
    def digests(self) -> dict[int, str]:
        """SHA-256 of each finished task's test logits when it was learned."""
        path = self.path / "digests.json"
        return {int(task): digest for task, digest in read_json(path).items()} if path.exists() else {}

    @property
    def inputs(self) -> Inputs:
        """What the network expects at its input. Raises InputError before the run has begun."""
        path = self.path / "inputs.json"
        if not path.exists():
            raise InputError(f"{self.path} has no inputs.json: the run has not begun a task")
        return Inputs.from_json(read_json(path))

    @property
    def router(self) -> RouterScore | None:
        """The router's scores; None before it is trained."""
        path = self.path / "router.json"
        return RouterScore(**read_json(path)) if path.exists() else None

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
                f"missing or unknown: {', '.join(sorted(wrong))}"
            )
        if row["phase"] not in PHASES:
            raise InputError(f"unknown phase {row['phase']!r}; there are: {', '.join(PHASES)}")
        self._metrics.append(Metric(**row))

    def record_test(self, learned: int, task: int, accuracy: float) -> None:
        """Record test accuracy of task ``task`` after task ``learned``. Raises InputError outside [0, 1]."""
        if not (0 <= task <= learned and 0 <= accuracy <= 1):
            raise InputError(
                f"given learned={learned}, task={task}, accuracy={accuracy}; "
                "expected 0 <= task <= learned and an accuracy in [0, 1]"
            )
        self._tests.append(TaskScore(learned, task, float(accuracy)))

    def record_capacity(self, task: int, capacity: Capacity) -> None:
        """Record the units that task ``task`` kept, from a network's ``capacity()`` after the task was finished."""
        for row in capacity.rows:
            self._capacity.append(CapacityEntry(task, row.name, row.width, row.frozen[task]))

    def record_inputs(self, inputs: Inputs) -> None:
        """Write inputs.json."""
        write_json(self.path / "inputs.json", inputs.to_json())

    def record_digest(self, task: int, digest: str) -> None:
        """Record the digest of a finished task's logits. Raises InputError if another one was recorded before."""
        digests = self.digests
        if digests.get(task, digest) != digest:
            raise InputError(
                f"task {task} already has the digest {digests[task]}; given {digest}. It is taken once, "
                "when the task is learned: if it differs now, the task's answers have changed"
            )
        digests[task] = digest
        write_json(self.path / "digests.json", {str(key): digests[key] for key in sorted(digests)})

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
        self._capacity.keep(lambda row: row.task <= task)

        kept = {str(key): digest for key, digest in self.digests.items() if key <= task}
        if (self.path / "digests.json").exists():
            write_json(self.path / "digests.json", kept)

        (self.path / "router.json").unlink(missing_ok=True)
        for checkpoint in (self.path / "checkpoints").glob("task_*.safetensors"):
            if int(checkpoint.stem.removeprefix("task_")) > task:
                checkpoint.unlink()

    @property
    def _config_path(self) -> Path:
        return self.path / "config.json"


def open_run(run: RunFolder | str | PathLike[str]) -> RunFolder:
    """The run folder itself, or the one at a path."""
    return run if isinstance(run, RunFolder) else RunFolder(run)


def environment() -> dict[str, Any]:
    """What results depend on apart from the configuration: versions, threads, GPU, and the commit if it is known."""
    return {
        "eidetic_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None if it is installed, or without git."""
    root = Path(eidetic_kernels.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it reads back: tuples become lists, so that equal configurations compare equal."""
    try:
        return json.loads(json.dumps(dict(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the configuration must be made of what JSON knows (text, numbers, lists, tables): {error}"
        ) from error


_MISSING = object()


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every dotted key at which two configurations differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            below = f"{key}.{name}" if key else name
            yield from _differences(old.get(name, _MISSING), new.get(name, _MISSING), below)
    elif old != new:
        yield key, old, new


def _shown(value: Any) -> str:
    return "nothing" if value is _MISSING else json.dumps(value)
