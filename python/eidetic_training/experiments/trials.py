"""The trials of a sweep in Optuna's storage: given out to one process each, and taken over from processes that died.

Whatever a process is doing when it is killed, the next one finds a trial that is running without its lock, and queues
it again with its values and its folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from eidetic_kernels.errors import InputError
from eidetic_kernels.files import replacing

from ..data._extras import need
from ..runs.leftovers import remove_temporaries
from ..runs.locks import Lock
from .search_space import SweepSettings


def need_optuna() -> ModuleType:
    """Optuna. Raises InputError without it."""
    return need("optuna", "A sweep", extra="sweep")


def finished_trials(study: Any) -> list[Any]:
    """The trials of an Optuna study that are over, best first; those that were given up come last."""
    over = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]

    def rank(trial: Any) -> tuple[bool, float, int]:
        return trial.state.name == "PRUNED", -(trial.value or 0.0), int(trial.user_attrs["folder"])

    return sorted(over, key=rank)


@contextmanager
def study_in(folder: Path, settings: SweepSettings) -> Iterator[Any]:
    """Open the study in the folder's storage, and close it at the end."""
    optuna = need_optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    database, sql = folder / "study.db", need("sqlalchemy.exc", "A sweep", extra="sweep")
    pruner = optuna.pruners.MedianPruner() if settings.prune else optuna.pruners.NopPruner()

    try:
        with ExitStack() as opened:
            with Lock(folder / "sweep.lock"):  # two processes must not make the database at once
                if not database.exists():
                    # Made whole, then put in its place: Optuna does not open one whose tables were left half made.
                    with replacing(database) as new, _study(optuna, new, pruner):
                        pass
                study = opened.enter_context(_study(optuna, database, pruner))
                for trial in finished_trials(study):
                    tidy(folder, trial)
                for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.FAIL,)):
                    _remove_lock(folder, trial)  # of a process that was killed as it queued the trial again
            yield study
    except (optuna.exceptions.StorageInternalError, sql.SQLAlchemyError) as error:
        raise InputError(
            f"{database} is damaged or cannot be written ({str(error).splitlines()[0]}). Restore it from a copy, or "
            "sweep in another folder (--run)."
        ) from error
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _study(optuna: ModuleType, database: Path, pruner: Any) -> Iterator[Any]:
    """The study in ``database``, which is made if it is not there yet; closed at the end."""
    url = f"sqlite:///{database.resolve().as_posix()}"
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 600}})
    try:
        yield optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True, pruner=pruner
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def next_trial(study: Any, config: Mapping[str, Any], settings: SweepSettings, folder: Path) -> tuple[Any, Lock] | None:
    """A trial for this process, and the lock that claims it. None if enough trials are finished or running."""
    optuna = need_optuna()
    state = optuna.trial.TrialState
    with Lock(folder / "sweep.lock"):
        for left in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            take_over(study, state, left, settings, folder)
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


def take_over(study: Any, state: Any, left: Any, settings: SweepSettings, folder: Path) -> None:
    """If the process of a trial has ended without finishing it, queue the trial again, with its values and folder."""
    lock = Lock(_lock_path(folder, left))
    if not lock.acquire(wait=0):
        return
    trials = study.get_trials(deepcopy=False)
    if trials[left.number].state is state.RUNNING:  # it may just have been finished
        values = {**left.system_attrs.get("fixed_params", {}), **left.params}
        name = left.user_attrs.get("folder")
        # Without all values, they are chosen again. What is queued already was so by a process that was killed here.
        queued = any(each.state is state.WAITING and each.user_attrs.get("folder") == name for each in trials)
        if name is not None and values.keys() == settings.values().keys() and not queued:
            study.enqueue_trial(values, user_attrs={"folder": name})
        study.tell(left.number, state=state.FAIL)
    lock.release()
    _remove_lock(folder, left)


def _queue(study: Any, state: Any, settings: SweepSettings) -> None:
    """Queue every combination of a grid that is not there yet, or that a killed process left before it began."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not state.FAIL]
    there = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    for values in settings.combinations():
        if values not in there:
            study.enqueue_trial(values)


def tidy(folder: Path, trial: Any) -> None:
    """Remove the networks of a trial that is over, and its lock."""
    path = folder / "trials" / trial.user_attrs["folder"]
    for networks in ("checkpoints", "answers"):
        shutil.rmtree(path / networks, ignore_errors=True)
    for name in ("network.safetensors", "progress.safetensors"):
        (path / name).unlink(missing_ok=True)
    remove_temporaries([path])
    _remove_lock(folder, trial)


def _remove_lock(folder: Path, trial: Any) -> None:
    lock = _lock_path(folder, trial)
    for file in (lock, lock.with_name(f"{lock.name}-journal")):  # SQLite's own, of a process that was killed
        file.unlink(missing_ok=True)


def _lock_path(folder: Path, trial: Any) -> Path:
    return folder / "trials" / f"{trial.number:03d}.lock"
