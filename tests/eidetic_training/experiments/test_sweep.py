"""Sweeps: what a trial measures, what is left behind, what is refused."""

import statistics
import sys
from dataclasses import replace

import pytest
import torch
from small_sweeps import config_of, found, pretended, quietly, trials_of

from eidetic_kernels.errors import CapacityError, InputError, NonFiniteLossError
from eidetic_training.data import ImageSet, hold_out
from eidetic_training.experiments import config as configuration
from eidetic_training.experiments import experiment
from eidetic_training.experiments import sweep as module
from eidetic_training.experiments import tasks as task_sequences
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.experiments.sweep import sweep
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.report import summary

optuna = pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """(configuration, folder, the text) of a sweep by one worker; not to be changed."""
    config, folder = config_of(data), tmp_path_factory.mktemp("sweeps") / "swept"
    return config, folder, quietly(config, folder)


def test_a_trial_learns_the_first_tasks_and_is_measured_on_what_is_held_out(swept, data, tmp_path):
    config, folder, _ = swept
    for trial in trials_of(config, folder):
        values = {"optimizer.lr": trial.params["optimizer.lr"], "task.importance": trial.params["task.importance"]}
        protocol = {"data.learn_first": 2, "data.held_out": 0.25, "router.train": False}
        alone = configuration.changed({**config, "sweep": {}}, {**values, **protocol})
        run = run_experiment(alone, tmp_path / trial.user_attrs["folder"], say=lambda line: None)
        ends = [task.end for task in summary(run).tasks]
        result = trial.user_attrs["result"]
        assert result["by_task"] == ends and len(ends) == 2
        assert trial.value == sum(ends) / 2
        assert result["epochs"] == summary(run).epochs


def test_what_is_left_behind(swept):
    config, folder, text = swept
    assert {path.name for path in folder.iterdir()} == {
        "sweep.json",
        "sweep.lock",
        "study.db",
        "trials",
        "table.md",
        "best.toml",
    }
    assert sorted(path.name for path in (folder / "trials").iterdir()) == ["000", "001", "002"]
    for path in (folder / "trials").iterdir():
        assert (path / "tests.csv").is_file() and not list(path.rglob("*.safetensors"))
    assert (folder / "table.md").read_text() == text + "\n"

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert rows[0] == [
        "trial",
        "accuracy, held out",
        "by task",
        "units",
        "epochs",
        "s",
        "optimizer.lr",
        "task.importance",
    ]

    over = trials_of(config, folder)
    assert [row[0] for row in rows[2:]] == [trial.user_attrs["folder"] for trial in over]
    values = [float(row[1]) for row in rows[2:]]
    assert values == sorted(values, reverse=True) == [round(100 * trial.value, 2) for trial in over]
    assert rows[2][2] == " / ".join(f"{100 * each:.1f}" for each in over[0].user_attrs["result"]["by_task"])
    assert rows[2][6:] == [f"{over[0].params['optimizer.lr']:.4g}", over[0].params["task.importance"]]


def test_the_best_configuration_is_the_sweep_s_with_the_best_values_and_all_the_data(swept):
    config, folder, _ = swept
    best = trials_of(config, folder)[0]
    loaded = configuration.load(folder / "best.toml")
    assert loaded == configuration.changed({**config, "sweep": {}}, best.params)
    assert loaded["optimizer"]["lr"] == best.params["optimizer.lr"] != config["optimizer"]["lr"]
    assert loaded["data"]["held_out"] is None and loaded["data"]["learn_first"] is None
    assert f"# Trial {best.user_attrs['folder']} of a sweep" in (folder / "best.toml").read_text()


def test_nothing_is_run_again_and_more_trials_may_come(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_experiment", pretended)
    first = quietly(config_of(data), tmp_path / "run")
    said = []
    assert sweep(config_of(data), tmp_path / "run", say=said.append) == first and said == []
    more = sweep(config_of(data, trials=5), tmp_path / "run", say=said.append)
    assert [line.split(":")[0] for line in said] == ["4 of 5 trials", "5 of 5 trials"]
    assert set(first.splitlines()) < set(more.splitlines()) and len(more.splitlines()) == 7


def test_test_sets_are_never_looked_at(swept, tmp_path, monkeypatch):
    class Never(ImageSet):
        def __init__(self):
            pass

        def __getattribute__(self, name):
            assert name not in ("images", "labels"), "a test set was looked at"
            return super().__getattribute__(name)

    real = task_sequences._sequence
    monkeypatch.setattr(
        task_sequences, "_sequence", lambda data, seed: [replace(task, test=Never()) for task in real(data, seed)]
    )
    config, folder, _ = swept
    quietly(config, tmp_path / "run")
    assert found(config, tmp_path / "run") == found(config, folder)


# ---- bad trials


@pytest.mark.parametrize(
    "error, note",
    [(NonFiniteLossError("it is nan"), "loss not finite"), (CapacityError("nothing is free"), "no units left")],
)
def test_a_trial_that_cannot_learn_is_worth_nothing(data, tmp_path, monkeypatch, error, note):
    def failing(config, path, say, progress):
        if config["task"]["importance"] == "l1":
            raise error
        return pretended(config, path, say, progress)

    monkeypatch.setattr(module, "run_experiment", failing)
    config = config_of(data, trials=5)
    lines = quietly(config, tmp_path / "run").splitlines()[2:]
    kinds = [params["task.importance"] for params, *_ in found(config, tmp_path / "run")]
    assert len(set(kinds)) == 2 and kinds == sorted(kinds, reverse=True)
    assert [line.split("|")[2:4] == [" 0.00 ", f" {note} "] for line in lines] == [k == "l1" for k in kinds]


def test_bad_trials_are_given_up_after_a_task_where_that_is_asked_for(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_experiment", pretended)
    config = config_of(data, trials=10, prune=True)
    text = quietly(config, tmp_path / "run")
    over = trials_of(config, tmp_path / "run")
    states = [trial.state.name for trial in over]
    given_up = states.count("PRUNED")
    assert 0 < given_up <= 5 and states == ["COMPLETE"] * (10 - given_up) + ["PRUNED"] * given_up
    assert text.count("| given up |") == given_up
    for trial in over:
        tests = RunFolder(tmp_path / "run" / "trials" / trial.user_attrs["folder"]).tests
        before = [other.value for other in over[: 10 - given_up] if other.number < trial.number]
        bad = len(before) >= 5 and trial.value < statistics.median(before)
        assert bad == (trial.state.name == "PRUNED") == (max(row.learned for row in tests) == 0)


def test_bad_trials_come_to_their_end_where_nothing_else_is_asked_for(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_experiment", pretended)
    config = config_of(data, trials=8)
    quietly(config, tmp_path / "run")
    over = found(config, tmp_path / "run")
    assert {state for _, _, state, *_ in over} == {"COMPLETE"}
    values = [value for _, value, *_ in over]
    assert values == sorted(set(values), reverse=True)


# ---- refusals


@pytest.mark.parametrize(
    "settings, workers, message",
    [
        ({"space": {}}, 1, r"(?s)has no sweep.space.*\[sweep.space\]"),
        ({}, 0, "workers must be a whole number, 1 or more; got 0"),
        ({"space": {"task.step": [0.1, 7]}}, 1, r"step must be a number in \(0, 1\]; got 7"),
        ({"space": {"task.stp": [0.1, 0.2]}}, 1, "has no key 'task.stp'"),
        ({"space": {"capacity.shrae": [0.1, 0.2]}}, 1, "has no key 'capacity.shrae'"),
        ({"space": {"optimizer.name": ["adam", "adma"]}}, 1, "optimizer.name must be one of"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(data, tmp_path, settings, workers, message):
    with pytest.raises(InputError, match=message):
        quietly(config_of(data, **settings), tmp_path / "run", workers)
    assert not (tmp_path / "run").exists()


def test_optuna_is_asked_for_by_the_extra_s_name(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # importing it raises
    with pytest.raises(InputError, match=r'pip install "eidetic-kernels\[sweep\]"'):
        quietly(config_of(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_folders_are_left_alone(data, swept, tmp_path):
    config, folder, _ = swept
    before = (folder / "table.md").read_text()
    for other in (config_of(data, tasks=1), {**config, "seed": 1}, config_of(data, space={"task.step": [0.1, 0.2]})):
        with pytest.raises(InputError, match="holds a sweep of another configuration"):
            quietly(other, folder)
    assert (folder / "table.md").read_text() == before
    (tmp_path / "thesis.txt").write_text("all of it")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(InputError, match="exists and holds no sweep"):
            quietly(config, path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_optuna_s_messages_are_as_before(swept):
    config, folder, _ = swept
    before = optuna.logging.get_verbosity()
    for verbosity in (optuna.logging.INFO, optuna.logging.ERROR):
        optuna.logging.set_verbosity(verbosity)
        quietly(config, folder)
        assert optuna.logging.get_verbosity() == verbosity
    optuna.logging.set_verbosity(before)


def test_permuted_tasks_hold_out_the_same_images(data):
    config = config_of(data)
    whole = experiment.make_tasks(config["data"], 0)
    tasks = experiment.make_tasks({**config["data"], "held_out": 0.25, "learn_first": 2}, 0)
    assert len(tasks) == 2
    for task, all_of_it in zip(tasks, whole):
        expected = hold_out(all_of_it, 0.25, 0)
        assert torch.equal(task.test.images, expected.test.images)
    order = tasks[1].permutation
    plain = tasks[0].test.images.flatten(2)[:, :, order].view(tasks[1].test.images.shape)
    assert torch.equal(plain, tasks[1].test.images)


def test_a_grid_tries_every_combination_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_experiment", pretended)
    space = {"optimizer.lr": [0.01, 0.02, 0.03], "task.importance": ["l1", "l2"]}
    config = config_of(data, grid=True, trials=1, space=space)
    text = quietly(config, tmp_path / "grid")
    tried = [tuple(params.values()) for params, *_ in found(config, tmp_path / "grid")]
    assert sorted(tried) == [(lr, kind) for lr in space["optimizer.lr"] for kind in space["task.importance"]]
    assert tried[0][0] == 0.02, "best first"
    assert quietly(config, tmp_path / "grid") == text, "nothing is tried again"


def test_a_grid_loses_no_combination_to_a_process_that_was_killed_as_it_chose(data, tmp_path, monkeypatch):
    config = config_of(data, grid=True, space={"optimizer.lr": [0.01, 0.02], "task.importance": ["l1", "l2"]})

    def killed(self, trial, key):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_experiment", pretended)
    with monkeypatch.context() as patch:
        patch.setattr(
            module.SweepSettings, "values", lambda self: {"optimizer.lr": type("_", (), {"suggest": killed})()}
        )
        patch.setattr(
            module.SweepSettings, "combinations", lambda self: [{"optimizer.lr": 0.01, "task.importance": "l1"}]
        )
        patch.setattr(module.SweepSettings, "count", 4)
        with pytest.raises(KeyboardInterrupt):
            module.work(config, _begun(config, tmp_path / "grid"))
    quietly(config, tmp_path / "grid")
    tried = sorted(tuple(params.values()) for params, *_ in found(config, tmp_path / "grid"))
    assert tried == [(0.01, "l1"), (0.01, "l2"), (0.02, "l1"), (0.02, "l2")]


def _begun(config, folder):
    module._begin(folder, config)
    return folder


def test_lists_are_tried_as_any_other_value(data, tmp_path, monkeypatch):
    """An importance may be a list, and the best one stands in best.toml as such; the study keeps its text."""
    seen = []

    def ranked(config, path, say, progress):
        seen.append(config["task"]["importance"])
        rate = 0.02 if config["task"]["importance"] == ["l1", "random"] else 0.05
        return pretended({**config, "optimizer": {**config["optimizer"], "lr": rate}}, path, say, progress)

    monkeypatch.setattr(module, "run_experiment", ranked)
    config = config_of(data, grid=True, space={"task.importance": ["l2", ["l1", "random"], ["l1", "l2"]]})
    quietly(config, tmp_path / "sweep")
    assert seen == ["l2", ["l1", "random"], ["l1", "l2"]]
    assert configuration.load(tmp_path / "sweep" / "best.toml")["task"]["importance"] == ["l1", "random"]
    assert '["l1", "random"]' in (tmp_path / "sweep" / "table.md").read_text()
    quietly(config, tmp_path / "sweep")
    assert len(seen) == 3, "nothing is tried again"


def test_a_grid_is_made_of_lists(data):
    with pytest.raises(InputError, match=r"sweep.space.optimizer.lr must be a list of values where grid is true"):
        config_of(data, grid=True)
