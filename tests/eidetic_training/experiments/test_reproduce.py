"""Reproductions: every row of every table is a valid configuration; a tiny one is run whole, and continued."""

import pytest
import torch
from tiny_runs import WIDTH, write_data

from eidetic_kernels.errors import InputError
from eidetic_training import TaskSettings, models
from eidetic_training.experiments import config as configuration
from eidetic_training.experiments.reproduce import reproduce
from eidetic_training.experiments.reproductions import PAPER, REPRODUCTIONS
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
    changes = [f"{key}={configuration.toml_value(value)}" for key, value in plan.variants[row].items()]
    config = configuration.load(plan.config, changes)
    return config, TaskSettings.of_dict(config["task"])


ROWS = [name for name, plan in REPRODUCTIONS.items() if plan.variants]
SWEEPS = [name for name in REPRODUCTIONS if name not in ROWS]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_configuration_that_differs_from_the_others(name):
    each = [settings(name, row) for row in REPRODUCTIONS[name].variants]
    found = [repr((task, config["router"])) for config, task in each]
    assert len(set(found)) == len(found) >= 2
    assert REPRODUCTIONS[name].about and REPRODUCTIONS[name].protocol


@pytest.mark.parametrize("name", ROWS)
def test_the_paper_s_rows_are_the_paper_s_procedure_and_nothing_else(name):
    for row, changes in REPRODUCTIONS[name].variants.items():
        _, found = settings(name, row)
        linear = (found.search, found.of, found.polish_epochs, found.keep_at_least) == ("linear", "width", 0, 0)
        ours = row.endswith(("backoff", "no pruning", "convolutional router"))
        assert linear == (PAPER.items() <= changes.items()) != ours


@pytest.mark.parametrize("name, row, seen", [("table7-mnist", "l1", False), ("table7-cifar10", "l2", True)])
def test_the_convolutional_rows_differ_in_their_router_alone(name, row, seen):
    plain, _ = settings(name, f"{row}, backoff")
    ours, _ = settings(name, f"{row}, backoff, convolutional router")
    usual, router = plain.pop("router"), ours.pop("router")
    assert not usual["classes"] and usual["convolutions"] is None
    assert all(router[option] for option in ("convolutions", "alone", "classes"))
    assert router["augment"] == router["mirrored"] == seen, "a digit's mirror image is another"
    assert ours == plain


def test_the_sweep_crosses_type_step_and_threshold():
    found = [settings("table6", row)[1] for row in REPRODUCTIONS["table6"].variants]
    assert len({(s.importance, s.step, s.tolerance) for s in found}) == 27
    _, found = settings("table6", "taylor, step 0.05, threshold 0.03")
    assert (found.importance, found.step, found.tolerance) == ("taylor", 0.05, 0.03)


@pytest.mark.parametrize(
    "name, tasks, augment",
    [("table3", 10, True), ("table4", 5, True), ("table5", 5, True), ("table7-cifar10", 5, False)],
)
def test_the_protocols(name, tasks, augment):
    config, _ = settings(name, next(iter(REPRODUCTIONS[name].variants)))
    assert (config["data"]["tasks"], config["data"]["augment"]) == (tasks, augment)


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
    text = reproduce("table7-mnist", tmp_path, tiny, 2, ["l1, paper's search", "l2, backoff"], said.append)
    assert (tmp_path / "table7-mnist.md").read_text() == text
    assert [line for line in said if line.startswith("table7")] == [
        f"table7-mnist, {row}, seed {seed}" for seed in range(2) for row in ("l1, paper's search", "l2, backoff")
    ]
    runs = [RunFolder(tmp_path / f"l2__backoff-seed{seed}") for seed in range(2)]
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert runs[0].config["task"]["search"] == "backoff" and runs[0].config["task"]["importance"] == "l2"
    means = [100 * summary(run).mean_end for run in runs]
    row = cells(text, "l2, backoff")
    mean, deviation = sum(means) / 2, abs(means[0] - means[1]) / 2**0.5
    assert row[1] == "2" and row[2] == f"{mean:.2f} ± {deviation:.2f}"
    by_task = [100 * sum(summary(run).tasks[t].end for run in runs) / 2 for t in range(2)]
    assert row[3] == " / ".join(f"{each:.1f}" for each in by_task)
    assert row[4] == "0.00%"
    routed = [100 * sum(run.router.routed) / 2 for run in runs]
    assert row[5].split(" ± ")[0] == f"{sum(routed) / 2:.2f}"
    assert row[6].endswith("%") and 0 < int(row[6][:-1]) <= 100
    assert "- l1, with the router: 98.3" in text and f"torch {torch.__version__}" in text

    def trained(*arguments):
        raise AssertionError("what is complete is not trained again")

    from eidetic_training.experiments import experiment

    monkeypatch.setattr(experiment, "train_task", trained)
    again = reproduce("table7-mnist", tmp_path, tiny, 2, ["l2, backoff"], said.append)
    assert cells(again, "l2, backoff") == row


@pytest.mark.parametrize("name", SWEEPS)
def test_the_search_is_of_the_paper_s_procedure_over_three_tasks_and_a_tenth(name):
    config = configuration.load(REPRODUCTIONS[name].config)
    found = TaskSettings.of_dict(config["task"])
    assert (found.search, found.of, found.polish_epochs, found.keep_at_least) == ("linear", "width", 0, 0)
    sought = SweepSettings.of_dict(config["sweep"])
    assert (sought.tasks, sought.held_out) == (3, 0.1)
    assert {"optimizer.lr", "task.importance", "task.step", "task.tolerance"} <= sought.values().keys()


def test_a_tiny_search(tiny, tmp_path):
    pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")
    sets = [*tiny[:-2], "sweep.trials=2", "sweep.tasks=1", "task.max_epochs=1"]
    text = reproduce("table2-digits", tmp_path / "run", sets, say=lambda line: None)
    assert (tmp_path / "run" / "table2-digits.md").read_text() == text
    assert (tmp_path / "run" / "table.md").read_text().strip() in text
    assert "The values that were tried are assumed" in text and f"torch {torch.__version__}" in text
    for options in ({"seeds": 2}, {"rows": ["l1"]}):
        with pytest.raises(InputError, match="table2 is a sweep: it has no rows and one seed"):
            reproduce("table2", tmp_path / "run", tiny, **options)


def test_table_8_and_figures_3_and_4_are_drawn_from_table_4_s_runs(tiny, tmp_path, monkeypatch):
    """On made-up images of six classes and a small MLP: what is shown is read from run folders alone."""
    pytest.importorskip("matplotlib")
    sets = ['model={name = "mlp", width = 40}' if each.startswith("model.") else each for each in tiny]
    said = []
    reproduce("table4", tmp_path, sets, 2, ["backoff"], said.append)
    runs = [RunFolder(tmp_path / f"backoff-seed{seed}") for seed in range(2)]

    def trained(*arguments):
        raise AssertionError("what is complete is not trained again")

    from eidetic_training.experiments import experiment

    monkeypatch.setattr(experiment, "train_task", trained)
    for name in ("table8", "figure3", "figure4"):
        assert REPRODUCTIONS[name].runs_of(name) == "table4" == REPRODUCTIONS["table4"].runs_of("table4")
        assert REPRODUCTIONS[name].variants == REPRODUCTIONS["table4"].variants
    table = reproduce("table8", tmp_path, sets, 2, ["backoff"], said.append)
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
    for name, draw in (("figure3", plots.units_over_time), ("figure4", plots.capacity)):
        text = reproduce(name, tmp_path, sets, 2, ["backoff"], said.append)
        assert "is assumed" in text
        for seed, run in enumerate(runs):
            path = tmp_path / f"{name}-backoff-seed{seed}.png"
            assert f"- backoff, seed {seed}: {path}" in text
            draw(run).savefig(tmp_path / "expected.png", dpi=plots.DPI)
            assert path.read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_what_is_unknown_is_refused_before_anything_runs(tiny, tmp_path):
    with pytest.raises(
        InputError, match="there is no reproduction 'table9' .did you mean 'table[0-9]'..; there are: table2, "
    ):
        reproduce("table9", tmp_path / "run")
    with pytest.raises(InputError, match="table3 has no row 'l1'; there are: paper's search, backoff"):
        reproduce("table3", tmp_path / "run", rows=["backoff", "l1"])
    with pytest.raises(InputError, match="seeds must be a whole number, 1 or more; got 0"):
        reproduce("table3", tmp_path / "run", seeds=0)
    with pytest.raises(InputError, match="unknown key data.tsks"):
        reproduce("table3", tmp_path / "run", ["data.tsks=3"])
    assert not (tmp_path / "run").exists()
