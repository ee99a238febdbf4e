"""The hyperparameter search (paper, section 4): learn the first tasks, measure on a held-out part of training sets.

A sweep's folder holds

    sweep.json     the configuration and the environment
    study.db       every trial, in Optuna's own storage
    trials/        a run folder for each trial; its networks are removed once it is over
    table.md       the trials, best first
    best.toml      the configuration with the best trial's values, for `eidetic train`
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from eidetic_kernels.checking import function, path, whole_number
from eidetic_kernels.errors import CapacityError, ForgettingError, InputError, NonFiniteLossError

from ..ending import FORGOTTEN, status_of
from ..runs.callbacks import Progress
from ..runs.folder import RunFolder
from ..runs.leftovers import remove_temporaries
from ..runs.locks import Lock
from ..runs.report import summary
from ..runs.run_environment import environment
from ..runs.tables import read_json, write_bytes, write_json
from . import config as configuration
from .experiment import build, run_experiment
from .search_space import SweepSettings
from .tasks import make_tasks
from .trials import finished_trials, need_optuna, next_trial, study_in, tidy
from .workers import Leash, begin_worker, threads_each

Say = Callable[[str], None]

_FORGOT = 3  # a worker's exit status; Python's own failures have 1


def sweep(config: Mapping[str, Any], folder: Path, workers: int = 1, say: Say = print) -> str:
    """Try settings from a complete configuration's ``sweep.space``. Returns the table of trials.

    Each trial learns the first tasks of the sequence, without the held-out part of their training sets. Its value is
    the mean accuracy of these tasks, at the end, on the held-out part. Test sets are never used. All trials have the
    configuration's seed.

    Run it again to resume, even in the middle of a trial: it tries what an undisturbed sweep would have tried. Several
    processes may run the same sweep and share its trials. Then the trials after the sampler's first ten draws depend on
    which trials are finished by then.

    Args:
        folder: where trials and results are kept.
        workers: how many processes to start here; torch's threads are divided among them.
        say: called with a line about each trial.

    Raises InputError for wrong settings or a wrong space, without Optuna, for a folder that holds another sweep, and if
    a worker fails.
    """
    need_optuna()
    config, folder = configuration.complete(config), Path(path("folder", folder, "a folder"))
    settings = SweepSettings.of_dict(config["sweep"])
    whole_number("workers", workers, least=1)
    function("say", say, "a function of a line")
    if not settings.space:
        raise InputError(
            "the configuration has no sweep.space, so there is nothing to search. Give it one, e.g.\n"
            '[sweep.space]\n"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }\n"task.importance" = ["l1", "l2"]'
        )
    _check(config, settings)

    _begin(folder, config)
    with _company(config, folder, workers):
        work(config, folder, say)
    with study_in(folder, settings) as study:
        trials = finished_trials(study)
    text = table(trials, settings)
    with Lock(folder / "sweep.lock"):
        write_bytes(folder / "table.md", (text + "\n").encode())
        if trials:  # otherwise all of them are still running in other processes
            write_bytes(folder / "best.toml", _best(config, trials[0]).encode())
    return text


def work(config: Mapping[str, Any], folder: Path, say: Say = print) -> None:
    """Run trials until the configuration's number of them is finished or running in other processes."""
    settings = SweepSettings.of_dict(config["sweep"])
    with study_in(folder, settings) as study:
        while (begun := next_trial(study, config, settings, folder)) is not None:
            trial, lock = begun
            try:
                _run_trial(study, trial, config, settings, folder)
            finally:
                lock.release()
            tidy(folder, trial)
            done = finished_trials(study)
            (this,) = [each for each in done if each.number == trial.number]
            values = ", ".join(f"{key} {_shown(value)}" for key, value in this.params.items())
            say(f"{len(done)} of {settings.count} trials: {_percent(this)} with {values}; best {_percent(done[0])}")


def table(trials: list[Any], settings: SweepSettings) -> str:
    """Trials in Markdown, in the given order."""
    keys = list(settings.values())
    header = ["trial", "accuracy, held out", "by task", "units", "epochs", "s", *keys]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for trial in trials:
        notes = trial.user_attrs
        cells = [notes["folder"], _percent(trial)]
        if (result := notes.get("result")) is not None:
            cells.append(" / ".join(f"{100 * accuracy:.1f}" for accuracy in result["by_task"]))
            cells += [f"{result['used']:.0%}", str(result["epochs"]), f"{result['seconds']:.0f}"]
        else:
            cells += [notes.get("note", "given up"), "", "", ""]
        lines.append("| " + " | ".join([*cells, *(_shown(trial.params[key]) for key in keys)]) + " |")
    return "\n".join(lines)


def trial_config(config: Mapping[str, Any], settings: SweepSettings, params: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a trial with ``params``: the first tasks, tested on the held-out part of training sets."""
    protocol = {"data.learn_first": settings.tasks, "data.held_out": settings.held_out, "router.train": False}
    return configuration.changed({**config, "sweep": {}}, {**settings.chosen(params), **protocol})


def _check(config: Mapping[str, Any], settings: SweepSettings) -> None:
    """Raise InputError for a value that cannot be, before hours go into the first one."""
    changed = [
        configuration.changed({**config, "router": {**config["router"], "train": False}}, {key: value})
        for key, values in settings.values().items()
        for value in values.examples
    ]
    tasks = make_tasks(config["data"], config["seed"])
    for each in changed:
        build(each, tasks)


def _begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder, or check that it holds this sweep. Only the number of trials may differ."""

    def described(config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "sweep": {key: value for key, value in config["sweep"].items() if key != "trials"}}

    if folder.exists() and not (folder / "sweep.lock").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no sweep. Choose a folder that is new or empty (--run).")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    with Lock(folder / "sweep.lock"):
        remove_temporaries([folder])
        (folder / "trials").mkdir(exist_ok=True)
        if not path.exists():
            write_json(path, {"config": dict(config), "environment": environment()})
            return
        there = read_json(path)
        if not isinstance(there, dict) or not isinstance(there.get("config"), dict) or "sweep" not in there["config"]:
            raise InputError(f"{path} is damaged: it holds no sweep's configuration. Restore it from a copy.")
        if described(there["config"]) != described(config):
            raise InputError(f"{folder} holds a sweep of another configuration; give another folder (--run).")


def _run_trial(study: Any, trial: Any, config: Mapping[str, Any], settings: SweepSettings, folder: Path) -> None:
    """Learn the first tasks with the trial's values, and tell the study the result."""
    optuna, path = need_optuna(), folder / "trials" / trial.user_attrs["folder"]
    watch = _Watch(path, settings.tasks, trial)

    try:
        watch.catch_up()
        run = run_experiment(trial_config(config, settings, trial.params), path, say=lambda line: None, progress=watch)
    except (NonFiniteLossError, CapacityError) as error:  # the worst value, so that the sampler avoids such settings
        trial.set_user_attr("note", "no units left" if isinstance(error, CapacityError) else "loss not finite")
        study.tell(trial, 0.0)
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except InputError as error:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise InputError(f"trial {trial.user_attrs['folder']} ({trial.params}): {error}") from error
    else:
        result = summary(run)
        units = [(layer.kept, layer.width) for layer in result.layers]
        found = {
            "by_task": [task.end for task in result.tasks],
            "used": sum(kept for kept, _ in units) / sum(width for _, width in units),
            "epochs": result.epochs,
            "seconds": result.seconds,
        }
        trial.set_user_attr("result", found)
        study.tell(trial, result.mean_end)


class _Watch(Progress):
    """Shows nothing. After each task it reports the accuracy so far, and ends the trial if Optuna gives it up."""

    def __init__(self, path: Path, tasks: int, trial: Any):
        super().__init__(tasks, file=io.StringIO())
        self.path, self.trial = path, trial

    def catch_up(self) -> None:
        """Report on tasks that another process learned. Raises TrialPruned if the trial is given up."""
        if (self.path / "config.json").exists():
            for learned in sorted(RunFolder(self.path).digests):
                self.report(learned)

    def task_done(self, line: str) -> None:
        """Report on the task. Raises TrialPruned if the trial is given up."""
        self.report(RunFolder(self.path).tests[-1].learned)

    def report(self, learned: int) -> None:
        """Report mean accuracy after task ``learned``. Raises TrialPruned if the trial is given up."""
        scores = [score.accuracy for score in RunFolder(self.path).tests if score.learned == learned]
        self.trial.report(statistics.mean(scores), learned)
        if self.trial.should_prune():
            raise need_optuna().TrialPruned()


@contextmanager
def _company(config: Mapping[str, Any], folder: Path, workers: int) -> Iterator[None]:
    """Start the other workers and wait for them at the end; end them if this process fails or ends."""
    context = multiprocessing.get_context("spawn")
    leash, before = Leash(context), torch.get_num_threads()
    arguments = (config, folder, threads_each(workers), leash.workers_end)
    others = [context.Process(target=_work_apart, args=arguments) for _ in range(workers - 1)]
    torch.set_num_threads(threads_each(workers))
    try:
        for each in others:
            each.start()
        yield
        for each in others:
            each.join()
    finally:
        torch.set_num_threads(before)
        leash.let_go()
        for each in others:
            if each.pid is not None:  # it was started
                each.join()

    codes = [each.exitcode for each in others]
    if _FORGOT in codes:
        raise ForgettingError("a worker's trial forgot a task; its own message is above.")
    if any(codes):
        raise InputError("a worker stopped before its end; its own error is above. Run the same command to continue.")


def _work_apart(config: Mapping[str, Any], folder: Path, threads: int, leash: Connection) -> None:
    """What a worker's process runs."""
    begin_worker(threads, leash)
    status = status_of(lambda: work(config, folder), "eidetic sweep", stopped=None)
    sys.exit(_FORGOT if status == FORGOTTEN else status)


def _best(config: Mapping[str, Any], trial: Any) -> str:
    """The configuration with a trial's values, as TOML. It learns all tasks from all training data."""
    chosen = configuration.changed(config, SweepSettings.of_dict(config["sweep"]).chosen(trial.params))
    kept = {key: value for key, value in chosen.items() if key not in ("sweep", "compare", "methods")}
    about = f"Trial {trial.user_attrs['folder']} of a sweep: {_percent(trial)} on the held-out part."
    return f"# {about}\n{configuration.to_toml(kept)}"


def _percent(trial: Any) -> str:
    return "-" if trial.value is None else f"{100 * trial.value:.2f}"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
