"""The style of every figure: size, colours, titles, legends and number formats, in one place.

matplotlib (the extra ``plots``) is imported when a figure is made. Figures are made without pyplot: no display is
needed, no global state is touched, and a figure that is dropped is freed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eidetic_kernels.errors import InputError

from .tables import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

Colour = tuple[float, float, float]  # red, green and blue, each in [0, 1]

DPI = 150
WIDTH = 8.6  # inches, of most figures

FROZEN, LIVE, FREE = "#31688e", "#f0ad2e", "#e8e8e8"  # units by what they are doing
STRONG, MUTED, REFERENCE = "#d1495b", "#9aa0a6", "#3c4043"  # ours, other methods, and what both are measured against
GRID, BOUNDARY, NOTE = "#dddddd", "#999999", "#666666"

TITLE, TEXT, SMALL = 10, 9, 8  # points


class LineEnd(NamedTuple):
    """A line's name, the height (in data coordinates) of its last point, and its colour."""

    name: str
    y: float
    colour: str


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` by ``height`` inches and its axes, row by row; those of a column share their x axis.

    Raises InputError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "figures need matplotlib, which is not installed: pip install 'eidetic-kernels[plots]'."
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    all_axes = figure.subplots(rows, columns, sharex="col", squeeze=False).flatten().tolist()

    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=TEXT)
    return figure, all_axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the file is the old one or the new one, never a part of either."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_bytes(path, content.getvalue())


def set_title(axes: Axes, title: str, note: str = "") -> None:
    """Put a title above the axes, and under it a note in grey: what is drawn, for somebody who sees it first."""
    axes.set_title(title, loc="left", fontsize=TITLE, pad=20 if note else None)
    if note:
        axes.annotate(
            note,
            (0, 1),
            xytext=(0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=SMALL,
            color=NOTE,
        )


def set_legend(figure: Figure, entries: Sequence[tuple[Any, str]], title: str | None = None) -> None:
    """A legend of (handle, label) pairs on the figure's right, in as many columns as its height asks for."""
    fitting = max(1, int(5.5 * (figure.get_figheight() - 0.4)))  # entries below each other
    figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside right upper",
        title=title,
        fontsize=SMALL,
        title_fontsize=SMALL,
        frameon=False,
        ncols=-(-len(entries) // fitting),
    )


def name_lines(axes: Axes, ends: Sequence[LineEnd], height: float) -> None:
    """Write every line's name to the right of its end, joined to it by a thin line; names are moved apart vertically.

    ``height``: of the axes, in inches. The axes' limits must be set before, and stay as they are.
    """
    low, high = axes.get_ylim()
    gap = 1.25 * SMALL / 72 / height * (high - low)
    ordered = sorted(ends, key=lambda end: end.y)
    places = _apart([end.y for end in ordered], gap, low, high)

    for end, place in zip(ordered, places):
        axes.annotate(
            end.name,
            xy=(1, end.y),
            xytext=(1.045, place),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            color=end.colour,
            fontsize=SMALL,
            fontweight="bold" if end.colour == STRONG else "normal",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "linewidth": 0.6,
                "relpos": (0, 0.5),  # from the middle of the text's left side
                "shrinkA": 1,
                "shrinkB": 1,
            },
            annotation_clip=False,
        )


def _apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending ``values``, moved as little as pushing neighbours apart takes, at least ``gap`` between them.

    Values too close together become a block, evenly spaced around their mean; blocks that meet are merged.
    """
    blocks: list[list[float]] = []  # of the values in each

    def centre(block: list[float]) -> float:
        half = gap * (len(block) - 1) / 2
        return min(max(sum(block) / len(block), low + half), high - half)

    for value in values:
        blocks.append([value])
        while len(blocks) > 1:
            below, above = blocks[-2:]
            if centre(above) - centre(below) >= gap * (len(below) + len(above)) / 2:
                break
            blocks[-2:] = [below + above]

    return [centre(block) + gap * (i - (len(block) - 1) / 2) for block in blocks for i in range(len(block))]


def task_colours(count: int) -> list[Colour]:
    """One colour for each task, dark to light in the order of learning: told apart without seeing hue."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0, 0.92, max(count, 1)))
    return [(float(red), float(green), float(blue)) for red, green, blue, _ in shades]


def tint(colour: Colour, strength: float = 0.38) -> Colour:
    """``colour`` mixed with white; ``strength``, in [0, 1], is how much of the colour is left."""
    red, green, blue = (1 - strength * (1 - part) for part in colour)
    return red, green, blue


def percent_formatter() -> Formatter:
    """For axes of numbers in [0, 1]: "97.5 %"."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda number, _: f"{100 * number:.4g} %")


def count_formatter() -> Formatter:
    """For axes of counts: "2,000"."""
    from matplotlib.ticker import StrMethodFormatter

    return StrMethodFormatter("{x:,.0f}")
