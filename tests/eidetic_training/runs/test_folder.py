"""The run folder: what is written reads back, what was cut short is dropped, what differs is refused."""

import json
import math

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.runs import CapacityEntry, Metric, RouterScore, RunFolder, TaskScore
from eidetic_training.runs import folder as runs
from eidetic_training.runs.answers import Recorded

CONFIG = {"seed": 0, "model": {"name": "mlp", "width": 20}}  # of the fixtures' runs
ROW = {
    "seconds": 0.1 + 0.2,
    "task": 0,
    "phase": "train",
    "epoch": 1,
    "step": 16,
    "loss": 1 / 3,
    "train_accuracy": 0.7,
    "live_units": 30,
    "frozen_units": 0,
    "width": 30,
}


def test_a_metric_reads_back_as_the_same_bits(new_run):
    new_run.append_metric(**ROW)
    assert new_run.metrics == [Metric(**ROW)]
    assert new_run.seconds == 0.1 + 0.2


def test_an_unknown_float_reads_back_as_nan(new_run):
    new_run.append_metric(**{**ROW, "loss": None})
    assert math.isnan(new_run.metrics[0].loss)


def test_the_csv_files_have_the_documented_columns(made_up_run):
    first_lines = {
        name: (made_up_run.path / f"{name}.csv").read_text().splitlines()[0]
        for name in ("metrics", "tests", "capacity")
    }
    assert first_lines == {
        "metrics": "seconds,task,phase,epoch,step,loss,train_accuracy,live_units,frozen_units,width",
        "tests": "learned,task,accuracy",
        "capacity": "task,layer,width,units",
    }


def test_everything_recorded_reads_back(made_up_run):
    run = RunFolder(made_up_run.path)
    assert len(run.metrics) == 3 * 6 + 1
    assert run.tests[-3:] == [TaskScore(2, 0, 0.9), TaskScore(2, 1, 0.75), TaskScore(2, 2, 0.8)]
    assert run.capacity == [
        CapacityEntry(0, "first", 20, 5),
        CapacityEntry(0, "second", 10, 3),
        CapacityEntry(1, "first", 20, 4),
        CapacityEntry(1, "second", 10, 0),
        CapacityEntry(2, "first", 20, 6),
        CapacityEntry(2, "second", 10, 2),
    ]
    assert run.digests == {task: f"{task:064x}" for task in range(3)}
    assert run.router == RouterScore(0.875, [0.9, 0.75, 0.8], [0.8, 0.7, 0.75])
    assert run.config == CONFIG


def test_a_new_run_has_recorded_nothing(new_run):
    assert (new_run.metrics, new_run.tests, new_run.capacity, new_run.digests) == ([], [], [], {})
    assert new_run.router is None
    assert new_run.seconds == 0.0


def test_files_have_the_documented_places(new_run):
    assert new_run.network_path == new_run.path / "network.safetensors"
    assert new_run.checkpoint_path(3) == new_run.path / "checkpoints" / "task_03.safetensors"
    assert new_run.figures_path == new_run.path / "figures"


def test_the_environment_names_versions_and_no_place(new_run):
    stored = json.loads((new_run.path / "config.json").read_text())
    assert set(stored) == {"config", "environment"}
    assert set(new_run.environment) == {
        "eidetic_kernels",
        "python",
        "torch",
        "numpy",
        "threads",
        "gpu",
        "commit",
    }


# ---- continuing


def test_the_same_configuration_continues(made_up_run):
    again = RunFolder.create(made_up_run.path, CONFIG)
    assert len(again.metrics) == len(made_up_run.metrics) > 0


def test_tuples_and_lists_are_the_same_configuration(tmp_path):
    RunFolder.create(tmp_path / "run", {"sizes": (1, 2)})
    again = RunFolder.create(tmp_path / "run", {"sizes": [1, 2]})  # with another configuration it raises
    assert again.config == {"sizes": [1, 2]}


def test_what_is_left_empty_need_not_have_been_known_when_the_run_began(tmp_path):
    RunFolder.create(tmp_path / "run", {"seed": 0, "data": {"tasks": 3}})
    newer = {"seed": 0, "data": {"tasks": 3, "held_out": None}, "sweep": {}}
    assert RunFolder.create(tmp_path / "run", newer).config == {"seed": 0, "data": {"tasks": 3}}
    for given in ({**newer, "sweep": {"trials": 3}}, {**newer, "data": {"tasks": 3, "held_out": 0}}):
        with pytest.raises(InputError, match="nothing there"):
            RunFolder.create(tmp_path / "run", given)
    with pytest.raises(InputError, match="data.tasks: 3 there, null given"):
        RunFolder.create(tmp_path / "run", {"seed": 0, "data": {"tasks": None}})


def test_another_configuration_is_refused_naming_every_key(tmp_path):
    RunFolder.create(tmp_path / "run", {"model": {"name": "mlp", "width": 8}, "seed": 0})
    with pytest.raises(InputError) as caught:
        RunFolder.create(tmp_path / "run", {"model": {"name": "mlp", "width": 9}, "lr": 0.1})
    message = str(caught.value)
    assert "model.width: 8 there, 9 given" in message
    assert "lr: nothing there, 0.1 given" in message
    assert "seed: 0 there, nothing given" in message
    assert "name" not in message
    assert RunFolder(tmp_path / "run").config["model"]["width"] == 8


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_configuration_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(InputError, match="JSON"):
        RunFolder.create(tmp_path / "run", {"seed": object()})
    assert not (tmp_path / "run").exists()


def test_truncating_leaves_what_a_run_that_ended_there_has(made_up_run):
    made_up_run.truncate_after(0)
    assert {row.task for row in made_up_run.metrics} == {0}
    assert len(made_up_run.metrics) == 6
    assert made_up_run.tests == [TaskScore(0, 0, 0.9)]
    assert made_up_run.capacity == [CapacityEntry(0, "first", 20, 5), CapacityEntry(0, "second", 10, 3)]
    assert [(row.task, row.label) for row in made_up_run.classes] == [(0, 0), (0, 1)]
    assert made_up_run.digests == {0: f"{0:064x}"}
    assert made_up_run.router is None
    assert [path.name for path in (made_up_run.path / "checkpoints").iterdir()] == ["task_00.safetensors"]


def test_truncating_after_the_last_task_drops_the_router_alone(made_up_run):
    made_up_run.truncate_after(2)
    assert len(made_up_run.metrics) == 18
    assert len(made_up_run.digests) == 3
    assert made_up_run.router is None
    assert [row.given for row in made_up_run.classes] == [0.94, 0.84, 0.79, 0.69, 0.84, 0.74]
    assert all(math.isnan(row.routed) for row in made_up_run.classes)


def test_truncating_a_run_that_has_not_begun_changes_nothing(new_run):
    before = sorted(new_run.path.rglob("*"))
    new_run.truncate_after(-1)
    assert sorted(new_run.path.rglob("*")) == before


# ---- killed in between


def test_a_line_cut_short_is_no_row_and_the_next_append_removes_it(new_run):
    new_run.append_metric(**ROW)
    path = new_run.path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"1.5,0,tra")
    assert new_run.metrics == [Metric(**ROW)]
    new_run.append_metric(**{**ROW, "epoch": 2})
    assert [row.epoch for row in new_run.metrics] == [1, 2]
    assert path.read_bytes().startswith(whole)


def test_a_header_cut_short_is_written_again(new_run):
    (new_run.path / "metrics.csv").write_bytes(b"seconds,ta")
    assert new_run.metrics == []
    new_run.append_metric(**ROW)
    assert new_run.metrics == [Metric(**ROW)]


def test_json_that_could_not_be_replaced_is_still_the_old_one(new_run, monkeypatch):
    new_run.record_answers(0, Recorded("aa"))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        new_run.record_answers(1, Recorded("bb"))
    assert new_run.digests == {0: "aa"}


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phase": "learn"}, "unknown phase 'learn'.*train"),
        ({"los": 1.0}, "missing or unknown: los"),
    ],
)
def test_a_wrong_metric_is_refused(new_run, change, message):
    with pytest.raises(InputError, match=message):
        new_run.append_metric(**{**ROW, **change})
    assert new_run.metrics == []


def test_a_missing_field_is_named(new_run):
    row = dict(ROW)
    del row["loss"]
    with pytest.raises(InputError, match="missing or unknown: loss"):
        new_run.append_metric(**row)


@pytest.mark.parametrize("score", [(0, 1, 0.5), (0, -1, 0.5), (0, 0, 50.0), (0, 0, float("nan"))])
def test_an_impossible_score_is_refused(new_run, score):
    with pytest.raises(InputError, match="expected 0 <= task <= learned"):
        new_run.record_test(*score)
    assert new_run.tests == []


def test_a_digest_is_taken_once(new_run):
    new_run.record_answers(0, Recorded("aa"))
    new_run.record_answers(0, Recorded("aa"))
    with pytest.raises(InputError, match="task 0 already has the digest aa; given bb"):
        new_run.record_answers(0, Recorded("bb"))
    assert new_run.digests == {0: "aa"}


def test_rows_that_stay_are_not_written_otherwise(new_run):
    """An unknown float is empty, and stays empty; a line that is not this version's spelling stays as it is."""
    path = new_run.path / "metrics.csv"
    for task in range(3):
        new_run.append_metric(**{**ROW, "task": task, "loss": None})
    path.write_bytes(path.read_bytes().replace(b",0.7,", b",0.70,"))
    whole = path.read_bytes()
    new_run.truncate_after(5)
    assert path.read_bytes() == whole and path.stat().st_mtime_ns
    new_run.truncate_after(1)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    assert b",," in path.read_bytes() and b"nan" not in path.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learned,task,accuracy\n0,0,0.5\n0,zero,0.5\n", "line 3 is damaged"),
        ("learned,task,accuracy\n0,0\n", "line 2 is damaged"),
        ("learned,task,accuracy\n\n", "line 2 is damaged"),
        ("learned,task,accuracy\n0,0,1.5\n", r"line 2 .*an accuracy lies in \[0, 1\]; got 1.5"),
        ("learned,task,accuracy\n0,0,nan\n", "line 2 is damaged"),
        ("learned,task,accuracy\n0,-1,0.5\n", "line 2 .*task -1 is none"),
        ("learned,task,accuracy\n0,1,0.5\n", "line 2 .*task 1 cannot be tested after task 0"),
        ("learned,task,accuracy\n999999999,0,0.5\n", "line 2 .*cannot be tested after task 999999999"),
        ("learned,task,accuracy\n0,0,0.5\n9,0,0.5\n", "line 3 .*cannot be tested after task 9"),
        ("learned,task,accuracy\n0,0,0.5\n9,9,0.5\n", "line 3 .*task 9 is none"),
        ("learned,task,accuracy\n0,0,0.5\n1,0,0.5\n0,0,0.5\n", "line 4 .*line 2 has the same learned and task"),
        ('learned,task,accuracy\n0,0,"0.5\n', "line 2 is damaged"),
        ("learned,task,accuracy\n0,0,0.5\0\n", "line 2 is damaged"),
        ("learned,accuracy\n0,0.5\n", "expected learned,task,accuracy"),
    ],
)
def test_a_damaged_table_names_its_line(new_run, text, message):
    (new_run.path / "tests.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        _ = new_run.tests


def test_bytes_that_are_no_text_are_named(new_run):
    (new_run.path / "tests.csv").write_bytes(b"learned,task,accuracy\n\xff\xfe,0,0.5\n")
    with pytest.raises(InputError, match=r"tests.csv, line 2 is damaged \(.xff"):
        _ = new_run.tests


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("metrics", {"live_units": 99999999999999999999}, "live_units 99999999999999999999 is none"),
        ("metrics", {"live_units": 31}, "31 live and 0 frozen units are more than 30"),
        ("metrics", {"width": -1}, "width -1 is none"),
        ("metrics", {"task": 10**6}, "task 1000000 is none"),
        ("metrics", {"seconds": "1e400"}, "seconds must be 0 or more, and finite; got inf"),
        ("metrics", {"train_accuracy": 1e308}, r"an accuracy lies in \[0, 1\]; got 1e\+308"),
        ("classes", {"label": -1}, "label -1 is none"),
        ("classes", {"given": "inf"}, r"an accuracy lies in \[0, 1\]; got inf"),
        ("classes", {"label": 1}, "line 3 has the same task and label|line 2 has the same task and label"),
        ("capacity", {"width": 0, "units": 0}, "0 of 0 units cannot be kept"),
        ("capacity", {"units": 21}, "21 of 20 units cannot be kept"),
        ("capacity", {"layer": "second"}, "line 2 has the same task and layer"),
        ("capacity", {"task": 7}, "task 7 is none"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line(made_up_run, table, change, message):
    path = made_up_run.path / f"{table}.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    for name, value in change.items():
        rows[1][rows[0].index(name)] = str(value)
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=rf"{table}.csv, line \d is damaged .*({message})"):
        getattr(made_up_run, table)


def test_classes_are_sorted_whatever_the_order_of_their_rows(made_up_run):
    path, before = made_up_run.path / "classes.csv", made_up_run.classes
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(reversed(rows)))
    assert made_up_run.classes == before


def test_a_class_that_no_task_has_is_not_given_what_the_router_answers(made_up_run):
    path = made_up_run.path / "classes.csv"
    for line in ("2,2,100,0.5,\n", "3,0,100,0.5,\n"):
        before = path.read_text()
        path.write_text(before + line)
        with pytest.raises(InputError, match="classes.csv is damaged: the run has no class"):
            made_up_run.record_routed_classes([[0.8, 0.8], [0.7, 0.69], [0.75, 0.7]])
        assert path.read_text() == before + line
        path.write_text(before)


DAMAGES = ["null", "[]", "{}", "3", '"x"', "{", "[" * 100_000, '{"0": null}', '{"config": [], "environment": 3}', "NaN"]


@pytest.mark.parametrize("text", DAMAGES)
@pytest.mark.parametrize("name", ["router.json", "digests.json", "config.json", "inputs.json"])
def test_damaged_json_is_named(new_run, name, text):
    (new_run.path / name).write_text(text)
    reads = {
        "router.json": lambda: new_run.router,
        "digests.json": lambda: new_run.recorded,
        "config.json": lambda: (new_run.config, new_run.environment),
        "inputs.json": lambda: new_run.inputs,
    }
    if (name, text) == ("digests.json", "{}"):
        assert new_run.recorded == {}
        return
    with pytest.raises(InputError, match=f"{name} is (not valid JSON|damaged)"):
        reads[name]()


@pytest.mark.parametrize(
    "change", [{"accuracy": 2}, {"oracle": []}, {"routed": [0.5, 0.5]}, {"oracle": ["x"]}, {"more": 1}, {"routed": 1}]
)
def test_scores_of_a_router_that_cannot_be_are_refused(new_run, change):
    content = {"accuracy": 0.5, "oracle": [0.5], "routed": [0.5], **change}
    (new_run.path / "router.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="router.json is damaged"):
        _ = new_run.router


def test_open_run_takes_a_run_or_its_path(new_run):
    assert runs.open_run(new_run) is new_run
    assert runs.open_run(str(new_run.path)).path == new_run.path
