"""The figure of the staircase: every block lies where the layer's mask is true, coloured by the row's owner."""

import numpy as np
import pytest
import torch
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
from eidetic_training.runs import plots
from eidetic_training.runs import staircase_figure as module
from eidetic_training.runs.staircase_figure import choose_layer, staircase_of
from eidetic_training.runs.style import task_colours, tint

pytest.importorskip("matplotlib")


class Net(ek.EideticNetwork):
    """Convolutions, a flattened input and two sources side by side."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(ek.EideticConv2d(3, 8, 3), ek.EideticBatchNorm2d(8), nn.ReLU())
        self.second = ek.EideticConv2d(8, 10, 3, padding=1)
        self.joined = ek.EideticConv2d(10 + 8, 9, 3)
        self.flat = ek.EideticLinear(9 * 4, 12)

    def forward(self, x):
        x = self.first(x)
        x = self.joined(torch.cat([self.second(x), x], 1))
        return self.flat(x.relu().flatten(1))


def learned(choices, live=False):
    """A network after a task for each choice of nested (True) or disjoint reading, the last one still live."""
    net = Net()
    for t, nested in enumerate(choices):
        net.prepare_for_task(t, 2, forward_transfer=nested, max_units=0.25)
        net(torch.randn(3, 3, 6, 6))
        if not live or t < len(choices) - 1:
            net.finish_task()
    return net


def drawn(axes):
    """The blocks of a panel, by what they cover: (left, top, right, bottom) and the colour."""
    return [
        (patch.get_x(), patch.get_y(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height(),
         patch.get_facecolor()[:3])
        for patch in axes.patches
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["first.0", "second", "flat", "joined"])
@pytest.mark.parametrize("choices", [(True,), (True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.parametrize("live", [False, True])
def test_what_is_coloured_is_the_mask(path, choices, live):
    net = learned(choices, live)
    layer = net.get_submodule(path)
    (axes,) = plots.staircase(net, path).axes
    mask = layer.mask()
    covered = np.zeros(mask.shape, dtype=int)
    owners, colours = np.full(mask.shape[0], -1), task_colours(len(choices))
    for task in range(len(choices)):
        owners[layer.segments.start(task) : layer.segments.stop(task)] = task

    for left, top, right, bottom, colour in drawn(axes):
        covered[top:bottom, left:right] += 1
        (task,) = set(owners[top:bottom])
        assert any(np.allclose(colour, each) for each in (colours[task][:3], tint(colours[task])))
    assert np.array_equal(covered, mask.int().numpy())
    assert axes.get_xlim() == (0, mask.shape[1]) and axes.get_ylim() == (mask.shape[0], 0)


def test_what_is_read_of_earlier_tasks_is_lighter():
    (axes,) = plots.staircase(learned((True, True)), "second").axes
    first, second = (colour[:3] for colour in task_colours(2))
    found = {(left, top): colour for left, top, _, _, colour in drawn(axes)}
    columns, rows = 2, 2  # a quarter of 8 and of 10 units
    assert len(found) == 3
    np.testing.assert_allclose(found[0, 0], first)
    np.testing.assert_allclose(found[0, rows], tint(second))
    np.testing.assert_allclose(found[columns, rows], second)


def test_the_layer_drawn_is_the_first_that_reads_units():
    net = learned((True, True))
    assert choose_layer(net) == "second"
    figure = plots.staircase(net)
    assert figure.get_suptitle() == "The staircase of layer second: 4 of 10 units are used"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "task 0",
        "task 1",
        "light: reads earlier tasks",
        "white: no synapse",
    ]
    alone = ek.convert(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4))
    assert choose_layer(alone) == next(iter(alone.groups[0].producers))


def test_a_live_task_is_named_so_and_disjoint_tasks_read_nothing_earlier():
    figure = plots.staircase(learned((False, False), live=True))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["task 0", "task 1 (live)", "white: no synapse"]


def test_several_networks_are_panels_of_one_scale():
    figure = plots.staircase([learned((True,) * tasks) for tasks in (1, 2, 3)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["after task 0", "after task 1", "after task 2"]
    assert [len(axes.patches) for axes in figure.axes] == [1, 3, 6]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1


def test_a_task_without_units_takes_no_row_and_keeps_its_name():
    net = learned((True,))
    net.prepare_for_task(1, 2, max_units={"first.0": 0.25, "second": 0, "joined": 0.25, "flat": 0.25})
    net.finish_task()
    net.prepare_for_task(2, 2, max_units=0.25)
    net.finish_task()
    stairs = staircase_of(net, "second")
    assert {block.task for block in stairs.blocks} == {0, 2} and stairs.tasks == 3
    plots.staircase(net)


def test_a_run_s_staircase_has_a_panel_a_task(made_up_run):
    figure = plots.staircase_of_run(made_up_run)
    assert figure.get_suptitle() == "The staircase of layer body.2: 12 of 20 units are used"
    assert [len(axes.patches) for axes in figure.axes] == [1, 3, 6]


def test_of_many_tasks_panels_are_drawn_evenly():
    assert module._evenly([0, 1, 2], 10) == [0, 1, 2]
    assert module._evenly(list(range(50)), 5) == [0, 12, 24, 37, 49]


def test_what_cannot_be_drawn_is_refused(made_up_run):
    with pytest.raises(InputError, match="there is no layer 'third' to draw; there are: first.0, second, joined, flat"):
        plots.staircase(learned((True,)), "third")
    with pytest.raises(InputError, match="networks must be one or more to draw"):
        plots.staircase([])
    made_up_run.truncate_after(-1)
    with pytest.raises(InputError, match="no checkpoint recorded yet"):
        plots.staircase_of_run(made_up_run)
