"""The proof that a run has forgotten nothing: every task's answers are those on record since it was learned."""

from __future__ import annotations

from collections.abc import Sequence

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import ForgettingError, InputError
from eidetic_kernels.tasks.base import device_of

from ..data import Task, TensorLoader
from ..runs.answers import Answers, Difference, NotComparable, answers_of, compare, sentences
from ..runs.folder import RunFolder

EVALUATION_BATCH = 500


def loader_of(network: EideticNetwork, task: Task) -> TensorLoader:
    """The task's test set on the network's device, always in the same batches: bits depend on them."""
    return task.test_loader(EVALUATION_BATCH, device_of(network))


def answers(network: EideticNetwork, tasks: Sequence[Task], task: int) -> Answers:
    """What the network answers now on finished task ``task``'s test set."""
    return answers_of(network, loader_of(network, tasks[task]), task)


def check_past(run: RunFolder, task: int, now: Answers, data: Task, learned: int) -> None:
    """Compare a task's answers with those on record, after task ``learned`` was learned.

    Raises ForgettingError where they have changed, InputError where nothing is on record to compare them with.
    """
    try:
        found = _difference(run, task, now, data)
    except NotComparable as error:
        raise InputError(f"after learning task {learned}, {sentences([(task, str(error))])[0]}") from None
    if found is not None and found.forgotten:
        raise ForgettingError(f"after learning task {learned}, {sentences([(task, found.how)])[0]}")


def verify(run: RunFolder, network: EideticNetwork, tasks: Sequence[Task]) -> list[str]:
    """Recall every finished task's test set and compare its logits with those on record since it was learned.

    Returns:
        What could not be compared bit for bit, and why, in sentences. Empty where every task's logits have the SHA-256
        that they had.

    Raises:
        ForgettingError: the logits of a task have changed. The message names all such tasks.
        InputError: nothing is on record of a finished task, or its record cannot be compared with.
    """
    if network.finished_tasks > len(tasks):
        raise InputError(
            f"the network has learned {network.finished_tasks} tasks and the configuration has {len(tasks)}: one of "
            f"them is not that of {run.path}. Restore it from a copy of the run."
        )
    forgotten, notes, unknown = [], [], []
    for t in range(network.finished_tasks):
        try:
            found = _difference(run, t, answers(network, tasks, t), tasks[t])
        except NotComparable as error:
            unknown.append((t, str(error)))
            continue
        if found is not None:
            (forgotten if found.forgotten else notes).append((t, found.how))
    if forgotten:
        raise ForgettingError(" ".join(sentences(forgotten)))
    if unknown:
        raise InputError(" ".join(sentences(unknown)))
    return sentences(notes)


def summed_up(tasks: int, notes: Sequence[str]) -> str:
    """What :func:`verify` found, in a sentence for each thing that it said; ``tasks`` were compared."""
    if not notes:
        return f"{tasks} of {tasks} tasks: the test logits' SHA-256 equals the one taken when the task was learned."
    return "\n".join(f"{note[0].upper()}{note[1:]}" for note in notes)


def _difference(run: RunFolder, task: int, now: Answers, data: Task) -> Difference | None:
    """How a task's answers differ from those on record; see :func:`eidetic_training.runs.answers.compare`."""
    recorded = run.recorded.get(task)
    if recorded is None:
        raise NotComparable(
            f"cannot be compared: {run.path / 'digests.json'} has nothing on record of a task that the network has "
            "learned. Restore the file from a copy of the run"
        )
    return compare(recorded, run.sample(task), now, data)
