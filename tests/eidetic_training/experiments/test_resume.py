"""A run that is killed inside a task, or inside the router's training, loses at worst one epoch, and not one bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slow import slow
from tiny_runs import Stop, left_behind, make_config, run

from eidetic_training.runs import EPOCH_PHASES, RunFolder
from eidetic_training.training import progress

EPOCHS = (*EPOCH_PHASES, "router")
KINDS = {
    "backoff": {"model": {"dropout": 0.1}, "router": {"polish_epochs": 2}},
    "linear": {
        "model": {"dropout": 0.1},
        "optimizer": {"name": "sgd", "momentum": 0.9, "lr": 0.05},
        "task": {"search": "linear", "halve_learning_rate": True, "importance": "random", "polish_epochs": 3},
        "router": {"hidden": 6, "dropout": 0.1, "polish_epochs": 2, "layers": True},
    },
    "images": {
        "data": {"sequence": "split", "resolution": 8},
        "model": {"name": "convnet", "width": 2},
        "task": {"importance": "hybrid", "polish_epochs": 2, "max_epochs": 3},
        "router": {"convolutions": [4], "polish_epochs": 2, "augment": True},
    },
}


@pytest.fixture(scope="module", params=["backoff", *slow("linear", "images")])
def undisturbed(data, tmp_path_factory, request):
    """(configuration, run folder); not to be changed."""
    torch.set_num_threads(1)
    config = make_config(data, **KINDS[request.param])
    return config, run(config, tmp_path_factory.mktemp("runs") / "undisturbed")


def test_the_runs_have_epochs_of_every_kind(undisturbed):
    config, folder = undisturbed
    phases = {row.phase for row in folder.metrics}
    settles = {"settle"} if config["task"].get("halve_learning_rate") else set()
    assert phases >= {"train", "prune", "recover", "polish", "finish", "router"} | settles
    assert not folder.progress_path.exists()


@pytest.mark.parametrize("events", [*slow(4), 7])
def test_a_run_killed_every_few_events_loses_an_epoch_each_time_and_no_bit(undisturbed, tmp_path, events):
    config, folder = undisturbed
    rows, kills = folder.metrics, 0
    while True:
        if kills:
            assert len(RunFolder(tmp_path / "run").metrics) <= len(rows)
        told = []
        try:
            run(config, tmp_path / "run", told.append, Stop(events))
        except KeyboardInterrupt:
            kills += 1
            assert kills <= len(rows), "it does not advance"
            torch.rand(kills)  # another process's random numbers stand somewhere else
        else:
            break
    assert kills > len(rows) / (events + 1)
    assert left_behind(tmp_path / "run") == left_behind(folder.path)
    assert not (tmp_path / "run" / "progress.safetensors").exists()


@pytest.mark.slow
def test_only_the_epoch_that_was_cut_off_is_trained_again(undisturbed, tmp_path):
    config, folder = undisturbed
    rows = folder.metrics
    for at in range(1, len(rows) + 1, 23):
        path = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            run(config, path, Stop(at))
        told = []
        run(config, path, told.append)
        assert [event.phase in EPOCHS for event in told].count(True) == sum(r.phase in EPOCHS for r in rows[at - 1 :])
        assert left_behind(path) == left_behind(folder.path), f"event {at}, {rows[at - 1].phase}"


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
from tiny_runs import run
torch.set_num_threads(1)
left = [{events}]
def kill(event):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
run({config!r}, {folder!r}, kill)
"""


@pytest.mark.slow
def test_a_killed_process_loses_no_bit(undisturbed, tmp_path):
    config, folder = undisturbed
    share = 0.97 if "convolutions" in config["router"] else 0.45  # in the router's training, in a task's
    root = Path(__file__).parents[3]
    paths = [str(root), str(root / "python"), str(root / "tests" / "support")]
    events = max(1, round(share * len(folder.metrics)))
    script = KILLED.format(paths=paths, events=events, config=config, folder=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(folder.path)


@pytest.mark.parametrize("how", ["cut", *slow("garbage", "gone", "rows")])
def test_progress_that_is_damaged_costs_the_task_s_epochs_and_no_bit(undisturbed, tmp_path, how, capsys):
    config, folder = undisturbed
    rows = folder.metrics
    at = 3 + max(number for number, row in enumerate(rows) if row.task == 0)  # in task 1's second epoch
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(at))
    path = tmp_path / "run" / "progress.safetensors"
    assert progress.reached(path)[:2] == ("task", 1)

    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(content[:-100] + bytes(100))
    elif how == "gone":
        path.unlink()
    else:  # metrics.csv is not flushed to the disk at every row
        metrics = tmp_path / "run" / "metrics.csv"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(lines[:-2]))

    run(config, tmp_path / "run")
    assert left_behind(tmp_path / "run") == left_behind(folder.path)
    assert "continuing after task 0" in capsys.readouterr().err


def test_the_run_says_where_it_goes_on(undisturbed, tmp_path, capsys):
    config, folder = undisturbed
    routers = [number for number, row in enumerate(folder.metrics, 1) if row.phase == "router"]
    for at, where in (3, "in task 0"), (routers[1], "in the router's training"):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / str(at), Stop(at))
        capsys.readouterr()
        run(config, tmp_path / str(at))
        assert f"continuing {where}" in capsys.readouterr().err
