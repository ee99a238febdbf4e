"""A run's folder with something missing or damaged: made again where that can be, named where not, never in silence."""

import json
import shutil

import pytest
import torch
from tiny_runs import Stop, left_behind, make_config, run, write_data

from eidetic_kernels.errors import CheckpointError, ForgettingError, InputError
from eidetic_training import models
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.networks import load_network


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(configuration, run folder) of three tasks and the router; not to be changed."""
    torch.set_num_threads(1)
    task = {"max_epochs": 2, "max_recovery_epochs": 1, "polish_epochs": 1, "step": 0.4, "keep_at_least": 4}
    config = make_config(data, model={"width": 24}, task=task, router={"max_epochs": 2}, capacity={"share": "even"})
    return config, run(config, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def copied(finished, tmp_path):
    return RunFolder(shutil.copytree(finished[1].path, tmp_path / "run"))


@pytest.fixture
def again(finished, copied):
    """again() continues the copy. Returns the phases of its events, and what it printed about itself."""

    class Said:
        def __init__(self):
            self.lines, self.phases = [], []

        def __call__(self, event):
            self.phases.append(event.phase)

        def say(self, line):
            self.lines.append(line)

        def task_done(self, line):
            pass

        def close(self):
            pass

    def again():
        said = Said()
        run_experiment(finished[0], copied.path, say=lambda line: None, progress=said)
        return said.phases, said.lines

    return again


def unlink(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = [unlink, flip]


def end_after(run, task):
    """Let the run be one that was killed just after task ``task``."""
    run.truncate_after(task)
    shutil.copy(run.checkpoint_path(task), run.network_path)


def unchanged(finished, run):
    return left_behind(run.path) == left_behind(finished[1].path)


# ---- networks stand in for one another


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_latest_network_is_made_again_and_the_router_trained_again(finished, copied, again, damage):
    damage(copied.network_path)
    phases, lines = again()
    assert set(phases) == {"router"} and unchanged(finished, copied)
    assert lines[0].endswith(
        "is missing or damaged: it is made again from the last checkpoint, and the router is trained again."
    )
    assert "network.safetensors" in lines[0]


def test_without_a_router_the_latest_network_is_the_last_checkpoint(finished, tmp_path):
    config = {**finished[0], "router": {**finished[0]["router"], "train": False}}
    whole = run(config, tmp_path / "whole")
    before = left_behind(whole.path)
    assert run(config, whole.path, Stop(1)) and left_behind(whole.path) == before, "it is complete"
    whole.network_path.unlink()
    run(config, whole.path, Stop(1))
    assert left_behind(whole.path) == before


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("last", [1, 2])
def test_the_last_checkpoint_is_made_again_from_the_latest_network(finished, copied, again, damage, last):
    if last == 1:
        end_after(copied, 1)
    else:
        (copied.path / "router.json").unlink()  # so that the run goes on, with a router in the latest network
    damage(copied.checkpoint_path(last))
    phases, lines = again()
    assert f"task_0{last}.safetensors is missing or damaged: it is made again from network.safetensors." in lines[0]
    assert unchanged(finished, copied)
    assert phases.count("finish") == 2 - last, "no task is learned again"


def test_without_both_it_is_told_what_to_restore(copied, again):
    end_after(copied, 1)
    before = sorted(copied.path.rglob("*"))
    flip(copied.checkpoint_path(1))
    for damage in (flip, lambda path: shutil.copy(copied.checkpoint_path(0), path), unlink):
        damage(copied.network_path)
        with pytest.raises(
            InputError, match="cannot go on after task 1: .*task_01.safetensors is damaged.*Restore one of"
        ):
            again()
    assert set(before) - set(copied.path.rglob("*")) == {copied.network_path}, "nothing else was touched"


def test_a_checkpoint_of_another_task_is_none(copied, again):
    end_after(copied, 1)
    shutil.copy(copied.checkpoint_path(0), copied.checkpoint_path(1))
    assert "task_01.safetensors is missing or damaged" in again()[1][0]
    end_after(copied, 1)
    for path in (copied.checkpoint_path(1), copied.network_path):
        shutil.copy(copied.checkpoint_path(0), path)
    with pytest.raises(InputError, match="it has learned 1 tasks, not 2"):
        again()


@pytest.mark.parametrize("task", [1, 2])
def test_an_early_checkpoint_is_missed_by_name_and_no_task_is_learned_again(finished, copied, again, task):
    if task == 1:
        end_after(copied, 1)
    copied.checkpoint_path(0).unlink()
    phases, lines = again()
    assert phases.count("finish") == 2 - task
    assert "checkpoints lacks task_00.safetensors." in lines[0]
    assert {name: each for name, each in left_behind(copied.path).items() if name != "checkpoints"} == {
        name: each for name, each in left_behind(finished[1].path).items() if name != "checkpoints"
    }


# ---- records


@pytest.mark.parametrize("left", [{}, {"0"}, {"0", "1"}, {"1", "2"}, None, "not JSON"])
def test_a_shortened_record_is_told_and_nothing_is_learned_again(copied, again, left):
    path = copied.path / "digests.json"
    entries = json.loads(path.read_text())
    if left is None:
        path.unlink()
    elif isinstance(left, str):
        path.write_text(left)
    else:
        path.write_text(json.dumps({task: entry for task, entry in entries.items() if task in left}))
    before = {each: each.read_bytes() for each in copied.path.rglob("*") if each.is_file()}
    for network in (True, False):
        if not network:
            copied.network_path.unlink()
            del before[copied.network_path]
            if left == {"0", "1"}:
                break  # as a run that was killed between the checkpoint and the record
        with pytest.raises(InputError, match="digests.json .*Restore it from a copy"):
            again()
        assert {each: each.read_bytes() for each in before} == before


def test_a_checkpoint_without_its_record_is_learned_again_as_it_was_killed_just_then(finished, copied, again):
    end_after(copied, 1)
    shutil.copy(finished[1].checkpoint_path(2), copied.checkpoint_path(2))
    phases, _ = again()
    assert phases.count("finish") == 1 and unchanged(finished, copied)


def test_scores_of_the_router_that_are_damaged_are_measured_again(finished, copied, again):
    (copied.path / "router.json").write_text('{"accuracy": 1}')
    phases, lines = again()
    assert set(phases) == {"router"} and unchanged(finished, copied)
    assert "router.json is damaged" in lines[0] and lines[0].endswith("The router is trained again.")


@pytest.mark.parametrize("name", ["metrics.csv", "tests.csv", "capacity.csv"])
def test_a_damaged_table_is_told_by_its_line(copied, again, name):
    path = copied.path / name
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "0,zero\n", *lines[3:]]))
    end_after_ok = name == "metrics.csv"  # which a complete run reads, too
    if not end_after_ok:
        (copied.path / "router.json").unlink()
    with pytest.raises(InputError, match=rf"{name}, line 3 is damaged \(0,zero\).*Restore it from a copy, or delete"):
        again()


def test_what_the_network_expects_is_written_again(finished, copied, again):
    for damage in (unlink, zeros):
        damage(copied.path / "inputs.json")
        _, lines = again()
        assert unchanged(finished, copied)
    assert "inputs.json is damaged: it is written again." in lines[0]


def test_other_data_than_the_run_began_with_are_refused(finished, copied, tmp_path):
    shutil.copytree(finished[0]["data"]["folder"], tmp_path / "images")
    write_data(tmp_path / "images", train=30)
    kept = json.loads((copied.path / "config.json").read_text())
    kept["config"]["data"]["folder"] = str(tmp_path / "images")
    (copied.path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match="the data are not those that .*run began with"):
        run(kept["config"], copied.path)


@pytest.mark.parametrize("damage", [cut, zeros])
def test_damaged_progress_is_told(finished, tmp_path, capsys, damage):
    config, folder = finished
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", Stop(2 + sum(row.task == 0 for row in folder.metrics)))
    damage(tmp_path / "run" / "progress.safetensors")
    run(config, tmp_path / "run")
    assert "progress.safetensors is damaged, or of another version: the training that it belonged to begins again" in (
        capsys.readouterr().err
    )
    assert left_behind(tmp_path / "run") == left_behind(folder.path)


def test_a_network_that_is_not_the_recorded_one_is_not_built_upon(finished, copied):
    end_after(copied, 1)
    network = load_network(copied, 1)
    network.heads[0].frozen_weight.view(-1)[0] += 1
    for path in (copied.checkpoint_path(1), copied.network_path):
        network.save(path)
    with pytest.raises(ForgettingError, match="task 0: heads.0: its frozen tensors are not the ones"):
        run(finished[0], copied.path, Stop(1))


def test_a_network_of_another_architecture_is_damage(finished, copied, again):
    other = models.build("mlp", copied.inputs.shape, width=5)
    other.prepare_for_task(0, 6)
    other.finish_task()
    other.save(copied.network_path)
    with pytest.raises(CheckpointError):
        load_network(copied)
    assert set(again()[0]) == {"router"} and unchanged(finished, copied)


# ---- refused before the first task


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"convolutions": [2, 3], "batch_size": 1},
            "the router cannot be trained with these options: Expected more than 1",
        ),
        ({"convolutions": [4, 4, 4]}, "read images .* of 8 x 8 pixels or more"),
    ],
)
def test_a_router_that_cannot_be_trained_is_refused_before_the_first_task(finished, tmp_path, options, message):
    config = {**finished[0], "router": {**finished[0]["router"], **options}}
    with pytest.raises(InputError, match=message):
        run(config, tmp_path / "run", Stop(1))
    assert not (tmp_path / "run").exists()
    run(
        {**config, "router": {**config["router"], "train": False}, "data": {**config["data"], "tasks": 1}},
        tmp_path / "run",
    )


def test_the_rehearsal_changes_nothing(finished, tmp_path, monkeypatch):
    from eidetic_training.experiments import experiment

    monkeypatch.setattr(experiment, "rehearse_router", lambda *arguments: torch.rand(3))
    assert left_behind(run(finished[0], tmp_path / "run").path) == left_behind(finished[1].path)


def test_answers_that_cannot_be_compared_are_told_in_a_sentence(copied, again):
    end_after(copied, 0)
    path = copied.path / "digests.json"
    recorded = json.loads(path.read_text())
    recorded["0"] |= {"sha256": "0" * 64, "images": "1" * 64}
    path.write_text(json.dumps(recorded))
    told = (
        "^after learning task 1, the test logits of task 0 cannot be compared: its test images are not .* otherwise\\.$"
    )
    with pytest.raises(InputError, match=told):
        again()
