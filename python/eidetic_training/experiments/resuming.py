"""Where a run goes on: after the last task that is complete in its folder.

Networks stand in for one another where they can. Whatever else is missing or damaged is named: no task that had been
learned is learned again in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import CheckpointError, InputError

from ..data import Task
from ..runs.folder import RunFolder
from ..runs.inputs import Inputs
from ..training.progress import reached


class Resumed(NamedTuple):
    """Where a run goes on.

    Args:
        network: after the last complete task, or with the router; fresh where there is none.
        done: the number of complete tasks.
        inside: whether the task after them, or the router, is continued inside its training.
        notes: what was made again, and what is missing, in sentences.
    """

    network: EideticNetwork
    done: int
    inside: bool
    notes: tuple[str, ...]


def resume(run: RunFolder, fresh: EideticNetwork, tasks: Sequence[Task], routed: bool) -> Resumed:
    """Bring a run's folder to where it goes on: records of what comes later are dropped, networks are made again.

    Args:
        fresh: the run's architecture; it is not changed.
        routed: whether the run ends with a router.

    Raises:
        InputError: what is needed is missing or damaged and cannot be made again, or belongs to other data.
        ForgettingError: the network on which the next task would be built is not the one that was recorded.
    """
    notes: list[str] = []
    done = _recorded(run, tasks)
    _check_inputs(run, tasks, done, notes)
    latest = _load(run, fresh)
    _check_records(run, latest, done)
    scored = _scored(run, notes)

    if done == len(tasks) and (scored or not routed):
        if latest is not None and latest.finished_tasks == done and (latest.router is not None or not routed):
            run.progress_path.unlink(missing_ok=True)
            return Resumed(latest, done, False, (*notes, *_missing(run, done)))
        again = ", and the router is trained again" if routed else ""
        notes.append(f"{run.network_path} is missing or damaged: it is made again from the last checkpoint{again}.")

    network = _after(run, fresh, latest, done, notes)
    events = _events_inside(run, done, len(tasks), notes)
    run.truncate_after(done - 1, events)
    if done:
        network.certify().check()
        network.save(run.network_path)
    return Resumed(network, done, run.progress_path.exists(), (*notes, *_missing(run, done)))


def _recorded(run: RunFolder, tasks: Sequence[Task]) -> int:
    """How many tasks' answers are on record."""
    recorded, path = run.recorded, run.path / "digests.json"
    if sorted(recorded) != list(range(len(recorded))) or len(recorded) > len(tasks):
        raise InputError(
            f"{path} is damaged: it names the tasks {', '.join(map(str, sorted(recorded)))} of {len(tasks)}; expected "
            "the first ones. Restore it from a copy of the run."
        )
    return len(recorded)


def _check_inputs(run: RunFolder, tasks: Sequence[Task], done: int, notes: list[str]) -> None:
    """Write inputs.json where it is missing or damaged. Raise InputError if the run began with other data."""
    expected = Inputs.of(tasks)
    try:
        found = run.inputs
    except InputError:
        if (run.path / "inputs.json").exists():
            notes.append(f"{run.path / 'inputs.json'} is damaged: it is written again.")
        found = None
    if found is None or not done:
        if found != expected:
            run.record_inputs(expected)
        return

    same = (found.shape, found.labels) == (expected.shape, expected.labels)
    pixels = zip((*found.mean, *found.std), (*expected.mean, *expected.std))
    if not same or not all(math.isclose(there, here, rel_tol=1e-4) for there, here in pixels):
        raise InputError(
            f"the data are not those that {run.path} began with (see inputs.json): shape, classes, or pixels' mean and "
            "deviation differ. Continue with the data of the first tasks, or begin in another folder (--run)."
        )


def _load(run: RunFolder, fresh: EideticNetwork) -> EideticNetwork | None:
    """The latest network; None if its file is missing or damaged."""
    try:
        return EideticNetwork.load(run.network_path, network=fresh)
    except CheckpointError:
        return None


def _check_records(run: RunFolder, latest: EideticNetwork | None, done: int) -> None:
    """Raise InputError if a network has learned tasks whose answers are not on record.

    A run that was killed leaves the checkpoint of one such task, at most.
    """
    learned = {run.checkpoint_path(t): t for t in run.checkpoints if t > done}
    if latest is not None and latest.finished_tasks > done:
        learned[run.network_path] = latest.finished_tasks - 1
    for path, task in learned.items():
        raise InputError(
            f"{run.path / 'digests.json'} has {done} tasks on record, and {path} has learned task {task}: without the "
            "record nothing shows whether answers change. Restore it from a copy of the run, or begin in another "
            "folder (--run)."
        )


def _scored(run: RunFolder, notes: list[str]) -> bool:
    """Whether the router's scores are there, and whole."""
    try:
        return run.router is not None
    except InputError:
        notes.append(f"{run.path / 'router.json'} is damaged. The router is trained again.")
        return False


def _after(
    run: RunFolder, fresh: EideticNetwork, latest: EideticNetwork | None, done: int, notes: list[str]
) -> EideticNetwork:
    """The network after ``done`` tasks: from the last one's checkpoint, or from the latest network if that is it."""
    if not done:
        return fresh
    path = run.checkpoint_path(done - 1)
    try:
        network = EideticNetwork.load(path, network=fresh)
        if network.finished_tasks == done:
            return network
        problem = f"it has learned {network.finished_tasks} tasks, not {done}"
    except CheckpointError as error:
        problem = str(error)

    if latest is None or latest.finished_tasks != done:
        raise InputError(
            f"the run cannot go on after task {done - 1}: {problem.rstrip('.')}. {run.network_path.name} cannot stand "
            "in for it. Restore one of them from a copy of the run, or begin in another folder (--run)."
        )
    latest.router = None
    latest.save(path)
    notes.append(f"{path} is missing or damaged: it is made again from {run.network_path.name}.")
    return latest


def _missing(run: RunFolder, done: int) -> list[str]:
    """What is said of earlier checkpoints that are not there."""
    gone = [run.checkpoint_path(t).name for t in range(done) if t not in run.checkpoints]
    if not gone:
        return []
    return [f"{run.path / 'checkpoints'} lacks {', '.join(gone)}. The run needs it no more; figures of that task do."]


def _events_inside(run: RunFolder, done: int, tasks: int, notes: list[str]) -> int:
    """How many events of the training after ``done`` complete tasks are recorded, if it can be continued inside; or 0.

    Removes progress that is of no use.
    """
    path = run.progress_path
    if not path.exists():
        return 0
    found = reached(path)
    if found is None:
        notes.append(f"{path} is damaged, or of another version: the training that it belonged to begins again.")
    elif (found.kind, found.task) == ("router" if done == tasks else "task", done):
        rows = [row for row in run.metrics if row.task >= done or row.phase == "router"]
        if len(rows) >= found.events:
            return found.events
    path.unlink()
    return 0
