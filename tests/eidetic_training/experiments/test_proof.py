"""A run is proved where it was made and elsewhere: another environment is named, what changed is forgetting."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import Stop, make_config, run, write_data

from eidetic_kernels.errors import ForgettingError, InputError
from eidetic_training.cli import main
from eidetic_training.experiments.experiment import make_tasks
from eidetic_training.experiments.proof import verify
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.networks import load_network


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(configuration, run folder) of three tasks; not to be changed."""
    torch.set_num_threads(1)
    # Wide enough for another number of threads to sum up otherwise.
    config = make_config(data, model={"width": 600}, task={"max_epochs": 1, "polish_epochs": 0, "step": 0.5})
    return config, run(config, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def copied(finished, tmp_path):
    return RunFolder(shutil.copytree(finished[1].path, tmp_path / "run"))


def edit(run, change):
    """Change every entry of digests.json."""
    path = run.path / "digests.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({task: change(entry) for task, entry in entries.items()}))


def pretend(run, **environment):
    """Let the records be of another environment, in which other bits were computed."""
    edit(run, lambda entry: {**entry, "sha256": "0" * 64, "environment": {**entry["environment"], **environment}})


def change_answers(run):
    """Another network, whose certificate knows nothing of the change: records are made anew."""
    network = load_network(run)
    network.heads[1].frozen_weight.view(-1)[:] *= 1.5
    network.save(run.network_path)


def certify(run, *arguments):
    return main(["certify", str(run.path), *arguments])


def proved(run):
    return verify(run, load_network(run), make_tasks(run.config["data"], run.config["seed"]))


def test_every_task_s_record_has_its_environment_and_numbers(finished):
    _, folder = finished
    for t, entry in folder.recorded.items():
        assert entry.environment["threads"] == 1 and entry.environment["dtype"] == "float32"
        assert folder.sample(t).shape == (48, 6)
    assert proved(folder) == []


@pytest.mark.slow
def test_another_number_of_threads_in_a_process_of_its_own_is_named_and_no_forgetting(finished):
    _, folder = finished
    paths = os.pathsep.join(str(Path(__file__).parents[3] / part) for part in (".", "python"))
    script = "import sys, torch; torch.set_num_threads(3); from eidetic_training.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "certify", str(folder.path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert "threads 1 (here 3)" in done.stdout  # of the network's own certificate, and of the test logits
    said = done.stdout.splitlines()[-1]
    assert said.startswith("The test logits of task 0, 1, 2 were recorded with threads 1 (here 3)") or "SHA-256" in said


def test_what_differs_is_named_and_numbers_are_compared(copied, capsys):
    pretend(copied, threads=8)
    assert certify(copied) == 0
    out = capsys.readouterr().out
    assert "The test logits of task 0, 1, 2 were recorded with threads 8 (here 1): they were compared as numbers" in out
    assert "SHA-256" not in out


@pytest.mark.parametrize("elsewhere", [{}, {"threads": 8}])
def test_changed_weights_are_forgetting_in_any_environment(copied, elsewhere, capsys):
    if elsewhere:
        pretend(copied, **elsewhere)
    change_answers(copied)
    assert certify(copied) == 1
    with pytest.raises(ForgettingError, match="the test logits of task 1 are not those taken when it was learned"):
        proved(copied)


def test_a_run_goes_on_in_another_environment(finished, tmp_path, capsys):
    config, folder = finished
    second = 2 + next(i for i, row in enumerate(folder.metrics) if row.task == 1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(second))
    pretend(RunFolder(tmp_path / "run"), threads=8)
    said = []
    from eidetic_training.experiments.experiment import run_experiment

    whole = run_experiment(config, tmp_path / "run", say=said.append)
    assert len(whole.digests) == 3 and whole.recorded[1].environment["threads"] == 1
    assert said == [
        "The test logits of task 0 were recorded with threads 8 (here 1): they were compared as numbers, not bit for "
        "bit, and agree within 1e-04 of the largest."
    ]


def test_records_of_0_1_0_cannot_tell_forgetting_from_another_environment(copied, capsys):
    edit(copied, lambda entry: entry["sha256"])
    assert certify(copied) == 0 and "SHA-256 equals" in capsys.readouterr().out
    edit(copied, lambda entry: "0" * 64)
    assert certify(copied) == 0
    assert "it cannot be told whether another environment rounds otherwise" in capsys.readouterr().out
    change_answers(copied)
    assert certify(copied) == 1  # by the network's own records


# ---- what is missing


@pytest.mark.parametrize("left", [{}, {"0"}, {"0", "2"}, None])
def test_a_digest_that_is_missing_is_an_error_and_neither_a_proof_nor_forgetting(copied, left, capsys):
    path = copied.path / "digests.json"
    if left is None:
        path.unlink()
    else:
        path.write_text(json.dumps({t: entry for t, entry in json.loads(path.read_text()).items() if t in left}))
    gone = [str(t) for t in range(3) if str(t) not in (left or ())]
    assert certify(copied) == 2
    message = capsys.readouterr().err
    assert re.search(
        f"the test logits of task {', '.join(gone)} cannot be compared: .*digests.json has nothing", message
    )
    assert certify(copied, "--no-data") == 0


def test_numbers_that_are_missing_matter_in_another_environment_alone(copied, capsys):
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"\x08" + bytes(7) + b"nonsense")):
        damage(copied.answers_path(1))
        assert certify(copied) == 0
    pretend(copied, threads=8)
    assert certify(copied) == 2
    assert "the test logits of task 1 cannot be compared: they were recorded with threads 8" in capsys.readouterr().err
    shutil.copy(copied.answers_path(0), copied.answers_path(1))  # numbers of something else
    assert certify(copied) == 2


def test_forgetting_is_told_before_what_cannot_be_compared(copied):
    edit(copied, lambda entry: {**entry, "sha256": "0" * 64})
    entries = json.loads((copied.path / "digests.json").read_text())
    del entries["0"]
    (copied.path / "digests.json").write_text(json.dumps(entries))
    with pytest.raises(ForgettingError, match="task 1, 2"):
        proved(copied)


def test_other_test_images_are_an_error_and_not_forgetting(finished, tmp_path):
    config, folder = finished
    shutil.copytree(config["data"]["folder"], tmp_path / "images")
    write_data(tmp_path / "images", test=36)
    other = {**config["data"], "folder": str(tmp_path / "images")}
    with pytest.raises(InputError, match="task 0, 1, 2 cannot be compared: its test images are not those"):
        verify(folder, load_network(folder), make_tasks(other, config["seed"]))
