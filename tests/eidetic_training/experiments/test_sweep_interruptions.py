"""Interruptions change nothing of what a sweep tries, or of what comes of it; processes share its trials."""

import multiprocessing

import pytest
import torch
from small_sweeps import config_of, found, pretended, quietly, trials_of

from eidetic_kernels.errors import InputError
from eidetic_training.experiments import experiment
from eidetic_training.experiments import sweep as module
from eidetic_training.experiments.search_space import SweepSettings
from eidetic_training.experiments.sweep import sweep, work
from eidetic_training.experiments.trials import next_trial, study_in, take_over
from eidetic_training.runs.locks import Lock

optuna = pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """(configuration, folder) of a sweep by one worker; not to be changed."""
    config, folder = config_of(data), tmp_path_factory.mktemp("sweeps") / "swept"
    quietly(config, folder)
    return config, folder


def test_an_interrupted_sweep_goes_on_within_the_trial_and_ends_as_if_undisturbed(swept, tmp_path, monkeypatch):
    config, folder = swept
    real, learned = experiment.train_task, []

    def interrupted(network, *arguments, **options):
        learned.append(network.current_task)
        if len(learned) == 4:  # the second task of the second trial
            raise KeyboardInterrupt
        return real(network, *arguments, **options)

    monkeypatch.setattr(experiment, "train_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quietly(config, tmp_path / "run")
    assert not (tmp_path / "run" / "table.md").exists()
    quietly(config, tmp_path / "run")
    assert learned == [0, 1, 0, 1, 1, 0, 1]
    assert found(config, tmp_path / "run") == found(config, folder)
    names = sorted(path.name for path in (tmp_path / "run" / "trials").iterdir())
    assert len(names) == 3 and names[:2] == ["000", "001"]


@pytest.mark.slow
def test_the_sampler_goes_on_as_if_undisturbed_once_it_learns_from_trials(data, tmp_path, monkeypatch):
    config = config_of(data, trials=12)
    monkeypatch.setattr(module, "run_experiment", pretended)
    quietly(config, tmp_path / "whole")
    begun = []

    def interrupted(config, path, say, progress):
        begun.append(path)
        if len(begun) in (3, 12):
            raise KeyboardInterrupt
        return pretended(config, path, say, progress)

    monkeypatch.setattr(module, "run_experiment", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quietly(config, tmp_path / "cut")
    quietly(config, tmp_path / "cut")
    assert len(begun) == 14
    assert found(config, tmp_path / "cut") == found(config, tmp_path / "whole")
    assert len({params["optimizer.lr"] for params, *_ in found(config, tmp_path / "cut")}) == 12


def stall(config, folder, connection):
    """A worker that stands still in its first trial."""

    def stalled(config, path, say, progress):
        connection.send(path)
        connection.recv()

    module.run_experiment = stalled
    work(config, folder, say=lambda line: None)


@pytest.mark.slow
def test_workers_share_trials_and_a_killed_one_s_is_taken_over(data, tmp_path, monkeypatch):
    config, folder = config_of(data, trials=4), tmp_path / "run"
    monkeypatch.setattr(module, "run_experiment", pretended)
    module._begin(folder, config)

    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=stall, args=(config, folder, there))
    other.start()
    there.close()  # its own end stays open: if it dies, recv() raises
    try:
        stalled = here.recv()
        quietly(config, folder)
        assert len(found(config, folder)) == 3, "one is in work elsewhere"
    finally:
        other.kill()
        other.join()

    said = []
    sweep(config, folder, say=said.append)
    assert [line.split(":")[0] for line in said] == ["4 of 4 trials"]
    (last,) = [trial for trial in trials_of(config, folder) if trial.number == 4]
    assert folder / "trials" / last.user_attrs["folder"] == stalled

    quietly(config, tmp_path / "whole")
    assert found(config, folder) == found(config, tmp_path / "whole")


def test_trials_are_given_out_by_one_process_at_a_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_experiment", pretended)
    ask, free = optuna.study.Study.ask, []

    def asked(study, *arguments):
        other = Lock(tmp_path / "run" / "sweep.lock")
        free.append(other.acquire(wait=0))
        other.release()
        return ask(study, *arguments)

    monkeypatch.setattr(optuna.study.Study, "ask", asked)
    quietly(config_of(data, trials=2), tmp_path / "run")
    assert free == [False, False]


@pytest.mark.slow
def test_two_workers_here_try_what_one_tries(swept, tmp_path):
    config, folder = swept
    beside = []
    torch.set_num_threads(2)
    sweep(config, tmp_path / "run", 2, say=lambda line: beside.append(len(multiprocessing.active_children())))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert beside[0] == 1 and not multiprocessing.active_children()
    assert found(config, tmp_path / "run") == found(config, folder)


@pytest.mark.slow
def test_a_worker_that_fails_is_told(data, tmp_path, monkeypatch, capfd):
    config = config_of(data, trials=2, space={"optimizer.betas": [1, 2]})
    with pytest.raises(InputError, match="optimizer 'adamw'"):
        quietly(config, tmp_path / "alone")
    assert not (tmp_path / "alone").exists(), "a value that cannot be is refused before anything runs"
    monkeypatch.setattr(module, "_check", lambda *arguments: None)
    with pytest.raises(InputError, match=r"trial 000 \({'optimizer.betas': .*optimizer 'adamw'"):
        quietly(config, tmp_path / "alone")
    monkeypatch.setattr(module, "work", lambda *arguments: None)  # here; the other process runs the real one
    with pytest.raises(InputError, match="a worker stopped before its end; its own error is above"):
        quietly(config, tmp_path / "run", workers=2)
    assert "eidetic sweep: trial 000" in capfd.readouterr().err


def test_a_trial_that_is_finished_just_now_is_not_taken_over(data, tmp_path):
    config = config_of(data)
    settings = SweepSettings.of_dict(config["sweep"])
    module._begin(tmp_path / "run", config)
    with study_in(tmp_path / "run", settings) as study:
        trial, lock = next_trial(study, config, settings, tmp_path / "run")
        (seen,) = study.get_trials()
        study.tell(trial, 0.5)
        lock.release()
        take_over(study, optuna.trial.TrialState, seen, settings, tmp_path / "run")
        (after,) = study.get_trials()
        assert after.state.name == "COMPLETE" and after.value == 0.5


def test_a_database_that_was_left_half_made_is_made_anew(tmp_path, monkeypatch):
    """As where the process was killed while Optuna noted the version of its tables."""
    from optuna.storages._rdb import storage

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage._VersionManager, "_set_alembic_revision", killed)
    with pytest.raises(KeyboardInterrupt), study_in(tmp_path, SweepSettings()):
        pass
    monkeypatch.undo()

    assert not (tmp_path / "study.db").exists()
    with study_in(tmp_path, SweepSettings()) as study:
        assert study.get_trials() == []


def test_the_lock_of_a_trial_whose_process_was_killed_as_it_queued_it_again_is_removed(data, tmp_path):
    config, folder = config_of(data), tmp_path / "run"
    settings = SweepSettings.of_dict(config["sweep"])
    module._begin(folder, config)
    with study_in(folder, settings) as study:
        trial, lock = next_trial(study, config, settings, folder)
        lock.release()
        study.tell(trial, state=optuna.trial.TrialState.FAIL)  # and killed here

    assert lock.path.exists()
    with study_in(folder, settings):
        assert not lock.path.exists()
