"""A run folder of version 0.1.0 behaves as one of today: its report, figures, certificate, and going on with it.

The digests in it are of bits that one machine computed. Where this machine rounds otherwise, the copy that the tests
work on gets this machine's digests, so that what is tested is the code and not the processor.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import Stop, left_behind

from eidetic_training.cli import main
from eidetic_training.experiments.config import complete
from eidetic_training.experiments.experiment import make_tasks, run_experiment
from eidetic_training.runs import plots, report
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.networks import load_network
from eidetic_training.training.epoch import evaluate

SAVED = Path(__file__).parents[2] / "data" / "saved_by_0_1_0"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A copy of the run, in a folder where its images are; the configuration names both relatively."""
    for name in ("run", "images"):
        shutil.copytree(SAVED / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    run = RunFolder("run")
    network, tasks = load_network(run), make_tasks(run.config["data"], run.config["seed"])
    found = [evaluate(network, task.test_loader(500), t) for t, task in enumerate(tasks)]
    assert [each.accuracy for each in found] == [row.accuracy for row in run.tests if row.learned == 1]
    digests = {str(t): each.digest for t, each in enumerate(found)}
    Path("run/digests.json").write_text(json.dumps(digests))
    return run


def again(run, callbacks=()):
    return run_experiment(complete(run.config), run.path, callbacks, say=lambda line: None)


def test_the_report_has_every_task_and_the_router(saved):
    summary = report.summary(saved)
    assert [(task.learned, task.forgetting) for task in summary.tasks] == [(1.0, 0.0)] * 2
    assert summary.router.oracle == [1.0, 1.0] and summary.router.accuracy == 0.6875
    assert [layer.name for layer in summary.layers] == ["body.1", "body.2"]
    text = report.table(saved)
    assert "router: the right task for 68.75% of the test inputs" in text and "units kept by task" in text


def test_every_figure_is_drawn(saved):
    pytest.importorskip("matplotlib")
    paths = plots.all_figures(saved)
    names = [name for name in plots.FIGURES if name != "class_accuracy"]  # which it did not record
    assert [path.stem for path in paths] == names and all(path.is_file() for path in paths)


@pytest.mark.parametrize("command", ["certify", "report", "plot", "routing", "predict"])
def test_every_command_takes_it(saved, command, capsys):
    if command == "plot":
        pytest.importorskip("matplotlib")
    assert main([command, "run"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out
    if command == "certify":
        assert "2 of 2 tasks: the test logits' SHA-256 equals the one taken when the task was learned." in out


def test_a_finished_run_is_verified_and_nothing_is_learned_again(saved):
    before = left_behind(saved.path)
    again(saved, (Stop(1),))  # which raises at the first event of training
    assert left_behind(saved.path) == before


def test_a_run_that_was_cut_short_goes_on_with_the_same_first_task(saved):
    rows, first = len([row for row in saved.metrics if row.task == 0]), saved.digests[0]
    saved.truncate_after(0)
    saved.network_path.unlink()
    assert not saved.checkpoint_path(1).exists() and saved.router is None
    run = again(saved)
    assert sorted(run.digests) == [0, 1] and run.digests[0] == first
    assert len([row for row in run.metrics if row.task == 0]) == rows
    assert [(row.learned, row.task) for row in run.tests] == [(0, 0), (1, 0), (1, 1)] and run.router is not None
    assert load_network(run).certify().ok


def test_a_network_is_the_one_of_its_checkpoint(saved):
    first = load_network(saved, 0)
    assert first.finished_tasks == 1 and load_network(saved).finished_tasks == 2
    x, _ = next(iter(make_tasks(saved.config["data"], 0)[0].test_loader(8)))
    with torch.no_grad():
        assert torch.equal(first.eval()(x, task=0), load_network(saved, 1).eval()(x, task=0))
