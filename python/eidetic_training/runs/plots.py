"""Figures of a run: accuracy and units over time (the paper's Figures 1 and 3), capacity by layer and task, the
task-by-task matrix of accuracies, accuracy by class, and the staircase.

Each function returns a matplotlib Figure; matplotlib (the extra ``plots``) is imported when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eidetic_kernels import checking
from eidetic_kernels.errors import InputError

from .folder import RunFolder, open_run
from .report import layers
from .rows import EPOCH_PHASES, Metric
from .staircase_figure import checkpoints, staircase, staircase_of_run
from .style import (
    BOUNDARY,
    DPI,
    FREE,
    FROZEN,
    LIVE,
    SMALL,
    WIDTH,
    count_formatter,
    new_figure,
    percent_formatter,
    save_figure,
    set_legend,
    set_title,
    task_colours,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "FIGURES",
    "accuracy_matrix",
    "accuracy_over_time",
    "all_figures",
    "capacity",
    "class_accuracy",
    "staircase",
    "staircase_of_run",
    "units_over_time",
]

WINDOW = 10  # epochs that a moving average and its band cover, as in the paper's Figure 1
ANNOTATED = 12  # tasks up to which the matrix shows numbers
SPREAD = 0.1  # accuracy that the matrix's colours span at least, so that small differences look small


def accuracy_over_time(run: RunFolder | str | PathLike[str]) -> Figure:
    """Training and test accuracy of every task over time, as in the paper's Figure 1.

    Above, training accuracy while a task is learned: a moving average over ``WINDOW`` epochs, and a band of one
    standard deviation. Below, test accuracy of every task from when it was learned on.

    Raises InputError before the first epoch is recorded.
    """
    run = open_run(run)
    rows, scores = _rows(run), run.tests
    unit, scale = _time_unit(rows)
    ends = _ends(rows)
    figure, (training, testing) = new_figure(WIDTH, 6.4, rows=2)

    tasks = sorted({row.task for row in (*rows, *scores)})
    colours = task_colours(1 + tasks[-1])
    for task in tasks:
        colour = colours[task]
        epochs = [
            row for row in rows if row.task == task and row.phase in EPOCH_PHASES and np.isfinite(row.train_accuracy)
        ]
        if epochs:
            time = [row.seconds / scale for row in epochs]
            mean, low, high = _moving([row.train_accuracy for row in epochs])
            training.fill_between(time, low, high, color=colour, alpha=0.25, linewidth=0)
            training.plot(time, mean, color=colour, linewidth=1.6, label=f"task {task}")

        measured = [row for row in scores if row.task == task and row.learned in ends]
        if measured:
            time = [ends[row.learned] / scale for row in measured]
            accuracy = [row.accuracy for row in measured]
            testing.plot(
                time, accuracy, color=colour, linewidth=1.4, marker="o", markersize=3.5, clip_on=False, zorder=3
            )

    for axes in (training, testing):
        _task_boundaries(axes, ends, scale, BOUNDARY)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(percent_formatter())
    set_title(
        training,
        "Training accuracy of the task in training",
        f"line: moving average over {WINDOW} epochs; band: one standard deviation in that window",
    )
    set_title(
        testing,
        "Test accuracy of every finished task",
        "measured again each time a task is finished (dots); a level line has forgotten nothing",
    )
    testing.set_xlabel(f"time ({unit}); dotted: a task is finished")
    testing.set_xlim(0, max(rows[-1].seconds / scale, 1e-9))
    set_legend(figure, _labelled(training), "learned in order")
    return figure


def units_over_time(run: RunFolder | str | PathLike[str]) -> Figure:
    """All layers' units over time: frozen, live and pruned (free), as in the paper's Figure 3.

    Raises InputError before the first epoch is recorded.
    """
    rows = _rows(open_run(run))
    unit, scale = _time_unit(rows)
    ends = _ends(rows)
    figure, (axes,) = new_figure(WIDTH, 3.8)

    # A row is written when its epoch is over: its counts hold from the row before it (the start) to its time.
    rows = [rows[0]._replace(seconds=0.0), *rows]
    time = [row.seconds / scale for row in rows]
    frozen = [row.frozen_units for row in rows]
    live = [row.live_units for row in rows]
    free = [row.width - row.frozen_units - row.live_units for row in rows]
    for amounts, base, colour, label in (
        (frozen, [0] * len(rows), FROZEN, "frozen (finished tasks)"),
        (live, frozen, LIVE, "live (task in training)"),
        (free, np.add(frozen, live), FREE, "pruned, free"),
    ):
        top = np.add(base, amounts)
        axes.fill_between(time, base, top, step="pre", color=colour, linewidth=0, label=label)
    _task_boundaries(axes, ends, scale, "white")

    axes.set_xlabel(f"time ({unit})")
    axes.set_ylabel("units")
    axes.yaxis.set_major_formatter(count_formatter())
    axes.set_xlim(0, max(time[-1], 1e-9))
    axes.set_ylim(0, max(row.width for row in rows))
    set_title(
        axes,
        "Units of all layers over time",
        "each task begins with the units that are free, gives back what it does not need, and freezes the rest",
    )
    set_legend(figure, _labelled(axes)[::-1])
    return figure


def capacity(run: RunFolder | str | PathLike[str]) -> Figure:
    """The fraction of each layer's units that each task keeps, a bar a layer.

    Raises InputError before the first task is finished.
    """
    run = open_run(run)
    bars = layers(run)
    if not bars:
        raise InputError(f"{run.path} has no capacity recorded yet: finish a task first.")
    figure, (axes,) = new_figure(WIDTH, 2.1 + 0.36 * len(bars))
    places = range(len(bars))

    left = np.zeros(len(bars))
    for task, colour in enumerate(task_colours(len(bars[0].units))):
        kept = np.array([bar.units[task] / bar.width for bar in bars])
        axes.barh(places, kept, left=left, color=colour, edgecolor="white", linewidth=0.5, label=f"task {task}")
        left += kept
    axes.barh(places, 1 - left, left=left, color=FREE, label="free")
    for place, bar in enumerate(bars):
        axes.annotate(
            f"{bar.kept:,} of {bar.width:,}",
            (1, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
        )

    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(percent_formatter())
    axes.set_xlabel("units, of the layer's width")
    axes.grid(False)
    set_title(axes, "Capacity by layer and task", "on the right: how many units all tasks together keep")
    set_legend(figure, _labelled(axes), "kept by")
    return figure


def accuracy_matrix(run: RunFolder | str | PathLike[str]) -> Figure:
    """Test accuracy by task (column) after each task learned (row).

    Raises InputError before the first task is finished.
    """
    run = open_run(run)
    scores = run.tests
    if not scores:
        raise InputError(f"{run.path} has no test accuracy recorded yet: finish a task first.")
    tasks = 1 + max(row.learned for row in scores)
    matrix = np.full((tasks, tasks), np.nan)
    for row in scores:
        matrix[row.learned, row.task] = row.accuracy

    side = min(max(3.4, 0.48 * tasks + 1.0), 9.0)
    figure, (axes,) = new_figure(side + 1.5, side + 0.3)
    figure.set_layout_engine("compressed")  # made for axes whose shape is fixed
    low, high = np.nanmin(matrix), np.nanmax(matrix)
    low = min(low, high - SPREAD)
    image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=high)

    if tasks <= ANNOTATED:
        for learned, task in zip(*np.nonzero(np.isfinite(matrix))):
            dark = matrix[learned, task] < (low + high) / 2
            percent, colour = f"{100 * matrix[learned, task]:.1f}", "white" if dark else "black"
            axes.text(task, learned, percent, ha="center", va="center", fontsize=SMALL, color=colour)
        axes.set_xticks(range(tasks))
        axes.set_yticks(range(tasks))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("task tested")
    axes.set_ylabel("after learning task")
    set_title(axes, "Test accuracy (%) after each task", "a column that stays the same has forgotten nothing")
    figure.colorbar(image, ax=axes, format=percent_formatter(), shrink=0.8)
    return figure


def class_accuracy(run: RunFolder | str | PathLike[str]) -> Figure:
    """Test accuracy of every class, with the task given (dots) and routed (rings), as in the paper's Tables 7 and 8.

    Raises InputError before the first task is finished.
    """
    run = open_run(run)
    scores = run.classes
    if not scores:
        raise InputError(f"{run.path} has no accuracy by class recorded yet: finish a task first.")
    figure, (axes,) = new_figure(max(WIDTH, 0.13 * len(scores)), 3.8)
    place = {score[:2]: index + score.task for index, score in enumerate(scores)}  # a gap between tasks

    for task, colour in enumerate(task_colours(1 + scores[-1].task)):
        own = [score for score in scores if score.task == task]
        places = [place[score[:2]] for score in own]
        given, routed = ([getattr(score, name) for score in own] for name in ("given", "routed"))
        axes.vlines(places, routed, given, color=colour, linewidth=1.0, alpha=0.5)
        axes.plot(places, given, "o", color=colour, markersize=4.5, label=f"task {task}")
        axes.plot(places, routed, "o", color=colour, markersize=7, markerfacecolor="none")

    inputs = run.inputs
    labels = [str(inputs.label(score.task, score.label)) for score in scores]
    axes.set_xticks(list(place.values()), labels, fontsize=SMALL, rotation=90 if len(scores) > 40 else 0)
    axes.set_xlabel("class, by task")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(percent_formatter())
    set_title(axes, "Test accuracy by class", "dots: the task is given; rings: the router names it")
    set_legend(figure, _labelled(axes))
    return figure


FIGURES = {
    "accuracy_over_time": accuracy_over_time,
    "units_over_time": units_over_time,
    "capacity": capacity,
    "accuracy_matrix": accuracy_matrix,
    "class_accuracy": class_accuracy,
    "staircase": staircase_of_run,
}


def all_figures(run: RunFolder | str | PathLike[str], folder: str | PathLike[str] | None = None) -> list[Path]:
    """Draw every figure into ``folder`` (the run's own by default) as ``<name>.png`` and return the paths.

    The staircase is left out if the run has no checkpoints (a sweep removes those of its trials), and accuracy by class
    if an earlier version did not record it. Raises InputError when the run has recorded too little to draw, or
    matplotlib is missing.
    """
    run = open_run(run)
    folder = run.figures_path if folder is None else Path(checking.path("folder", folder, "a folder"))
    without = set() if checkpoints(run) else {"staircase"}
    without |= set() if run.classes else {"class_accuracy"}
    names = [name for name in FIGURES if name not in without]
    drawn = {name: FIGURES[name](run) for name in names}

    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        save_figure(figure, paths[-1])
    return paths


def _rows(run: RunFolder) -> list[Metric]:
    """The rows of tasks, those of the router left out."""
    rows = [row for row in run.metrics if row.phase != "router"]
    if not rows:
        raise InputError(f"{run.path} has no metrics recorded yet: train first.")
    return rows


def _ends(rows: Sequence[Metric]) -> dict[int, float]:
    """When each task's last row was written, in seconds."""
    return {row.task: row.seconds for row in rows}


def _time_unit(rows: Sequence[Metric]) -> tuple[str, float]:
    """The unit that a time axis up to the last row is labelled with, and its seconds."""
    last = rows[-1].seconds
    return ("hours", 3600.0) if last > 2 * 3600 else ("minutes", 60.0) if last > 120 else ("seconds", 1.0)


def _moving(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the window around each value, and one standard deviation below and above it, within [0, 1]."""
    windows = [values[max(0, index - WINDOW // 2) : index + (WINDOW + 1) // 2] for index in range(len(values))]
    mean = np.array([np.mean(window) for window in windows])
    deviation = np.array([np.std(window) for window in windows])
    return mean, np.maximum(mean - deviation, 0), np.minimum(mean + deviation, 1)


def _task_boundaries(axes: Axes, ends: dict[int, float], scale: float, colour: str) -> None:
    for end in ends.values():
        axes.axvline(end / scale, color=colour, linewidth=0.6, linestyle=(0, (2, 2)))


def _labelled(axes: Axes) -> list[tuple]:
    """What the axes show that has a label, as a legend's entries."""
    return list(zip(*axes.get_legend_handles_labels()))
