"""Small sweeps: a configuration that takes a second a trial, or nothing at all, and what came of its trials."""

from tiny_runs import make_config

from eidetic_kernels.tasks.capacity import Capacity, CapacityRow
from eidetic_training.experiments.search_space import SweepSettings
from eidetic_training.experiments.sweep import sweep
from eidetic_training.experiments.trials import finished_trials, study_in
from eidetic_training.runs.folder import RunFolder

SPACE = {"optimizer.lr": {"low": 0.005, "high": 0.05, "log": True}, "task": {"importance": ["l1", "l2"]}}


def config_of(folder, /, **settings):
    settings = {"trials": 3, "tasks": 2, "held_out": 0.25, "space": SPACE, **settings}
    task = {"max_epochs": 2, "max_recovery_epochs": 1, "polish_epochs": 0, "step": 0.3}
    return make_config(folder, model={"width": 18}, task=task, sweep=settings, capacity={"share": "even"})


def quietly(config, folder, workers=1):
    return sweep(config, folder, workers, say=lambda line: None)


def trials_of(config, folder):
    with study_in(folder, SweepSettings.of_dict(config["sweep"])) as study:
        return finished_trials(study)


def found(config, folder):
    """What was tried and what came of it, best first."""
    over = trials_of(config, folder)
    results = [trial.user_attrs.get("result", {}) for trial in over]
    return [(t.params, t.value, t.state.name, r.get("by_task"), r.get("used")) for t, r in zip(over, results)]


def pretended(config, path, say, progress):
    """Stands for run_experiment: an accuracy that only the learning rate decides, at once."""
    run = RunFolder.create(path, config)
    accuracy = 1 - abs(config["optimizer"]["lr"] - 0.02) * 10
    for task in range(2):
        run.record_capacity(task, Capacity((CapacityRow("all", 10, frozen=(2,) * (task + 1), live=0),)))
        for past in range(task + 1):
            run.record_test(task, past, accuracy)
        progress.task_done("")
    return run
