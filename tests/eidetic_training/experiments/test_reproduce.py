"""Reproductions: every row of every table is a valid configuration; a tiny one is run whole, and continued."""

import statistics

import pytest
import torch
from tiny_runs import WIDTH, write_data

from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings, models
from eidetic_training.experiments import config as configuration
from eidetic_training.experiments.paper_numbers import TABLE_7, TABLE_8
from eidetic_training.experiments.reproduce import reproduce, row_overrides
from eidetic_training.experiments.reproductions import REPRODUCTIONS
from eidetic_training.experiments.search_space import SweepSettings
from eidetic_training.runs import plots
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.report import summary

SHAPES = {
    "digits": (1, 28, 28),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "imagenette": (3, 160, 160),
}


@pytest.mark.parametrize("name", configuration.built_in())
def test_every_built_in_configuration_loads_and_builds_its_network(name):
    config = configuration.load(name)
    assert config["name"] == name
    model = dict(config["model"])
    with torch.device("meta"):
        network = models.build(model.pop("name"), SHAPES[config["data"]["source"]], **model)
    assert sum(p.numel() for p in network.parameters()) > 1e5


def settings(name, row):
    plan = REPRODUCTIONS[name]
    config = configuration.load(plan.config, row_overrides(plan.rows[row]))
    return config, TaskSettings.of_dict(config["task"])


ROWS = [name for name, plan in REPRODUCTIONS.items() if plan.rows]
SWEEPS = [name for name in REPRODUCTIONS if name not in ROWS]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_configuration_that_differs_from_the_others(name):
    found = [repr({**settings(name, row)[0], "name": ""}) for row in REPRODUCTIONS[name].rows]
    assert len(set(found)) == len(found)
    plan = REPRODUCTIONS[name]
    assert plan.about and plan.follows and plan.assumed


VARIED = {"task.importance", "task.step", "task.tolerance"}  # what the paper's own tables vary


@pytest.mark.parametrize("name", ROWS)
def test_the_paper_s_rows_are_the_paper_s_procedure_and_depart_from_it_in_nothing(name):
    for label, row in REPRODUCTIONS[name].rows.items():
        config, found = settings(name, label)
        paper = label.startswith("paper") or name == "table6"
        assert (not row.departs) == paper
        if paper:
            assert row.changes.keys() <= VARIED
            assert (found.search, found.of, found.polish_epochs, found.keep_at_least) == ("linear", "width", 0, 0)
            assert (found.label_smoothing, found.patience) == (0.0, 10)
            assert config["optimizer"]["name"] == "adam" and "weight_decay" not in config["optimizer"]
            assert config["capacity"]["share"] is None
            router = {key: value for key, value in config["router"].items() if key != "patience"}
            assert router == {
                key: value for key, value in configuration.DEFAULTS["router"].items() if key != "patience"
            }


def test_settings_that_section_4_prints():
    config, found = settings("table3", "paper")
    assert (found.importance, found.step, found.tolerance, found.halve_learning_rate) == ("taylor", 0.05, 0.001, True)
    assert (found.patience, found.max_recovery_epochs) == (10, 5)
    assert config["model"] == {"name": "mlp", "width": 2000, "depth": 2, "dropout": 0.1}
    assert (config["optimizer"]["lr"], config["data"]["batch_size"], config["data"]["tasks"]) == (0.002, 256, 10)
    small, _ = settings("table3-digits", "paper")
    assert {**small, "name": "", "data": {**small["data"], "source": "mnist"}} == {**config, "name": ""}

    config, found = settings("table4", "paper (l2)")
    assert config["model"] == {"name": "resnet50", "skip_convolution": True}
    assert (config["optimizer"]["lr"], config["data"]["batch_size"], config["data"]["tasks"]) == (1e-4, 256, 5)

    config, found = settings("table5", "paper")
    assert config["model"] == {"name": "resnet18", "small": False, "skip_convolution": True}
    assert (config["optimizer"]["lr"], config["data"]["batch_size"], config["data"]["resolution"]) == (1.25e-5, 32, 224)
    assert (found.patience, found.max_recovery_epochs, found.halve_learning_rate) == (10, 10, False)


def test_table_6_crosses_step_and_threshold_of_l2():
    found = [settings("table6", row)[1] for row in REPRODUCTIONS["table6"].rows]
    assert [(s.step, s.tolerance) for s in found] == [(0.01, 0.0), (0.01, 0.03), (0.05, 0.0), (0.05, 0.03)]
    assert {s.importance for s in found} == {"l2"}
    assert list(REPRODUCTIONS["table6"].paper) == list(REPRODUCTIONS["table6"].rows)


def test_table_7_has_the_paper_s_three_importances():
    for name in ("table7-mnist", "table7-cifar10"):
        found = {row: settings(name, row)[1].importance for row in REPRODUCTIONS[name].rows if "paper" in row}
        assert found == {f"paper ({each})": each for each in ("l1", "l2", "taylor")}


@pytest.mark.parametrize("name, row, seen", [("table7-mnist", "l1", False), ("table7-cifar10", "l2", True)])
def test_the_convolutional_rows_differ_in_their_router_alone(name, row, seen):
    plain, _ = settings(name, f"ours ({row})")
    ours, _ = settings(name, f"ours ({row}, convolutional router)")
    usual, router = plain.pop("router"), ours.pop("router")
    assert not usual["classes"] and usual["convolutions"] is None
    assert all(router[option] for option in ("convolutions", "alone", "classes"))
    assert router["augment"] == router["mirrored"] == seen, "a digit's mirror image is another"
    assert ours == plain


def test_the_paper_s_means_are_those_of_the_classes_it_prints():
    """Of Table 7, CIFAR-10, l2: the router loses 17.5 points."""
    routed, given = (statistics.mean(row) for row in TABLE_7["cifar10", "l2"])
    assert (round(routed, 2), round(given, 2)) == (53.55, 71.08)
    assert all(len(row) == 10 for pair in TABLE_7.values() for row in pair)
    routed, given = (statistics.mean(row) for row in TABLE_8)
    assert (round(routed, 1), round(given, 1)) == (54.6, 56.4) and len(TABLE_8.given) == len(TABLE_8.routed) == 100


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Overrides that make any reproduction tiny."""
    folder = write_data(tmp_path_factory.mktemp("images"))
    sets = {
        "data.source": "parquet",
        "data.folder": folder,
        "data.tasks": 2,
        "data.batch_size": 24,
        "model.width": WIDTH,
        "optimizer.lr": 0.02,
        "task.max_epochs": 3,
        "task.max_recovery_epochs": 1,
        "task.step": 0.3,
        "router.max_epochs": 2,
        "router.hidden": 4,
    }
    return [f"{key}={value}" for key, value in sets.items()]


def cells(text, row):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_tiny_one_from_end_to_end_and_again(tiny, tmp_path, monkeypatch):
    said = []
    text = reproduce("table7-mnist", tmp_path, tiny, 2, ["paper (l1)", "ours (l2)"], said.append)
    assert (tmp_path / "table7-mnist.md").read_text() == text
    assert [line for line in said if line.startswith("table7")] == [
        f"table7-mnist, {row}, seed {seed}" for seed in range(2) for row in ("paper (l1)", "ours (l2)")
    ]
    runs = [RunFolder(tmp_path / f"ours__l2_-seed{seed}") for seed in range(2)]
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert runs[0].config["task"]["search"] == "backoff" and runs[0].config["task"]["importance"] == "l2"
    means = [100 * summary(run).mean_end for run in runs]
    row = cells(text, "ours (l2)")
    mean, deviation = sum(means) / 2, abs(means[0] - means[1]) / 2**0.5
    assert row[1] == "2" and row[2] == f"{mean:.2f} ± {deviation:.2f}"
    by_task = [100 * sum(summary(run).tasks[t].end for run in runs) / 2 for t in range(2)]
    assert row[3] == " / ".join(f"{each:.1f}" for each in by_task)
    assert row[4] == "0.00%"
    routed = [100 * sum(run.router.routed) / 2 for run in runs]
    assert row[5].split(" ± ")[0] == f"{sum(routed) / 2:.2f}"
    assert row[6].endswith("%") and 0 < int(row[6][:-1]) <= 100
    assert "- routed, l1 / l2 / taylor: 98.3 / 98.2 / 98.4" in text and f"torch {torch.__version__}" in text

    def trained(*arguments):
        raise AssertionError("what is complete is not trained again")

    from eidetic_training.experiments import experiment

    monkeypatch.setattr(experiment, "train_task", trained)
    again = reproduce("table7-mnist", tmp_path, tiny, 2, ["ours (l2)"], said.append)
    assert cells(again, "ours (l2)") == row


@pytest.mark.parametrize("name", SWEEPS)
def test_the_search_is_of_the_paper_s_procedure_over_three_tasks_and_a_tenth(name):
    config = configuration.load(REPRODUCTIONS[name].config)
    found = TaskSettings.of_dict(config["task"])
    assert (found.search, found.of, found.polish_epochs, found.keep_at_least) == ("linear", "width", 0, 0)
    sought = SweepSettings.of_dict(config["sweep"])
    assert (sought.tasks, sought.held_out) == (3, 0.1)
    assert sought.grid and {"task.importance", "task.step", "task.tolerance"} <= sought.values().keys()
    assert sought.count == {"table2": 72, "table2-digits": 72, "table2-cifar100": 8, "table2-imagenette": 12}[name]


def test_a_tiny_search(tiny, tmp_path):
    pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")
    space = '{"task.importance" = ["l1", "l2"]}'
    sets = [*tiny[:-2], "sweep.tasks=1", "task.max_epochs=1", f"sweep.space={space}"]
    text = reproduce("table2-digits", tmp_path / "run", sets, say=lambda line: None)
    assert (tmp_path / "run" / "table2-digits.md").read_text() == text
    assert (tmp_path / "run" / "table.md").read_text().strip() in text
    assert "Follows: as table2, but for the data and the width." in text and f"torch {torch.__version__}" in text
    for options in ({"seeds": 2}, {"rows": ["l1"]}):
        with pytest.raises(InputError, match="table2 is a sweep: it has no rows and one seed"):
            reproduce("table2", tmp_path / "run", tiny, **options)


def test_table_8_and_figures_3_and_4_are_drawn_from_table_4_s_runs(tiny, tmp_path, monkeypatch):
    """On made-up images of six classes and a small MLP: what is shown is read from run folders alone."""
    pytest.importorskip("matplotlib")
    sets = ['model={name = "mlp", width = 40}' if each.startswith("model.") else each for each in tiny]
    said = []
    reproduce("table4", tmp_path, sets, 2, ["ours"], said.append)
    runs = [RunFolder(tmp_path / f"ours-seed{seed}") for seed in range(2)]

    def trained(*arguments):
        raise AssertionError("what is complete is not trained again")

    from eidetic_training.experiments import experiment

    monkeypatch.setattr(experiment, "train_task", trained)
    for name in ("table8", "figure3", "figure4"):
        assert REPRODUCTIONS[name].runs_of(name) == "table4" == REPRODUCTIONS["table4"].runs_of("table4")
        assert REPRODUCTIONS[name].rows == REPRODUCTIONS["table4"].rows
    table = reproduce("table8", tmp_path, sets, 2, ["ours"], said.append)
    lines = [line for line in table.splitlines() if line.startswith("| task ")]
    assert "| class | ours |" in table and len(lines) == len(runs[0].classes)
    for line, *scores in zip(lines, *(run.classes for run in runs)):
        routed, given = (50 * sum(getattr(score, kind) for score in scores) for kind in ("routed", "given"))
        label = runs[0].inputs.labels[scores[0].task][scores[0].label]
        assert line == f"| task {scores[0].task}, {label} | {routed:.1f} / {given:.1f} |"

    table = reproduce("figure4", tmp_path, sets, 2, ["ours"], said.append)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == ["task", "after task 0", "after task 1", "with the router", "units", "epochs"]
    for t, row in enumerate(rows[1:]):
        for learned in range(2):
            scores = [score.accuracy for run in runs for score in run.tests if score[:2] == (learned, t)]
            assert len(scores) == (2 if t <= learned else 0)
            assert row[1 + learned].split(" ± ")[0] == (f"{50 * sum(scores):.2f}" if scores else "")
        assert row[3].split(" ± ")[0] == f"{50 * sum(run.router.routed[t] for run in runs):.2f}"
        kept = [sum(e.units for e in run.capacity if e.task == t) / (2 * WIDTH) for run in runs]
        assert row[4] == f"{50 * sum(kept):.1f}%"
        assert float(row[5]) == pytest.approx(sum(summary(run).tasks[t].epochs for run in runs) / 2, abs=0.5)
    text = reproduce("figure3", tmp_path, sets, 2, ["ours"], said.append)
    for seed, run in enumerate(runs):
        path = tmp_path / f"figure3-ours-seed{seed}.png"
        assert f"- ours, seed {seed}: {path}" in text
        plots.units_over_time(run).savefig(tmp_path / "expected.png", dpi=plots.DPI)
        assert path.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_what_is_unknown_is_refused_before_anything_runs(tiny, tmp_path):
    with pytest.raises(
        InputError, match="the reproduction must be one of table2, .*; got 'table9' .did you mean 'table[0-9]'"
    ):
        reproduce("table9", tmp_path / "run")
    with pytest.raises(InputError, match="a row of table3 must be one of paper, ours.*; got 'l1'"):
        reproduce("table3", tmp_path / "run", rows=["ours", "l1"])
    with pytest.raises(InputError, match="seeds must be a whole number, 1 or more; got 0"):
        reproduce("table3", tmp_path / "run", seeds=0)
    with pytest.raises(InputError, match="has no key 'data.tsks'"):
        reproduce("table3", tmp_path / "run", ["data.tsks=3"])
    assert not (tmp_path / "run").exists()
