"""The results of a run: accuracy when learned and at the end, forgetting, capacity, epochs, time, router."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from eidetic_kernels.errors import InputError

from .folder import RunFolder, open_run
from .rows import EPOCH_PHASES, RouterScore


@dataclass(frozen=True)
class TaskSummary:
    """One finished task. Accuracies are test accuracies in [0, 1]."""

    task: int
    learned: float
    """Accuracy measured right after the task was learned."""
    end: float
    """Accuracy measured last."""
    epochs: int
    """Epochs of training it, pruning's recovery epochs included."""
    seconds: float
    """From the end of the task before it (or the start of the run) to its own last row."""

    @property
    def forgetting(self) -> float:
        """``learned - end``; exactly 0 if the task gives as many right answers as when it was learned."""
        return self.learned - self.end


@dataclass(frozen=True)
class LayerSummary:
    """Units of one layer (one unit group); ``units`` has the number that each task keeps."""

    name: str
    width: int
    units: tuple[int, ...]

    @property
    def kept(self) -> int:
        """Units kept by all tasks together."""
        return sum(self.units)

    @property
    def free(self) -> int:
        """Units left for later tasks."""
        return self.width - self.kept


@dataclass(frozen=True)
class Summary:
    """A run in numbers; ``router`` is None until the router is trained."""

    tasks: tuple[TaskSummary, ...]
    layers: tuple[LayerSummary, ...]
    router: RouterScore | None
    router_epochs: int
    seconds: float
    """Time of the whole run, the router included."""

    @property
    def mean_learned(self) -> float:
        """Mean accuracy over tasks, each when it was learned."""
        return _mean([task.learned for task in self.tasks])

    @property
    def mean_end(self) -> float:
        """Mean accuracy over tasks at the end."""
        return _mean([task.end for task in self.tasks])

    @property
    def forgetting(self) -> float:
        """The largest forgetting of any task, by magnitude: exactly 0 if every task kept its accuracy."""
        return max((task.forgetting for task in self.tasks), key=abs)

    @property
    def epochs(self) -> int:
        """Epochs of all tasks together, without the router's."""
        return sum(task.epochs for task in self.tasks)


def summary(run: RunFolder | str | PathLike[str]) -> Summary:
    """The numbers of a run, finished or not. Raises InputError before the first task is finished."""
    run = open_run(run)
    tests = run.tests
    learned = {row.task: row.accuracy for row in tests if row.learned == row.task}
    end = {row.task: row.accuracy for row in sorted(tests, key=lambda row: row.learned)}
    if not learned:
        raise InputError(f"{run.path} has no finished task yet: finish a task first.")

    epochs: dict[int, int] = {}
    seconds: dict[int, float] = {}
    router_epochs, clock = 0, 0.0
    for row in run.metrics:
        if row.phase == "router":
            router_epochs += 1
        else:
            epochs[row.task] = epochs.get(row.task, 0) + (row.phase in EPOCH_PHASES)
            seconds[row.task] = seconds.get(row.task, 0.0) + row.seconds - clock
        clock = row.seconds

    return Summary(
        tasks=tuple(
            TaskSummary(task, learned[task], end[task], epochs.get(task, 0), seconds.get(task, 0.0))
            for task in sorted(learned)
        ),
        layers=layers(run),
        router=run.router,
        router_epochs=router_epochs,
        seconds=clock,
    )


def layers(run: RunFolder | str | PathLike[str]) -> tuple[LayerSummary, ...]:
    """Capacity by layer and task, in the order recorded; a widened layer has its latest width."""
    rows = open_run(run).capacity
    tasks = 1 + max((row.task for row in rows), default=-1)
    width = {row.layer: row.width for row in rows}
    units = {name: [0] * tasks for name in width}
    for row in rows:
        units[row.layer][row.task] = row.units
    return tuple(LayerSummary(name, width[name], tuple(units[name])) for name in width)


def table(run: RunFolder | str | PathLike[str]) -> str:
    """The summary as text: a table of tasks, the router's accuracy, and a table of capacity by layer and task.

    Raises InputError before the first task is finished.
    """
    run = open_run(run)
    result = summary(run)
    parts = [_tasks(result)]
    if result.router is not None:
        parts.append(
            f"router: the right task for {percent(result.router.accuracy)} of the test inputs, "
            f"the right answer for {percent(_mean(result.router.routed))} "
            f"({percent(_mean(result.router.oracle))} with the task given)"
        )
    if result.layers:
        parts.append(_capacity(result.layers))
    return "\n\n".join(parts)


def classes_table(run: RunFolder | str | PathLike[str]) -> str:
    """Test accuracy of every class as text, with the task given and, once a router is trained, routed.

    The last line has the means over classes. Raises InputError before the first task is finished.
    """
    run = open_run(run)
    scores = run.classes
    if not scores:
        raise InputError(
            f"{run.path} has no accuracy by class: finish a task first. A run that version 0.1.0 finished has none."
        )
    inputs = run.inputs
    routed = not any(math.isnan(score.routed) for score in scores)
    rows = [["class", "samples", "task given", *(["routed", "lost"] if routed else [])]]
    for score in scores:
        name = f"task {score.task}, {inputs.label(score.task, score.label)}"
        rows.append([name, f"{score.samples:,}", *_given_and_routed(score.given, score.routed, routed)])

    given, named = _mean([score.given for score in scores]), _mean([score.routed for score in scores])
    rows.append(["mean", "", *_given_and_routed(given, named, routed)])
    return aligned(rows, rules=(0, len(rows) - 2))


def duration(seconds: float) -> str:
    """Seconds as text: "41.2 s", "3 min 07 s", "2 h 05 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _given_and_routed(given: float, routed: float, known: bool) -> list[str]:
    return [percent(given), *([percent(routed), _difference(given - routed)] if known else [])]


def _tasks(result: Summary) -> str:
    rows = [["task", "learned", "at the end", "forgotten", "epochs", "time"]]
    for task in result.tasks:
        rows.append(
            [
                str(task.task),
                percent(task.learned),
                percent(task.end),
                _difference(task.forgetting),
                str(task.epochs),
                duration(task.seconds),
            ]
        )
    rows.append(
        [
            "mean",
            percent(result.mean_learned),
            percent(result.mean_end),
            _difference(_mean([task.forgetting for task in result.tasks])),
            f"{result.epochs / len(result.tasks):.1f}",
            duration(_mean([task.seconds for task in result.tasks])),
        ]
    )

    router = result.router
    if router is not None:
        rows[0].append("routed")
        for task, row in zip(result.tasks, rows[1:-1]):
            row.append(percent(router.routed[task.task]) if task.task < len(router.routed) else "-")
        rows[-1].append(percent(_mean(router.routed)))
    return aligned(rows, rules=(0, len(rows) - 2))


def _capacity(result: Sequence[LayerSummary]) -> str:
    tasks = len(result[0].units)
    rows = [["units kept by task", *(str(task) for task in range(tasks)), "all", "free", "width"]]
    for layer in result:
        counts = [*layer.units, layer.kept, layer.free, layer.width]
        rows.append([layer.name, *(f"{count:,}" for count in counts)])
    return aligned(rows, rules=(0,))


def aligned(rows: Sequence[Sequence[str]], rules: Sequence[int]) -> str:
    """A table as text: the first column flush left, the others flush right, a rule after each row in ``rules``."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for index, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
        if index in rules:
            lines.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def percent(share: float) -> str:
    """A number in [0, 1] as text: "97.25%"."""
    return f"{share:.2%}"


def spread(values: Sequence[float]) -> str:
    """The mean in percent, and the standard deviation where there are two values or more: "98.31 ± 0.09"."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _difference(value: float) -> str:
    """A difference of accuracies as text; "0" means exactly zero, and a small difference is never shown as "0"."""
    if value == 0:
        return "0"
    return f"{value:+.2%}" if abs(value) >= 5e-5 else f"{100 * value:+.1e}%"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
