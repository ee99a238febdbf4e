"""Figures of a run: the paper's Figure 1 (accuracy), 3 (units) and 4 (capacity), and the task-by-task matrix.

matplotlib (the `plots` extra) is imported when a figure is drawn. Figures are made without pyplot: no display
is needed, no global state is touched, and a figure that is dropped is freed.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from eidetic_kernels.errors import InputError

from ..experiments.comparison import Comparison
from .report import layers
from .folder import EPOCH_PHASES, Metric, RunFolder, open_run

DPI = 150
WINDOW = 5  # epochs that a moving average and its band cover
ANNOTATED = 12  # tasks up to which the matrix shows numbers
SPREAD = 0.1  # accuracy that the matrix's colours span at least, so that small differences look small
FROZEN, LIVE, FREE = "#31688e", "#f0ad2e", "#e8e8e8"


def accuracy_over_time(run: RunFolder | str | PathLike):
    """The paper's Figure 1 as a matplotlib Figure: training and test accuracy of every task over time.

    Above, training accuracy while a task is learned: a moving average over `WINDOW` epochs, and a band of one
    standard deviation. Below, test accuracy of every task from when it was learned on.
    """
    run = open_run(run)
    rows = _rows(run)
    scores = run.tests
    figure, (training, testing) = _figure(8.6, 6.0, rows=2)
    unit, scale = _time_unit(rows)
    ends = _ends(rows)
    colours = _colours(1 + max([row.task for row in rows]))

    for task, colour in enumerate(colours):
        epochs = [
            row
            for row in rows
            if row.task == task and row.phase in EPOCH_PHASES and np.isfinite(row.train_accuracy)
        ]
        if epochs:
            time = [row.seconds / scale for row in epochs]
            mean, low, high = _moving([row.train_accuracy for row in epochs])
            training.fill_between(time, low, high, color=colour, alpha=0.25, linewidth=0)
            training.plot(time, mean, color=colour, linewidth=1.6, label=f"task {task}")
        measured = [row for row in scores if row.task == task and row.learned in ends]
        if measured:
            time = [ends[row.learned] / scale for row in measured]
            values = [row.accuracy for row in measured]
            style = {"linewidth": 1.4, "marker": "o", "markersize": 3.5, "clip_on": False, "zorder": 3}
            testing.plot(time, values, color=colour, **style)

    for axes, title in ((training, "Training accuracy of the task in training"), (testing, "Test accuracy")):
        _task_boundaries(axes, ends, scale, "#999999")
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(_percent_formatter())
        axes.set_title(title, loc="left", fontsize=10)
    testing.set_xlabel(f"time ({unit})")
    testing.set_xlim(0, max(rows[-1].seconds / scale, 1e-9))
    _legend(figure, training, "learned in order")
    return figure


def units_over_time(run: RunFolder | str | PathLike):
    """The paper's Figure 3 as a matplotlib Figure: all layers' units, frozen, live and pruned, over time."""
    rows = _rows(open_run(run))
    figure, (axes,) = _figure(8.6, 3.8)
    unit, scale = _time_unit(rows)
    # A row is written when its epoch is over: its counts hold from the row before it (the start) to its time.
    ends = _ends(rows)
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
    axes.yaxis.set_major_formatter(_count_formatter())
    axes.set_xlim(0, max(time[-1], 1e-9))
    axes.set_ylim(0, max(row.width for row in rows))
    axes.set_title("Units over time", loc="left", fontsize=10)
    _legend(figure, axes, None, reverse=True)
    return figure


def capacity(run: RunFolder | str | PathLike):
    """The paper's Figure 4 as a matplotlib Figure: the share of each layer's units that each task keeps."""
    run = open_run(run)
    bars = layers(run)
    if not bars:
        raise InputError(f"{run.path} has no capacity recorded yet: finish a task first")
    figure, (axes,) = _figure(8.6, 1.9 + 0.36 * len(bars))
    places = range(len(bars))
    left = np.zeros(len(bars))
    for task, colour in enumerate(_colours(len(bars[0].units))):
        share = np.array([bar.units[task] / bar.width for bar in bars])
        axes.barh(
            places, share, left=left, color=colour, edgecolor="white", linewidth=0.5, label=f"task {task}"
        )
        left += share
    axes.barh(places, 1 - left, left=left, color=FREE, label="free")
    for place, bar in enumerate(bars):
        axes.annotate(
            f"{bar.kept:,} of {bar.width:,}",
            (1, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percent_formatter())
    axes.set_xlabel("share of the layer's units")
    axes.set_title("Capacity by layer and task", loc="left", fontsize=10)
    axes.grid(False)
    _legend(figure, axes, "kept by")
    return figure


def accuracy_matrix(run: RunFolder | str | PathLike):
    """A matplotlib Figure of test accuracy by task (column) after each task learned (row)."""
    run = open_run(run)
    scores = run.tests
    if not scores:
        raise InputError(f"{run.path} has no test accuracy recorded yet: finish a task first")
    tasks = 1 + max(row.learned for row in scores)
    matrix = np.full((tasks, tasks), np.nan)
    for row in scores:
        matrix[row.learned, row.task] = row.accuracy
    side = min(max(3.2, 0.48 * tasks + 1.0), 9.0)
    figure, (axes,) = _figure(side + 1.5, side)
    figure.set_layout_engine("compressed")  # made for axes whose shape is fixed
    low, high = np.nanmin(matrix), np.nanmax(matrix)
    low = min(low, high - SPREAD)
    image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=high)
    if tasks <= ANNOTATED:
        for learned, task in zip(*np.nonzero(np.isfinite(matrix))):
            dark = matrix[learned, task] < (low + high) / 2
            axes.text(
                task,
                learned,
                f"{100 * matrix[learned, task]:.1f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
        axes.set_xticks(range(tasks))
        axes.set_yticks(range(tasks))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("test accuracy of task (%)")
    axes.set_ylabel("after learning task")
    figure.colorbar(image, ax=axes, format=_percent_formatter(), shrink=0.8)
    return figure


FIGURES = {
    "accuracy_over_time": accuracy_over_time,
    "units_over_time": units_over_time,
    "capacity": capacity,
    "accuracy_matrix": accuracy_matrix,
}


def all_figures(run: RunFolder | str | PathLike, folder: str | PathLike | None = None) -> list[Path]:
    """Draw every figure into `folder` (the run's own by default) as `<name>.png` and return the paths.

    Raises `InputError` when the run has recorded too little to draw, or matplotlib is missing.
    """
    run = open_run(run)
    folder = Path(folder) if folder is not None else run.figures_path
    drawn = {name: draw(run) for name, draw in FIGURES.items()}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def _rows(run: RunFolder) -> list[Metric]:
    """The rows of tasks, those of the router left out."""
    rows = [row for row in run.metrics if row.phase != "router"]
    if not rows:
        raise InputError(f"{run.path} has no metrics recorded yet: train first")
    return rows


def comparison(compared: Comparison):
    """Methods side by side as a matplotlib Figure: above, mean test accuracy of all tasks learned so far; below, of the
    first task while others are learned. Means over seeds; a method that learns all tasks at once is a dashed line."""
    figure, (average, first) = _figure(8.6, 6.0, rows=2)
    for method, colour in zip(compared.methods, _colours(len(compared.methods))):
        matrices = [result.matrix for result in compared.of(method)]
        if len(matrices[0]) < len(matrices[0][-1]):
            level = np.mean([np.mean(matrix[-1]) for matrix in matrices])
            average.axhline(level, color=colour, linestyle="--", linewidth=1.2, label=method)
            continue
        learned = range(1, len(matrices[0]) + 1)
        for axes, value in ((average, np.mean), (first, lambda row: row[0])):
            means = np.mean([[value(row) for row in matrix] for matrix in matrices], axis=0)
            style = {"linewidth": 1.4, "marker": "o", "markersize": 3}
            axes.plot(learned, means, color=colour, label=method, **style)
    for axes, title in ((average, "Mean accuracy of the tasks learned so far"), (first, "Accuracy of the first task")):
        axes.set_ylabel("test accuracy")
        axes.yaxis.set_major_formatter(_percent_formatter())
        axes.set_title(title, loc="left", fontsize=10)
    first.set_xlabel("tasks learned")
    _legend(figure, average, None)
    return figure


def _ends(rows: Sequence[Metric]) -> dict[int, float]:
    """When each task's last row was written, in seconds."""
    return {row.task: row.seconds for row in rows}


def _time_unit(rows: Sequence[Metric]) -> tuple[str, float]:
    """The unit that a time axis up to the last row is labelled with, and its seconds."""
    last = rows[-1].seconds
    return ("hours", 3600.0) if last > 2 * 3600 else ("minutes", 60.0) if last > 120 else ("seconds", 1.0)


def _moving(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the window around each value, and one standard deviation below and above it, within [0, 1]."""
    windows = [values[max(0, index - WINDOW // 2) : index + WINDOW // 2 + 1] for index in range(len(values))]
    mean = np.array([np.mean(window) for window in windows])
    deviation = np.array([np.std(window) for window in windows])
    return mean, np.maximum(mean - deviation, 0), np.minimum(mean + deviation, 1)


def _figure(width: float, height: float, rows: int = 1):
    """A figure of `rows` axes with a shared time axis, in inches, and the axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures need matplotlib: pip install 'eidetic-kernels[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    return figure, all_axes


def _colours(count: int) -> list[tuple[float, ...]]:
    """One colour a task, dark to light in the order of learning: told apart without seeing hue."""
    from matplotlib import colormaps

    return [tuple(colour) for colour in colormaps["viridis"](np.linspace(0, 0.92, max(count, 1)))]


def _task_boundaries(axes, ends: dict[int, float], scale: float, colour: str) -> None:
    for end in ends.values():
        axes.axvline(end / scale, color=colour, linewidth=0.6, linestyle=(0, (2, 2)))


def _legend(figure, axes, title: str | None, reverse: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    entries = max(1, int(5.5 * (figure.get_figheight() - 0.4)))  # that fit one below the other
    figure.legend(
        handles[::-1] if reverse else handles,
        labels[::-1] if reverse else labels,
        loc="outside right upper",
        title=title,
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        ncols=-(-len(labels) // entries),
    )


def _percent_formatter():
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _: f"{100 * share:.4g} %")


def _count_formatter():
    from matplotlib.ticker import StrMethodFormatter

    return StrMethodFormatter("{x:,.0f}")
