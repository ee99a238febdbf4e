"""How far a training got, in a file, so that a process that was killed is continued at worst one epoch back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from eidetic_kernels.errors import CheckpointError, InputError
from eidetic_kernels.files import check_file
from eidetic_kernels.version import __version__

from . import state_file


@runtime_checkable
class CountsEpochs(Protocol):
    """A loader that says which epoch comes next and can begin there, such as the package's own."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be epoch ``epoch``."""
        ...


class Reached(NamedTuple):
    """What a file of progress belongs to: "task" or "router", which task, and how many events callbacks were told."""

    kind: str
    task: int
    events: int


class ProgressFile:
    """The progress of one training.

    Args:
        path: the file, which need not exist.
        training: what identifies the training, as plain values: "kind" ("task" or "router"), "task", and all that must
            be the same in the process that continues.
    """

    def __init__(self, path: str | Path, training: dict[str, Any]):
        self.path, self.training = Path(path), {**training, "version": __version__}

    def load(self) -> dict[str, Any] | None:
        """The state that was saved; None where there is no file, or one of another task's training.

        Raises CheckpointError for a damaged file, InputError for one of this task's that was trained otherwise and for
        a path that is no file's.
        """
        check_file(self.path)
        if not self.path.exists():
            return None
        content = state_file.read(self.path)
        saved = content["training"]
        if [saved[name] for name in ("kind", "task")] != [self.training[name] for name in ("kind", "task")]:
            return None
        different = [
            f"{name} ({saved.get(name)} there, {self.training.get(name)} given)"
            for name in {**saved, **self.training}
            if saved.get(name) != self.training.get(name)
        ]
        if different:
            raise InputError(
                f"{self.path} holds the progress of a training that differs in {'; '.join(different)}. Continue with "
                "what was given there, or delete the file to begin anew."
            )
        return content["state"]

    def save(self, state: dict[str, Any], events: int) -> None:
        """Replace the file.

        Raises InputError where ``state`` holds what cannot be written, CheckpointError where the file cannot be.
        """
        state_file.write(self.path, {"training": self.training, "events": events, "state": state})


def reached(path: str | Path) -> Reached | None:
    """What the file at ``path`` belongs to; None where there is none, or it is damaged or of another version."""
    if not Path(path).is_file():
        return None
    try:
        content = state_file.read(path)
    except CheckpointError:
        return None
    training = content["training"]
    if training["version"] != __version__:
        return None
    return Reached(training["kind"], training["task"], content["events"])


def identity_of(loader: Iterable) -> dict[str, Any]:
    """The settings of a loader that its batches depend on, as far as the loader tells them."""
    names = ("num_samples", "batch_size", "seed", "shuffle", "drop_last", "epoch")
    found = {name: getattr(loader, name, None) for name in names}
    return {"loader": type(loader).__name__, **{k: v for k, v in found.items() if isinstance(v, (bool, int, float))}}


def cannot_resume(loader: Iterable) -> str | None:
    """Why training on ``loader`` cannot be continued from the middle; None if it can."""
    if isinstance(loader, CountsEpochs):
        return None
    return (
        f"the loader ({type(loader).__name__}) does not say which epoch comes next "
        "(eidetic_training.data.TensorLoader does)"
    )
