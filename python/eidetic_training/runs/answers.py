"""What a finished task answers on its test set: recorded when the task is learned, and compared with ever after.

In an equal environment (machine, versions, threads, settings of torch) the answers have the same bits. In another one
the same network rounds otherwise, so a sample of the logits is kept as numbers, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError
from eidetic_kernels.records.certificate import tolerance
from eidetic_kernels.records.environment import differences, environment
from eidetic_kernels.tasks.base import head_of
from eidetic_kernels.tasks.record import Environment, digest

from ..data import Task, TensorLoader
from ..training.accuracy import ClassCount
from ..training.epoch import evaluate

SAMPLE = 1000  # logits of this many test inputs are kept as numbers, at most


class Answers(NamedTuple):
    """A finished task's answers, as they are now.

    Args:
        accuracy: test accuracy in [0, 1].
        classes: right answers and samples of each class.
        sha256: of the logits of the whole test set, batch after batch.
        sample: the logits [n, classes] of at most ``SAMPLE`` inputs, evenly spaced over the test set, on the CPU.
        environment: where they were computed.
    """

    accuracy: float
    classes: tuple[ClassCount, ...]
    sha256: str
    sample: Tensor
    environment: Environment


@dataclass(frozen=True)
class Recorded:
    """What is on record of a task's answers: an entry of digests.json.

    Args:
        sha256: of the logits of the whole test set.
        environment: where they were computed. Versions up to 0.1.0 recorded the SHA-256 alone.
        images: the digest of the test images, before they are normalised.
        sample: the digest of the logits that are kept as numbers, in a file of their own.
    """

    sha256: str
    environment: Environment | None = None
    images: str | None = None
    sample: str | None = None

    @classmethod
    def of(cls, answers: Answers, task: Task) -> Recorded:
        """The record of a task that was just learned."""
        return cls(answers.sha256, answers.environment, digest(task.test.images), digest(answers.sample))

    @classmethod
    def from_json(cls, entry: Any) -> Recorded:
        """What :meth:`to_json` gave, or the SHA-256 alone. Raises InputError for anything else."""
        if isinstance(entry, str):
            return cls(entry)
        if isinstance(entry, Mapping) and set(entry) == {"sha256", "environment", "images", "sample"}:
            where = entry["environment"]
            texts = [entry[name] for name in ("sha256", "images", "sample")]
            if all(isinstance(text, str) for text in texts) and isinstance(where, Mapping):
                return cls(texts[0], cast(Environment, dict(where)), texts[1], texts[2])
        raise InputError(
            "expected a SHA-256, or a table of sha256, environment, images and sample for each task; "
            f"got {str(entry)[:100]}."
        )

    def to_json(self) -> Any:
        """As JSON knows it."""
        return self.sha256 if self.environment is None else asdict(self)


class Difference(NamedTuple):
    """How answers differ from the recorded ones: ``how`` follows the words "the test logits of task 3 ..."."""

    how: str
    forgotten: bool


class NotComparable(InputError):
    """What answers were to be compared with is missing, or is of other data.

    The message follows the words "the test logits of task 3"; :func:`sentences` makes a sentence of it.
    """


def answers_of(network: EideticNetwork, loader: TensorLoader, task: int) -> Answers:
    """Recall finished ``task`` on its whole test set."""
    step = -(-loader.num_samples // SAMPLE)
    kept, seen = list[Tensor](), 0

    def keep(logits: Tensor) -> None:
        nonlocal seen
        kept.append(logits[-seen % step :: step].cpu())
        seen += len(logits)

    result = evaluate(network, loader, task, each=keep)
    here = environment(head_of(network, task).frozen_weight)
    return Answers(result.accuracy, result.classes, result.digest, torch.cat(kept), here)


def compare(recorded: Recorded, sample: Tensor | None, now: Answers, task: Task) -> Difference | None:
    """How a task's answers differ from those on record. None where not one bit does.

    Args:
        sample: the recorded logits as numbers; None where their file is missing or damaged.

    Raises NotComparable for other test images than those on record, and where another environment may round otherwise
    and there are no numbers to compare.
    """
    if now.sha256 == recorded.sha256:
        return None
    if recorded.images not in (None, digest(task.test.images)):
        raise NotComparable(
            "cannot be compared: its test images are not those of when it was learned. The data set was changed, or "
            "another version of Pillow decodes it otherwise"
        )
    if recorded.environment is None:
        return Difference(
            "are not the recorded bits. Version 0.1.0 recorded them without their environment, so it cannot be told "
            "whether another environment rounds otherwise",
            forgotten=False,
        )

    elsewhere = differences(recorded.environment, now.environment)
    if not elsewhere:
        apart = "" if sample is None else f"; they differ by {_apart(now.sample, sample):.1e} of the largest"
        return Difference(f"are not those taken when it was learned{apart}", forgotten=True)
    if sample is None:
        raise NotComparable(
            f"cannot be compared: they were recorded with {elsewhere}, which may round otherwise, and the file of the "
            "recorded numbers is missing or damaged. Restore it from a copy, or compare where they were recorded"
        )

    allowed, apart = max(map(tolerance, (recorded.environment, now.environment))), _apart(now.sample, sample)
    if not apart <= allowed:
        return Difference(
            f"are not those taken when it was learned: they differ by {apart:.1e} of the largest, where {elsewhere} "
            f"explains {allowed:.0e} at most",
            forgotten=True,
        )
    return Difference(
        f"were recorded with {elsewhere}: they were compared as numbers, not bit for bit, and agree within "
        f"{allowed:.0e} of the largest",
        forgotten=False,
    )


def sentences(hows: Iterable[tuple[int, str]]) -> list[str]:
    """(task, what is said of its test logits) as sentences, one for all tasks of which the same is said."""
    tasks: dict[str, list[int]] = {}
    for task, how in hows:
        tasks.setdefault(how, []).append(task)
    return [f"the test logits of task {', '.join(map(str, those))} {how}." for how, those in tasks.items()]


def _apart(now: Tensor, recorded: Tensor) -> float:
    """The largest distance of two samples' logits, in units of the largest recorded one; NaN for other shapes."""
    if now.shape != recorded.shape:
        return float("nan")
    now, recorded = now.double(), recorded.double()
    return float((now - recorded).abs().max() / recorded.abs().max().clamp_min(1e-30))
