"""The figure of a comparison: ours in colour, the other methods in grey, each named at the end of its line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..runs.style import (
    MUTED,
    REFERENCE,
    STRONG,
    LineEnd,
    name_lines,
    new_figure,
    percent_formatter,
    set_title,
)
from .comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "eidetic"
BOUNDS = ("single", "joint", "sequential")  # two upper bounds and the lower one
WIDTH, HEIGHT = 8.6, 8.0  # inches
LEFT, RIGHT, BOTTOM, TOP, BETWEEN = 0.85, 1.25, 0.55, 0.55, 0.65


def comparison(compared: Comparison) -> Figure:
    """Methods side by side as a matplotlib Figure, means over seeds.

    Above, mean test accuracy of all tasks learned so far; below, that of the first task while others are learned. Our
    method is drawn in colour and bold, the others in grey, upper and lower bounds in dark grey. A method that learns
    all tasks at once has no accuracy "so far": it is a dashed line above, and absent below.

    Raises InputError without matplotlib.
    """
    figure, (average, first) = new_figure(WIDTH, HEIGHT, rows=2)
    height = (HEIGHT - BOTTOM - TOP - BETWEEN) / 2
    figure.set_layout_engine(None)  # names are placed by the axes' height, which must not change afterwards
    figure.subplots_adjust(
        left=LEFT / WIDTH,
        right=1 - RIGHT / WIDTH,
        bottom=BOTTOM / HEIGHT,
        top=1 - TOP / HEIGHT,
        hspace=BETWEEN / height,
    )
    seeds = max(len(compared.of(method)) for method in compared.methods)
    over = f"mean over {seeds} seeds" if seeds > 1 else "one seed"

    for axes, title, value in (
        (average, "Mean test accuracy of the tasks learned so far", np.mean),
        (first, "Test accuracy of the first task while others are learned", lambda row: row[0]),
    ):
        ends = _draw(axes, compared, value, at_once=axes is average)
        axes.set_xlim(right=axes.dataLim.x1)  # lines end where their names begin
        axes.yaxis.set_major_formatter(percent_formatter())
        axes.set_ylabel("test accuracy")
        set_title(axes, title, over)
        axes.set_ylim(axes.get_ylim())
        name_lines(axes, ends, height)
    first.set_xlabel("tasks learned")
    return figure


def _draw(axes: Axes, compared: Comparison, value: Callable[[Sequence[float]], float], at_once: bool) -> list[LineEnd]:
    """One line for each method; returns their ends."""
    ends = []
    for method in sorted(compared.methods, key=lambda name: name == OURS):  # ours last, above the others
        colour = STRONG if method == OURS else REFERENCE if method in BOUNDS else MUTED
        matrices = [result.matrix for result in compared.of(method)]

        if len(matrices[0]) < len(matrices[0][-1]):
            if at_once:
                level = float(np.mean([np.mean(matrix[-1]) for matrix in matrices]))
                axes.axhline(level, color=colour, linestyle="--", linewidth=1.2, label=method)
                ends.append(LineEnd(method, level, colour))
            continue

        means = np.mean([[value(row) for row in matrix] for matrix in matrices], axis=0)
        width = 2.6 if method == OURS else 1.2
        learned = range(1, len(means) + 1)
        axes.plot(learned, means, color=colour, linewidth=width, marker="o", markersize=1.8 * width, label=method)
        ends.append(LineEnd(method, float(means[-1]), colour))
    return ends
