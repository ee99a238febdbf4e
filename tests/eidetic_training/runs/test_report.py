"""The report's numbers, checked against the made-up run in conftest.py."""

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.runs import report
from eidetic_training.runs.inputs import Inputs
from eidetic_training.training.accuracy import ClassCount


def test_every_task_is_summed_up(made_up_run):
    result = report.summary(made_up_run)
    assert [task.task for task in result.tasks] == [0, 1, 2]
    assert [task.learned for task in result.tasks] == [0.9, 0.75, 0.8]
    assert [task.end for task in result.tasks] == [0.9, 0.75, 0.8]
    assert [task.forgetting for task in result.tasks] == [0, 0, 0]
    assert [task.epochs for task in result.tasks] == [4, 4, 4]
    assert [task.seconds for task in result.tasks] == pytest.approx([10, 10, 10])
    assert result.mean_learned == result.mean_end == pytest.approx((0.9 + 0.75 + 0.8) / 3)
    assert result.forgetting == 0
    assert (result.epochs, result.router_epochs, result.seconds) == (12, 1, 35.0)


def test_capacity_is_counted_by_layer_and_task(made_up_run):
    first, second = report.summary(made_up_run).layers
    assert (first.name, first.width, first.units, first.kept, first.free) == ("first", 20, (5, 4, 6), 15, 5)
    assert (second.name, second.width, second.units, second.kept, second.free) == (
        "second",
        10,
        (3, 0, 2),
        5,
        5,
    )


def test_the_end_is_what_was_measured_after_the_latest_task(made_up_run):
    made_up_run.record_test(learned=3, task=0, accuracy=0.85)
    made_up_run.record_test(learned=3, task=1, accuracy=0.8)
    result = report.summary(made_up_run)
    assert [task.end for task in result.tasks] == [0.85, 0.8, 0.8]
    assert result.tasks[0].forgetting == 0.9 - 0.85
    assert result.tasks[1].forgetting == 0.75 - 0.8
    assert result.forgetting == 0.9 - 0.85
    assert "+5.00%" in report.table(made_up_run)
    assert "-5.00%" in report.table(made_up_run)


def test_the_smallest_forgetting_is_not_shown_as_none(made_up_run):
    made_up_run.record_test(learned=3, task=0, accuracy=0.9 - 2e-6)
    line = report.table(made_up_run).splitlines()[2]
    assert line.split()[:4] == ["0", "90.00%", "90.00%", "+2.0e-04%"]


def test_the_table_reads_as_the_documentation_has_it(made_up_run):
    assert report.table(made_up_run).splitlines() == [
        "task  learned  at the end  forgotten  epochs    time  routed",
        "------------------------------------------------------------",
        "0      90.00%      90.00%          0       4  10.0 s  80.00%",
        "1      75.00%      75.00%          0       4  10.0 s  70.00%",
        "2      80.00%      80.00%          0       4  10.0 s  75.00%",
        "------------------------------------------------------------",
        "mean   81.67%      81.67%          0     4.0  10.0 s  75.00%",
        "",
        "router: the right task for 87.50% of the test inputs, the right answer for 75.00% "
        "(81.67% with the task given)",
        "",
        "units kept by task  0  1  2  all  free  width",
        "---------------------------------------------",
        "first               5  4  6   15     5     20",
        "second              3  0  2    5     5     10",
    ]


def test_without_a_router_nothing_is_said_of_it(made_up_run):
    made_up_run.truncate_after(2)
    text = report.table(made_up_run.path)
    assert "rout" not in text
    assert report.summary(made_up_run).router is None


def test_a_task_cut_short_is_not_reported(made_up_run):
    row = made_up_run.metrics[0]
    made_up_run.truncate_after(1)
    made_up_run.append_metric(**row._replace(seconds=21.0, task=2)._asdict())
    assert [task.task for task in report.summary(made_up_run).tasks] == [0, 1]
    assert report.summary(made_up_run).seconds == 21.0


def test_before_the_first_task_there_is_nothing_to_report(new_run):
    with pytest.raises(InputError, match="no finished task yet"):
        report.table(new_run)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (187, "3 min 07 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert report.duration(seconds) == text


def test_accuracy_by_class_as_text(made_up_run):
    lines = report.classes_table(made_up_run).splitlines()
    assert lines[0].split() == ["class", "samples", "task", "given", "routed", "lost"]
    assert lines[2].split() == ["task", "0,", "0", "100", "94.00%", "80.00%", "+14.00%"]
    assert lines[5].split() == ["task", "1,", "1", "100", "69.00%", "69.00%", "0"]
    assert lines[-1].split() == ["mean", "80.67%", "74.00%", "+6.67%"]


def test_accuracy_by_class_before_a_router_is_trained(new_run):
    new_run.record_inputs(Inputs((1, 2, 2), (0.5,), (0.5,), ((7, 8),)))
    with pytest.raises(InputError, match="has no accuracy by class"):
        report.classes_table(new_run)
    new_run.record_classes(0, [ClassCount(3, 3), ClassCount(0, 1)])
    assert report.classes_table(new_run).splitlines()[2].split() == ["task", "0,", "7", "3", "100.00%"]
