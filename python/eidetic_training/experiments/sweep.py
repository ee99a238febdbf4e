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
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from eidetic_kernels.checking import whole_number
from eidetic_kernels.errors import CapacityError, EideticError, InputError, NonFiniteLossError

from ..data._extras import need
from ..runs.callbacks import Progress
from ..runs.folder import RunFolder, environment
from ..runs.locks import Lock
from ..runs.report import summary
from ..runs.tables import read_json, write_bytes, write_json
from . import config as configuration
from .experiment import run_experiment
from .search_space import SweepSettings

Say = Callable[[str], None]


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
    optuna = _optuna()
    settings = SweepSettings.of_dict(config["sweep"])
    whole_number("workers", workers, least=1)
    if not settings.space:
        raise InputError(
            "the configuration has no sweep.space, so there is nothing to search. Give it one, e.g.\n"
            '[sweep.space]\n"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }\n"task.importance" = ["l1", "l2"]'
        )
    for key, values in settings.values().items():
        for value in values.examples:  # every value is checked before hours go into the first one
            configuration.changed(config, {key: value})

    folder = Path(folder)
    _begin(folder, config)
    with _company(config, folder, workers):
        work(config, folder, say)
    with _study(optuna, folder, settings) as study:
        trials = finished_trials(study)
    text = table(trials, settings)
    write_bytes(folder / "table.md", (text + "\n").encode())
    if trials:  # otherwise all of them are still running in other processes
        write_bytes(folder / "best.toml", _best(config, trials[0]).encode())
    return text


def work(config: Mapping[str, Any], folder: Path, say: Say = print) -> None:
    """Run trials until the configuration's number of them is finished or running in other processes."""
    optuna, settings = _optuna(), SweepSettings.of_dict(config["sweep"])
    with _study(optuna, folder, settings) as study:
        while (begun := _next_trial(optuna, study, config, settings, folder)) is not None:
            trial, lock = begun
            try:
                _run_trial(optuna, study, trial, config, settings, folder)
            finally:
                lock.release()
            lock.path.unlink(missing_ok=True)
            done = finished_trials(study)
            (this,) = [each for each in done if each.number == trial.number]
            values = ", ".join(f"{key} {_shown(value)}" for key, value in this.params.items())
            say(f"{len(done)} of {settings.count} trials: {_percent(this)} with {values}; best {_percent(done[0])}")


def finished_trials(study: Any) -> list[Any]:
    """The trials of an Optuna study that are over, best first; those that were given up come last."""
    over = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]

    def rank(trial: Any) -> tuple[bool, float, int]:
        return trial.state.name == "PRUNED", -(trial.value or 0.0), int(trial.user_attrs["folder"])

    return sorted(over, key=rank)


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


def _optuna() -> ModuleType:
    return need("optuna", "A sweep", extra="sweep")


def _begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Make the folder, or check that it holds this sweep. Only the number of trials may differ."""

    def described(config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "sweep": {key: value for key, value in config["sweep"].items() if key != "trials"}}

    if folder.exists() and not (folder / "sweep.lock").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and holds no sweep. Choose a folder that is new or empty (--run).")
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    with Lock(folder / "sweep.lock"):
        if not path.exists():
            write_json(path, {"config": dict(config), "environment": environment()})
        elif described(read_json(path)["config"]) != described(config):
            raise InputError(f"{folder} holds a sweep of another configuration; give another folder (--run).")


@contextmanager
def _study(optuna: ModuleType, folder: Path, settings: SweepSettings) -> Iterator[Any]:
    """Open the study in the folder's storage, and close it at the end."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{(folder / 'study.db').resolve().as_posix()}"
    with Lock(folder / "sweep.lock"):  # two processes must not create the tables at once
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 600}})
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if settings.prune else optuna.pruners.NopPruner(),
        )
    try:
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()
        optuna.logging.set_verbosity(verbosity)


def _next_trial(
    optuna: ModuleType, study: Any, config: Mapping[str, Any], settings: SweepSettings, folder: Path
) -> tuple[Any, Lock] | None:
    """A trial for this process, and the lock that claims it. None if enough trials are finished or running."""
    state = optuna.trial.TrialState
    with Lock(folder / "sweep.lock"):
        for left in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            _take_over(study, state, left, settings, folder)
        if settings.grid:
            _queue(study, state, settings)
        taken = len(study.get_trials(deepcopy=False, states=(state.RUNNING, state.COMPLETE, state.PRUNED)))
        if taken >= settings.count:
            return None

        # Each trial has its own sampler, so that interruptions do not change what is tried.
        study.sampler = optuna.samplers.TPESampler(seed=((config["seed"] << 16) + taken) % 2**32)
        trial = study.ask()
        trial.set_user_attr("folder", trial.user_attrs.get("folder", f"{trial.number:03d}"))
        for key, values in settings.values().items():
            values.suggest(trial, key)
        lock = Lock(_lock_path(folder, trial))
        lock.acquire()
        return trial, lock


def _take_over(study: Any, state: Any, left: Any, settings: SweepSettings, folder: Path) -> None:
    """If the process of a trial has ended without finishing it, queue the trial again, with its values and folder."""
    lock = Lock(_lock_path(folder, left))
    if not lock.acquire(wait=0):
        return
    if study.get_trials(deepcopy=False)[left.number].state is state.RUNNING:  # it may just have been finished
        study.tell(left.number, state=state.FAIL)
        if left.params.keys() == settings.values().keys():  # otherwise not all values had been chosen
            study.enqueue_trial(left.params, user_attrs={"folder": left.user_attrs["folder"]})
    lock.release()
    lock.path.unlink(missing_ok=True)


def _queue(study: Any, state: Any, settings: SweepSettings) -> None:
    """Queue every combination of a grid that is not there yet, or that a killed process left before it began."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not state.FAIL]
    there = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    for values in settings.combinations():
        if values not in there:
            study.enqueue_trial(values)


def _lock_path(folder: Path, trial: Any) -> Path:
    return folder / "trials" / f"{trial.number:03d}.lock"


def _run_trial(
    optuna: ModuleType, study: Any, trial: Any, config: Mapping[str, Any], settings: SweepSettings, folder: Path
) -> None:
    """Learn the first tasks with the trial's values, and tell the study the result."""
    path = folder / "trials" / trial.user_attrs["folder"]
    watch = _Watch(path, settings.tasks, trial)
    try:
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

    for folder_of_networks in ("checkpoints", "answers"):
        shutil.rmtree(path / folder_of_networks, ignore_errors=True)
    (path / "network.safetensors").unlink(missing_ok=True)


class _Watch(Progress):
    """Shows nothing. After each task it reports the accuracy so far, and ends the trial if Optuna gives it up."""

    def __init__(self, path: Path, tasks: int, trial: Any):
        super().__init__(tasks, file=io.StringIO())
        self.path, self.trial = path, trial

    def task_done(self, line: str) -> None:
        """Report mean accuracy so far. Raises TrialPruned if the trial is given up."""
        scores = RunFolder(self.path).tests
        learned = scores[-1].learned
        self.trial.report(statistics.mean(s.accuracy for s in scores if s.learned == learned), learned)
        if self.trial.should_prune():
            raise _optuna().TrialPruned()


@contextmanager
def _company(config: Mapping[str, Any], folder: Path, workers: int) -> Iterator[None]:
    """Start the other workers and wait for them at the end; stop them if this process fails."""
    threads = torch.get_num_threads()
    each_has = max(1, threads // workers)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_work_apart, args=(config, folder, each_has)) for _ in range(workers - 1)]
    for each in others:
        each.start()
    torch.set_num_threads(each_has)

    try:
        yield
        for each in others:
            each.join()
    finally:
        torch.set_num_threads(threads)
        for each in others:
            each.terminate()
            each.join()
    if any(each.exitcode for each in others):
        raise InputError("a worker stopped before its end; its own error is above. Run the same command to continue.")


def _work_apart(config: Mapping[str, Any], folder: Path, threads: int) -> None:
    """What a worker's process runs."""
    torch.set_num_threads(threads)
    try:
        work(config, folder)
    except EideticError as error:
        sys.exit(f"eidetic sweep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


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
