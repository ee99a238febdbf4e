"""The figure of the staircase: a layer's weight matrix coloured by the task that owns each row.

Rows are the layer's units, columns the units that it reads, both sorted by owner. A block of full colour is what a
task's units read of the same task's units; a lighter block is what they read of earlier tasks' units (forward
transfer). Where the matrix is white there is no synapse: no task reads a later one's units (resistance).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

from eidetic_kernels.checking import a_list, instance, nearest, require, shown
from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import StaircaseLayer
from eidetic_kernels.layout import Fixed, Segments
from eidetic_kernels.tasks.base import BaseNetwork

from .folder import RunFolder, open_run
from .networks import load_network
from .style import FREE, NOTE, SMALL, TEXT, TITLE, Colour, new_figure, set_legend, task_colours, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = 10  # drawn at most
COLUMNS = 5  # panels side by side
SIDE = 1.65  # inches, of a panel that is one of many
NO_OWNER = -1  # of columns: the network's own input, which every task may read


class Block(NamedTuple):
    """Rows [top, bottom) of task ``task`` over columns [left, right) of the units of task ``reads``."""

    task: int
    reads: int
    top: int
    bottom: int
    left: int
    right: int


class Staircase(NamedTuple):
    """A layer's weight matrix as blocks, within ``rows`` units over ``columns`` columns, free ones not counted.

    ``tasks`` have units, the last of them live where ``live``. ``width`` is how many units the layer may hold.
    """

    blocks: tuple[Block, ...]
    rows: int
    columns: int
    width: int
    tasks: int
    live: bool


def staircase(networks: BaseNetwork | Sequence[BaseNetwork], layer: str | None = None):
    """The staircase of one layer as a matplotlib Figure; several networks (one after each task) are drawn side by side.

    ``layer``: a linear layer or convolution, by its path (as in ``network.named_modules()``). Left out, it is the
    first one that reads other layers' units: there, rows and columns both have owners.

    Raises InputError for a path that is no such layer, and without matplotlib.
    """
    given = [networks] if isinstance(networks, BaseNetwork) else a_list("networks", networks, "networks to draw")
    networks = [instance("a network", each, BaseNetwork, "an EideticNetwork") for each in given]
    require(bool(networks), "networks must be one or more to draw", networks)
    path = choose_layer(networks[-1]) if layer is None else layer
    return _draw([staircase_of(network, path) for network in networks], path)


def staircase_of_run(run: RunFolder | str | PathLike[str], layer: str | None = None):
    """The staircase of a run as a matplotlib Figure, after each task, from the run's checkpoints.

    ``layer`` as in :func:`staircase`. Of more than ten tasks some are left out, evenly. Raises InputError if the run
    has no checkpoint.
    """
    run = open_run(run)
    learned = checkpoints(run)
    if not learned:
        raise InputError(f"{run.path} has no checkpoint recorded yet: finish a task first.")
    last = load_network(run, learned[-1])
    path = choose_layer(last) if layer is None else layer

    shown = _evenly(learned, PANELS)
    before = [staircase_of(load_network(run, task), path) for task in shown[:-1]]
    return _draw([*before, staircase_of(last, path)], path)


def checkpoints(run: RunFolder) -> list[int]:
    """The tasks whose network is in the run folder, each as it was after that task."""
    tasks = sorted({row.learned for row in run.tests})
    return [task for task in tasks if run.checkpoint_path(task).is_file()]


def choose_layer(network: BaseNetwork) -> str:
    """The path of the first layer all of whose columns have owners, or else of the first layer.

    Raises InputError for a network that has no linear layer or convolution.
    """
    layers = {path: layer for group in network.groups for path, layer in group.producers.items() if _is_drawn(layer)}
    for path, layer in layers.items():
        if all(isinstance(source.group, Segments) for source in layer.sources):
            return path
    if not layers:
        raise InputError(f"{type(network).__name__} has no linear layer or convolution whose staircase can be drawn.")
    return next(iter(layers))


def staircase_of(network: BaseNetwork, path: str) -> Staircase:
    """What :func:`staircase` draws of one layer. Raises InputError if there is no such layer at ``path``."""
    layers = {path: layer for group in network.groups for path, layer in group.producers.items() if _is_drawn(layer)}
    if path not in layers:
        raise InputError(
            f"there is no layer {shown(path)} to draw{nearest(path, layers)}; there are: {', '.join(layers)}."
        )
    layer = layers[path]
    units = layer.segments
    owners = units.tasks + (units.live > 0)
    blocks: list[Block] = []
    offset = 0

    for source in layer.sources:
        for task in range(owners):
            read = source.span(task, layer.forward_transfer[task])
            for reads, left, right in _owned(source.group, source.block):
                left, right = max(left, read.start), min(right, read.stop)
                if left < right and units.size(task):
                    top = units.start(task)
                    blocks.append(Block(task, reads, top, top + units.size(task), offset + left, offset + right))
        offset += source.columns(None)
    return Staircase(tuple(blocks), units.total, offset, units.width, owners, units.live > 0)


def _is_drawn(layer: object) -> bool:
    return isinstance(layer, StaircaseLayer)


def _owned(group: Segments | Fixed, block: int) -> Iterable[tuple[int, int, int]]:
    """The columns that each task owns of a source, as (task, start, stop)."""
    if isinstance(group, Fixed):
        return [(NO_OWNER, 0, group.present(None) * block)]
    return [(t, group.start(t) * block, group.stop(t) * block) for t in range(group.tasks + (group.live > 0))]


def _evenly(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _draw(panels: Sequence[Staircase], path: str):
    """One axes for each panel, all to the scale of the last, and a legend of tasks."""
    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    side = 4.2 if len(panels) == 1 else max(SIDE, 5.4 / columns)
    figure, all_axes = new_figure(columns * side + 2.1, rows * (side + 0.25) + 0.6, rows, columns)
    figure.set_layout_engine("compressed")  # made for axes whose shape is fixed
    height, width = max(panel.rows for panel in panels), max(panel.columns for panel in panels)
    colours = task_colours(max(panel.tasks for panel in panels))

    for axes, panel in zip(all_axes, panels):
        _draw_panel(axes, panel, colours)
        axes.set_xlim(0, max(width, 1))
        axes.set_ylim(max(height, 1), 0)
        axes.set_box_aspect(1)
        if len(panels) > 1:
            finished = panel.tasks - panel.live
            axes.set_title(f"after task {finished - 1}", fontsize=SMALL, loc="left", pad=3)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()

    last = panels[-1]
    figure.suptitle(
        f"The staircase of layer {path}: {last.rows:,} of {last.width:,} units are used",
        fontsize=TITLE,
        x=0.01,
        ha="left",
    )
    figure.supxlabel("units read, sorted by the task that owns them", fontsize=TEXT)
    figure.supylabel("units of the layer, sorted likewise", fontsize=TEXT)
    set_legend(figure, _entries(panels, colours), "weights owned by")
    return figure


def _draw_panel(axes: Axes, panel: Staircase, colours: Sequence[Colour]) -> None:
    from matplotlib.patches import Rectangle

    for block in panel.blocks:
        own = block.reads in (block.task, NO_OWNER)
        axes.add_patch(
            Rectangle(
                (block.left, block.top),
                block.right - block.left,
                block.bottom - block.top,
                facecolor=colours[block.task] if own else tint(colours[block.task]),
                edgecolor="white",
                linewidth=0.6,
            )
        )
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FREE)
    axes.set_xticks([])
    axes.set_yticks([])


def _entries(panels: Sequence[Staircase], colours: Sequence[Colour]) -> list:
    """The legend: a task a line, then what light and white areas mean, where there are any."""
    from matplotlib.patches import Patch

    tasks, live = panels[-1].tasks, panels[-1].live
    names = [f"task {task}" + (" (live)" if live and task == tasks - 1 else "") for task in range(tasks)]
    entries = [(Patch(facecolor=colour), name) for colour, name in zip(colours, names)]

    blocks = [block for panel in panels for block in panel.blocks]
    if any(block.reads not in (block.task, NO_OWNER) for block in blocks):
        entries.append((Patch(facecolor=tint(colours[len(colours) // 2])), "light: reads earlier tasks"))
    entries.append((Patch(facecolor="white", edgecolor=NOTE, linewidth=0.6), "white: no synapse"))
    return entries
