"""Figures of the made-up run: what is drawn, where it is written, and that no display is asked for."""

import builtins
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.runs import plots

pytest.importorskip("matplotlib")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def data_lines(axes):
    """Lines with data, the dashed boundaries between tasks left out."""
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def test_accuracy_over_time_draws_a_curve_for_every_task(made_up_run):
    figure = plots.accuracy_over_time(made_up_run)
    training, testing = figure.axes
    assert legend(figure) == ["task 0", "task 1", "task 2"]
    lines = data_lines(training)
    np.testing.assert_allclose(lines[1].get_xdata(), [12.0, 14.0, 16.0, 19.5])
    np.testing.assert_allclose(lines[1].get_ydata(), [0.7375] * 4)  # windows of ten around [0.5, 0.7, 0.9, 0.85]
    assert len(training.collections) == 3  # bands

    lines = data_lines(testing)
    np.testing.assert_allclose(lines[0].get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(lines[0].get_ydata(), [0.9, 0.9, 0.9])
    np.testing.assert_allclose(lines[2].get_xdata(), [30])
    assert lines[0].get_color() == data_lines(training)[0].get_color()
    assert testing.get_xlabel().startswith("time (seconds)")
    assert testing.get_ylabel() == "accuracy"


def test_what_lines_and_bands_are_is_written_on_the_figure(made_up_run):
    training, testing = plots.accuracy_over_time(made_up_run).axes
    (note,) = [text.get_text() for text in training.texts]
    assert f"moving average over {plots.WINDOW} epochs" in note and "band: one standard deviation" in note
    assert all(axes.get_title(loc="left") for axes in (training, testing))


def test_the_moving_average_covers_ten_epochs_as_in_figure_1():
    mean, _, _ = plots._moving([*range(20)])
    np.testing.assert_allclose(mean[[0, 9, 19]], [2.0, 8.5, 16.5])


def test_the_band_is_one_standard_deviation_and_stays_an_accuracy():
    mean, low, high = plots._moving([1.0, 1.0, 0.4])
    np.testing.assert_allclose(mean, 0.8)
    np.testing.assert_allclose(low, 0.8 - np.std([1.0, 1.0, 0.4]))
    np.testing.assert_allclose(high, 1.0)


def test_units_over_time_stacks_frozen_live_and_free_units_to_the_width(made_up_run):
    figure = plots.units_over_time(made_up_run)
    (axes,) = figure.axes
    assert legend(figure) == ["pruned, free", "live (task in training)", "frozen (finished tasks)"]
    assert axes.get_ylim() == (0, 30)

    def owner(second, units):
        areas = {"frozen": axes.collections[0], "live": axes.collections[1], "free": axes.collections[2]}
        (name,) = (n for n, area in areas.items() if area.get_paths()[0].contains_point((second, units)))
        return name

    # Task 0 trains all 30 units and keeps 8, task 1 trains the other 22 and keeps 4 of them.
    at = {
        1.0: {0.1: "live", 29.9: "live"},
        8.0: {7.9: "live", 8.1: "free", 29.9: "free"},
        15.0: {7.9: "frozen", 8.1: "live", 29.9: "live"},
        18.0: {7.9: "frozen", 8.1: "live", 11.9: "live", 12.1: "free"},
        25.0: {11.9: "frozen", 12.1: "live"},
    }
    for second, expected in at.items():
        assert {units: owner(second, units) for units in expected} == expected
    assert axes.get_ylabel() == "units"


def test_capacity_draws_a_bar_for_every_layer_and_task(made_up_run):
    figure = plots.capacity(made_up_run)
    (axes,) = figure.axes
    assert legend(figure) == ["task 0", "task 1", "task 2", "free"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    widths = [[bar.get_width() for bar in group] for group in axes.containers]
    np.testing.assert_allclose(widths, [[5 / 20, 3 / 10], [4 / 20, 0], [6 / 20, 2 / 10], [5 / 20, 5 / 10]])
    starts = [[bar.get_x() for bar in group] for group in axes.containers]
    np.testing.assert_allclose(starts, [[0, 0], [0.25, 0.3], [0.45, 0.3], [0.75, 0.5]])
    assert [text.get_text() for text in axes.texts][:2] == ["15 of 20", "5 of 10"]


def test_the_matrix_shows_every_score_and_nothing_before_a_task_was_learned(made_up_run):
    figure = plots.accuracy_matrix(made_up_run)
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[0.9, np.nan, np.nan], [0.9, 0.75, np.nan], [0.9, 0.75, 0.8]])
    assert [text.get_text() for text in axes.texts][:6] == ["90.0", "90.0", "75.0", "90.0", "75.0", "80.0"]
    assert axes.get_title(loc="left") == "Test accuracy (%) after each task"


def test_accuracy_by_class_is_a_dot_for_the_task_given_and_a_ring_for_the_router(made_up_run):
    (axes,) = plots.class_accuracy(made_up_run).axes
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    given, routed = lines[2:4]  # of task 1, whose classes stand behind a gap
    np.testing.assert_allclose(given.get_xdata(), [3, 4])
    np.testing.assert_allclose(given.get_ydata(), [0.79, 0.69])
    np.testing.assert_allclose(routed.get_ydata(), [0.7, 0.69])
    assert routed.get_markerfacecolor() == "none" and given.get_color() == routed.get_color()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1"] * 3


def test_figures_of_a_run_whose_labels_were_cut_short_say_which_file_it_is(made_up_run):
    inputs = made_up_run.inputs
    made_up_run.record_inputs(replace(inputs, labels=inputs.labels[:2]))
    with pytest.raises(InputError, match=r"inputs.json has no label of class 0 of task 2"):
        plots.class_accuracy(made_up_run)


def test_a_run_without_accuracy_by_class_has_all_other_figures(made_up_run):
    """As runs of earlier versions."""
    (made_up_run.path / "classes.csv").unlink()
    names = [path.stem for path in plots.all_figures(made_up_run)]
    assert names == [name for name in plots.FIGURES if name != "class_accuracy"]
    with pytest.raises(InputError, match="no accuracy by class recorded"):
        plots.class_accuracy(made_up_run)


@pytest.mark.parametrize(("last", "unit"), [(119, "seconds"), (600, "minutes"), (10_000, "hours")])
def test_the_time_axis_has_a_unit_to_its_measure(made_up_run, last, unit):
    made_up_run.append_metric(**made_up_run.metrics[0]._replace(seconds=float(last), task=3)._asdict())
    axes = plots.units_over_time(made_up_run).axes[0]
    assert axes.get_xlabel() == f"time ({unit})"
    scale = {"seconds": 1, "minutes": 60, "hours": 3600}[unit]
    assert axes.get_xlim()[1] == pytest.approx(last / scale)


def test_all_figures_are_written_as_png(made_up_run, tmp_path):
    from matplotlib.image import imread

    paths = plots.all_figures(made_up_run.path, tmp_path / "drawn")
    assert [path.name for path in paths] == [f"{name}.png" for name in plots.FIGURES]
    for path in paths:
        image = imread(path)
        assert min(image.shape[:2]) > 200
        assert len(np.unique(image[::5, ::5].reshape(-1, image.shape[2]), axis=0)) > 10  # something is drawn


def test_figures_go_to_the_run_folder_by_default(made_up_run):
    assert {path.parent for path in plots.all_figures(made_up_run)} == {made_up_run.figures_path}


def test_drawing_uses_no_pyplot(made_up_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    assert all(path.is_file() for path in plots.all_figures(made_up_run))


def test_a_task_in_training_can_be_drawn(made_up_run):
    made_up_run.truncate_after(1)
    made_up_run.append_metric(**made_up_run.metrics[0]._replace(seconds=21.0, task=2)._asdict())
    assert all(path.is_file() for path in plots.all_figures(made_up_run))


def test_without_checkpoints_the_staircase_is_left_out(made_up_run):
    shutil.rmtree(made_up_run.path / "checkpoints")  # as a sweep does once a trial is over
    names = [path.stem for path in plots.all_figures(made_up_run)]
    assert names == [name for name in plots.FIGURES if name != "staircase"]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_a_run_that_recorded_nothing_says_so(new_run, name):
    with pytest.raises(InputError, match="recorded yet"):
        plots.FIGURES[name](new_run)


def test_a_missing_matplotlib_is_explained(made_up_run, monkeypatch):
    original = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(InputError, match=r"eidetic-kernels\[plots\]"):
        plots.capacity(made_up_run)
