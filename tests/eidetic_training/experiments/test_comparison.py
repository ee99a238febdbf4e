"""Comparisons: every method in one folder, continued, never mixed with results under other conditions."""

import csv
import json
from functools import partial

import pytest
import torch
from tiny_runs import make_config

from eidetic_kernels.errors import InputError
from eidetic_training.experiments import comparison as comparison_module
from eidetic_training.experiments.comparison import Comparison, Result, accuracy, compare, make_method, table
from eidetic_training.experiments.comparison_figure import comparison as comparison_figure
from eidetic_training.experiments.experiment import make_tasks
from eidetic_training.methods import METHODS
from eidetic_training.runs.style import STRONG

MATRIX = [[0.75], [0.5, 1.0]]


def config_of(folder, /, **tables):
    tables = {"compare": {"epochs": 2}, "data": {"tasks": 2}, "model": {"width": 12}, **tables}
    return make_config(folder, **tables)


def run(config, folder, methods=("single", "sequential"), said=None):
    return compare(
        config,
        lambda seed: make_tasks(config["data"], seed),
        methods,
        folder,
        say=lambda line: said.append(line) if said is not None else None,
    )


def result(method, seed=0, matrix=MATRIX, **values):
    return Result(method, seed, matrix, **{"numbers": 2e6, "passes": 4.6, "seconds": 3.0, **values})


def test_every_method_stands_in_the_folder_by_seed(data, tmp_path):
    config, said = config_of(data, compare={"epochs": 1, "seeds": 1}), []
    compared = run(config, tmp_path, list(METHODS), said)
    assert set(compared.results) == {(name, 0) for name in METHODS}
    assert [line.split(",")[0] for line in said] == list(METHODS)
    for name in METHODS:
        (found,) = compared.of(name)
        assert [len(row) for row in found.matrix] == ([2] if name == "joint" else [1, 2])
        assert all(0 <= a <= 1 for row in found.matrix for a in row)
        assert found.numbers > 0 and found.seconds > 0
        # One epoch of training; the others measure, score or recover in passes of their own.
        assert (found.passes == 1) == (name not in ("eidetic", "joint", "ewc", "clnp"))
        assert (found.used is not None) == (name in ("eidetic", "clnp"))
        rows = list(csv.DictReader((tmp_path / f"{name}-seed0.csv").read_text().splitlines()))
        expected = [(0, 0), (1, 0), (1, 1)] if name != "joint" else [(1, 0), (1, 1)]
        assert [(int(row["learned"]), int(row["task"])) for row in rows] == expected
        assert [float(row["accuracy"]) for row in rows] == [a for row in found.matrix for a in row]
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert kept["environment"]["torch"] == torch.__version__
    assert len(kept["results"]) == len(METHODS)


def test_the_matrix_is_the_method_s_accuracy_on_the_test_sets(data, tmp_path):
    config = config_of(data)
    (found,) = run(config, tmp_path, ["sequential"]).of("sequential")
    tasks = make_tasks(config["data"], 0)
    method = make_method(config, "sequential", 0, tasks)
    for t, task in enumerate(tasks):
        method.learn(task.train_loader(24, 0), task.num_classes)
        for past in range(t + 1):
            ((x, y),) = tasks[past].test_loader(500)
            expected = float((method.logits(x, past).argmax(1) == y).double().mean())
            assert found.matrix[t][past] == pytest.approx(expected) == accuracy(method, tasks[past], past)


def test_what_is_there_is_not_run_again_and_more_seeds_and_methods_may_come(data, tmp_path, monkeypatch):
    first = run(config_of(data), tmp_path, ["single"])
    ran = []
    original = comparison_module._run

    def noted(config, name, seed, tasks):
        ran.append((name, seed))
        return original(config, name, seed, tasks)

    monkeypatch.setattr(comparison_module, "_run", noted)
    again = run(config_of(data), tmp_path, ["single"])
    assert ran == [] and again.results == first.results
    more = run(config_of(data, compare={"epochs": 2, "seeds": 2}), tmp_path)
    assert ran == [("sequential", 0), ("single", 1), ("sequential", 1)]
    assert more.results["single", 0] == first.results["single", 0]
    assert more.results["single", 0].matrix != more.results["single", 1].matrix


def test_finished_comparisons_need_no_data(data, tmp_path):
    first = run(config_of(data), tmp_path, ["single"])

    def gone(seed):
        raise AssertionError("no data is needed")

    assert compare(config_of(data), gone, ["single"], tmp_path).results == first.results


@pytest.mark.slow
def test_workers_come_to_the_results_of_one(data, tmp_path):
    config, said = config_of(data, compare={"epochs": 1, "seeds": 2}), []
    methods = ["sequential", "piggyback", "eidetic"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = run(config, tmp_path / "alone", methods)
        tasks_of = partial(make_tasks, config["data"])
        shared = compare(config, tasks_of, methods, tmp_path / "shared", said.append, workers=2)
    finally:
        torch.set_num_threads(threads)
    assert len(said) == len(shared.results) == 6
    assert {key: r.matrix for key, r in shared.results.items()} == {key: r.matrix for key, r in alone.results.items()}
    assert Comparison(tmp_path / "shared", shared.conditions).results == shared.results
    with pytest.raises(InputError, match="workers must be a whole number, 1 or more; got 0"):
        compare(config, tasks_of, methods, tmp_path / "shared", workers=0)


@pytest.mark.parametrize(
    "tables",
    [
        {"compare": {"epochs": 3}},
        {"optimizer": {"lr": 0.01}},
        {"model": {"width": 13}},
        {"data": {"tasks": 3}},
        {"methods": {"ewc": {"strength": 3.0}}},
        {"task": {"step": 0.3}},
        {"device": "meta"},
    ],
)
def test_other_conditions_are_refused(data, tmp_path, tables):
    run(config_of(data), tmp_path, ["single"])
    before = (tmp_path / "comparison.json").read_text()
    with pytest.raises(InputError, match="was made under other conditions; give another folder"):
        run(config_of(data, **tables), tmp_path, ["single"])
    assert (tmp_path / "comparison.json").read_text() == before


def test_a_run_that_is_cut_short_keeps_what_is_done(data, tmp_path, monkeypatch):
    original = comparison_module._run

    def interrupted(config, name, seed, tasks):
        if name == "sequential":
            raise KeyboardInterrupt
        return original(config, name, seed, tasks)

    with monkeypatch.context() as patch:
        patch.setattr(comparison_module, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config_of(data), tmp_path)
    said = []
    compared = run(config_of(data), tmp_path, said=said)
    assert [line.split(",")[0] for line in said] == ["sequential"]
    assert compared.methods == ["single", "sequential"]


@pytest.mark.parametrize(
    "methods, tables, message",
    [
        (["single", "ewk"], {}, "a method must be one of eidetic, single, .*; got 'ewk' .did you mean 'ewc'"),
        (["single"], {"methods": {"ewk": {}}}, "the package has no method 'ewk' .did you mean 'ewc'"),
        (["single", "ewc"], {"methods": {"ewc": {"strenght": 3}}}, r"method ewc: .*strenght.*\.$"),
        (["single", "eidetic"], {"methods": {"eidetic": {"stp": 3}}}, "has no setting 'stp'"),
        (["single"], {"optimizer": {"weight_decay": 0.1}}, r"a name and a learning rate \(lr\) only"),
        (["single", "hat"], {"model": {"name": "perceptron"}}, "must be one of mlp, "),
    ],
)
def test_what_is_unknown_is_refused_before_anything_runs(data, tmp_path, methods, tables, message):
    said = []
    with pytest.raises(InputError, match=message):
        run(config_of(data, **tables), tmp_path, methods, said)
    assert said == []


def test_arguments_reach_the_methods(data):
    config = config_of(
        data, methods={"ewc": {"strength": 3.0}, "eidetic": {"step": 0.4}}, compare={"epochs": 7, "tasks_known": True}
    )
    tasks = make_tasks(config["data"], 0)
    assert make_method(config, "ewc", 0, tasks).strength == 3.0
    eidetic = make_method(config, "eidetic", 5, tasks)
    assert (eidetic.settings.step, eidetic.settings.tolerance, eidetic.settings.max_epochs) == (0.4, 0.05, 7)
    assert eidetic.expected == make_method(config, "packnet", 0, tasks).expected == 2
    conditions = eidetic.conditions
    assert (conditions.epochs, conditions.optimizer, conditions.lr, conditions.seed) == (7, "adamw", 0.02, 5)
    config["compare"]["tasks_known"] = False
    assert make_method(config, "clnp", 0, tasks).expected is None


def test_passes_are_counted_whatever_they_are_for(data, tmp_path):
    config = config_of(data, compare={"epochs": 2}, task={"polish_epochs": 0, "search": "none"})
    compared = run(config, tmp_path, ["single", "joint", "ewc", "eidetic"])
    assert {name: compared.of(name)[0].passes for name in compared.methods} == {
        "single": 2,
        "joint": 3,
        "ewc": 3,
        "eidetic": 2,
    }


def test_networks_and_data_are_where_the_configuration_says(data, tmp_path, monkeypatch):
    asked = []

    class Elsewhere:
        """A task that notes where its loaders are wanted."""

        def __init__(self, task):
            self.task, self.train, self.num_classes = task, task.train, task.num_classes

        def train_loader(self, batch_size, seed, device):
            asked.append(device)
            return self.task.train_loader(batch_size, seed)

        def test_loader(self, batch_size, device):
            asked.append(device)
            return self.task.test_loader(batch_size)

    config = {**config_of(data), "device": "meta"}
    tasks = [Elsewhere(task) for task in make_tasks(config["data"], 0)]
    for name in METHODS:
        network = make_method(config, name, 0, tasks).conditions.network()
        assert all(each.device.type == "meta" for each in (*network.parameters(), *network.buffers()))
    cpu = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(comparison_module, "find_device", lambda name: cpu if name == "meta" else None)
        for name in ("sequential", "joint"):
            comparison_module._run(config, name, 0, tasks)
    assert asked == [cpu] * 9  # 2 to train and 1 + 2 to test; 2 and 2
    with pytest.raises(InputError, match="device 'quantum' is unknown"):
        run({**config, "device": "quantum"}, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_a_gpu(data, tmp_path, name):
    config = {**config_of(data, compare={"epochs": 1}), "device": "cuda"}
    (found,) = run(config, tmp_path, [name]).of(name)
    assert len(found.matrix[-1]) == 2


def test_the_table_has_means_and_deviations_best_first(tmp_path):
    compared = Comparison(tmp_path, {})
    compared.add(result("single", 0, [[0.7], [0.7, 0.8]]))
    compared.add(result("sequential", 0))
    compared.add(result("eidetic", 0, [[0.9], [0.9, 0.9]], used=0.25))
    compared.add(result("eidetic", 1, [[0.8], [0.8, 0.8]], used=0.35))
    compared.add(result("joint", 0, [[0.6, 0.8]]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(compared).splitlines()[2:]]
    assert rows == [
        # accuracy, forgetting, backward, forward transfer (of seeds with a single network), units, numbers, passes,
        # seconds
        ["eidetic", "85.00 ± 7.07", "0.00 ± 0.00", "0.00 ± 0.00", "10.00", "30%", "2.00 M", "5", "3"],
        ["single", "75.00", "0.00", "0.00", "0.00", "", "2.00 M", "5", "3"],
        ["sequential", "75.00", "25.00", "-25.00", "20.00", "", "2.00 M", "5", "3"],
        ["joint", "70.00", "", "", "", "", "2.00 M", "5", "3"],
    ]


@pytest.fixture
def drawn(tmp_path):
    pytest.importorskip("matplotlib")
    compared = Comparison(tmp_path, {})
    compared.add(result("sequential", 0))
    compared.add(result("sequential", 1, [[0.25], [0.5, 0.5]]))
    compared.add(result("joint", 0, [[0.6, 0.8]]))
    compared.add(result("eidetic", 0, [[0.9], [0.9, 0.9]]))
    return comparison_figure(compared).axes


def test_the_figure_has_a_line_a_method(drawn):
    average, first = drawn
    assert [line.get_label() for line in average.lines] == ["sequential", "joint", "eidetic"]
    assert list(average.lines[0].get_ydata()) == [0.5, 0.625]
    assert list(average.lines[0].get_xdata()) == [1, 2]
    assert list(average.lines[1].get_ydata()) == pytest.approx([0.7, 0.7])
    assert [list(line.get_ydata()) for line in first.lines] == [[0.5, 0.5], [0.9, 0.9]]


def test_our_line_alone_has_a_colour_and_every_line_has_its_name_at_its_end(drawn):
    for axes in drawn:
        strong = [line.get_label() for line in axes.lines if line.get_color() == STRONG]
        assert strong == ["eidetic"]
        names = {text.get_text(): text.get_color() for text in axes.texts if text.arrow_patch is not None}
        assert names == {line.get_label(): line.get_color() for line in axes.lines}
