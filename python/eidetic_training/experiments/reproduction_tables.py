"""What is shown of a reproduction's runs: a table of rows, a table of every task over time, or figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..runs.folder import RunFolder
from ..runs.report import Summary, spread, summary
from ..runs.style import save_figure
from .paper_numbers import PerClass

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[RunFolder]]  # by row, one for each seed

Shown = Callable[[Path, str, Runs], list[str]]  # the runs' folder, the reproduction's name, the runs; lines of text


def by_row(runs: Runs) -> list[str]:
    """A table with a line for each row: means and standard deviations over seeds."""
    lines = ["| row | seeds | accuracy, task given | by task | forgetting | with the router | units | epochs | s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row, folders in runs.items():
        results = [summary(folder) for folder in folders]
        cells = [row, str(len(results)), spread([r.mean_end for r in results]), _by_task(results)]
        cells.append(f"{max((r.forgetting for r in results), key=abs):.2%}")
        routed = [folder.router.routed for folder in folders if folder.router is not None]
        cells.append(spread([statistics.mean(each) for each in routed]) if routed else "")
        cells.append(f"{statistics.mean(_used(r) for r in results):.0%}")
        cells.append(f"{statistics.mean(r.epochs for r in results):.0f}")
        cells.append(f"{statistics.mean(r.seconds for r in results):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tasks_over_time(folder: Path, name: str, runs: Runs) -> list[str]:
    """Accuracy of every task after each task learned, and its units: a table for each row, means over seeds."""
    lines = []
    for row, folders in runs.items():
        results = [summary(run) for run in folders]
        tasks = len(results[0].tasks)
        header = ["task", *(f"after task {learned}" for learned in range(tasks)), "with the router", "units", "epochs"]
        lines += [f"{row}:", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]

        for t in range(tasks):
            cells = [str(t)]
            for learned in range(tasks):
                scores = [s.accuracy for run in folders for s in run.tests if (s.learned, s.task) == (learned, t)]
                cells.append(spread(scores) if scores else "")
            routed = [run.router.routed[t] for run in folders if run.router is not None]
            cells.append(spread(routed) if routed else "")
            cells.append(f"{statistics.mean(_used(r, t) for r in results):.1%}")
            cells.append(f"{statistics.mean(r.tasks[t].epochs for r in results):.0f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def by_class(paper: Mapping[str, PerClass]) -> Shown:
    """Shows the table of :func:`by_row`, and each class's accuracy: routed / with the task given, means over seeds.

    ``paper`` has the paper's own numbers by row.
    """

    def shown(folder: Path, name: str, runs: Runs) -> list[str]:
        columns: dict[str, list[str]] = {}
        for row, folders in runs.items():
            columns[row] = [_pair(*means) for means in zip(*_class_means(folders))]
            if row in paper:
                columns[f"{row} printed"] = [_pair(*pair) for pair in zip(*paper[row])]

        header = ["class", *columns]
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for label, cells in zip(_class_names(next(iter(runs.values()))[0]), zip(*columns.values())):
            lines.append("| " + " | ".join([label, *cells]) + " |")
        return [*by_row(runs), "", "By class, routed / with the task given, in percent:", "", *lines]

    return shown


def drawn(draw: Callable[[RunFolder], Figure]) -> Shown:
    """Shows each run by a figure."""

    def shown(folder: Path, name: str, runs: Runs) -> list[str]:
        lines = []
        for row, folders in runs.items():
            for run in folders:
                path = folder / f"{name}-{run.path.name}.png"
                save_figure(draw(run), path)
                lines.append(f"- {row}, seed {run.config['seed']}: {path}")
        return lines

    return shown


def _class_means(folders: Sequence[RunFolder]) -> tuple[list[float], list[float]]:
    """Of each class, mean accuracy over seeds in percent, routed (NaN without a router) and with the task given."""
    classes = list(zip(*(folder.classes for folder in folders)))
    routed = [100 * statistics.mean(score.routed for score in seeds) for seeds in classes]
    return routed, [100 * statistics.mean(score.given for score in seeds) for seeds in classes]


def _class_names(folder: RunFolder) -> list[str]:
    inputs = folder.inputs
    return [f"task {score.task}, {inputs.label(score.task, score.label)}" for score in folder.classes]


def _pair(routed: float, given: float) -> str:
    return f"{'-' if math.isnan(routed) else f'{routed:.1f}'} / {given:.1f}"


def _by_task(results: Sequence[Summary]) -> str:
    tasks = zip(*([task.end for task in r.tasks] for r in results))
    return " / ".join(f"{100 * statistics.mean(each):.1f}" for each in tasks)


def _used(result: Summary, task: int | None = None) -> float:
    """The fraction of all units that ``task`` keeps, or all tasks together."""
    taken = sum(layer.kept if task is None else layer.units[task] for layer in result.layers)
    return taken / sum(layer.width for layer in result.layers)
