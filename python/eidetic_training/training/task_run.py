"""One task's training, epoch by epoch, as a procedure that can be left after any epoch and taken up there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError, NonFiniteLossError

from .annealing import anneal
from .captured_step import captured_steps
from .epoch import NotFinite, evaluate, train_epoch
from .events import NOTES, Callback, Event, units_of
from .features import frozen_features
from .last_good import LastGood
from .progress import CountsEpochs, cannot_resume
from .settings import TaskSettings
from .task_progress import TaskProgress
from .training_state import TrainingState
from .weights import weights_present

Loss = Callable[[Tensor, Tensor], Tensor]

PHASES = ("train", "settle", "prune", "polish", "end")


@dataclass(frozen=True)
class TaskResult:
    """The outcome of training a task.

    Args:
        train_accuracy: the best training accuracy before pruning, in [0, 1].
        kept: how many units the task keeps, by unit group.
        epochs: all of them, recovery and polishing included.
        seconds: from the call to its end.
        history: every event.
    """

    task: int
    train_accuracy: float
    kept: dict[str, int]
    epochs: int
    seconds: float
    history: tuple[Event, ...]


@dataclass
class Position:
    """How far a task's training got.

    Args:
        phase: one of ``PHASES``.
        done: epochs of the phase; while pruning, of the recovery from its last step.
        epochs: of the task.
        best: the best training accuracy by now, -1 before the first epoch.
        since: epochs since it rose.
        unpruned: the best training accuracy before pruning.
        step: the task's pruning steps.
        fraction: of the units, that the next step removes, or the one the network recovers from.
        recovering: whether the network recovers from a step.
        weights: of the network, when pruning began; see :func:`.weights.weights_present`.
        rates: the learning rates from which polishing lets them fall.
        passes: for each of the task's epochs, which one it was of the loader's; empty where the loader does not count.
        last: the last epoch's training accuracy.
        majority: the share of its samples that are of the most frequent class.
    """

    phase: str = "train"
    done: int = 0
    epochs: int = 0
    best: float = -1.0
    since: int = 0
    unpruned: float = -1.0
    step: int = 0
    fraction: float = 0.0
    recovering: bool = False
    weights: int = 0
    rates: list[float | Tensor] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    last: float = 0.0
    majority: float = 0.0


class TaskRun:
    """The state of one call: the position in the procedure, the history, and the last good state.

    ``good`` is where training goes back to when a step of pruning or the call itself fails. ``progress`` is the file
    from which this run continues, if it holds this task's progress, and which is written after every epoch.
    """

    def __init__(
        self,
        network: EideticNetwork,
        loader: Iterable,
        optimizer: Optimizer,
        settings: TaskSettings,
        loss: Loss,
        callbacks: Sequence[Callback],
        good: LastGood,
        progress: str | Path | None = None,
    ):
        self.network, self.loader, self.optimizer = network, loader, optimizer
        self.settings, self.loss, self.callbacks, self.good = settings, loss, callbacks, good
        self.task = len(network.heads) - 1  # the one in training, which has the last head
        self.at = Position()
        self.history: list[Event] = []
        self.started = time.perf_counter()
        self.generator = torch.Generator().manual_seed(settings.seed)

        self.features, no_features = frozen_features(network, loader, settings)
        self.captured, no_graphs = captured_steps(network, optimizer, settings)
        self.progress: TaskProgress | None = None
        no_progress = None if progress is None else cannot_resume(loader)
        if progress is not None and no_progress is None:
            self.progress = TaskProgress(progress, network, loader, optimizer, settings, self.generator, good)
        if self.progress is not None and self.progress.saved is not None:
            self.resume(self.progress, self.progress.saved)
            return

        self.note("features", no_features)
        self.note("graphs", no_graphs)
        self.note("progress", no_progress)

    # ---- the paper's procedure, step by step

    def procedure(self) -> None:
        """Everything from the present position to the end."""
        while self.at.phase != "end":
            getattr(self, self.at.phase)()

    def begin(self, phase: str) -> None:
        """Let ``phase`` come next, or the first one after it that the settings want."""
        settings = self.settings
        wanted = {
            "settle": settings.halve_learning_rate,
            "prune": settings.search != "none",
            "polish": settings.polish_epochs > 0,
        }
        later = PHASES[PHASES.index(phase) :]
        self.at.phase, self.at.done = next(each for each in later if wanted.get(each, True)), 0

        if self.at.phase == "prune":
            self.at.fraction, self.at.weights = settings.first_step, weights_present(self.network)
        if self.at.phase == "polish":
            self.at.rates = [group["lr"] for group in self.optimizer.param_groups]

    def train(self) -> None:
        """Epochs until training accuracy has not improved for ``patience`` of them, or is 1."""
        at, settings = self.at, self.settings
        while at.phase == "train":
            accuracy = self.epoch("train")
            at.since = 0 if accuracy > at.best else at.since + 1
            at.best = at.unpruned = max(at.best, accuracy)
            if accuracy == 1 or at.since >= settings.patience or at.done >= settings.max_epochs:
                self.begin("settle")
            self.accept()

    def settle(self) -> None:
        """One more epoch at half the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2
        accuracy = self.epoch("settle")
        self.at.best = self.at.unpruned = max(self.at.best, accuracy)
        self.begin("prune")
        self.accept()

    def prune(self) -> None:
        """Remove units as long as accuracy recovers to within the tolerance of the best.

        "linear" is the paper's schedule: it removes the same fraction until accuracy does not recover for the first
        time. "backoff" begins with a large fraction and halves it whenever accuracy does not recover, down to ``step``.
        A step that removes too many weights counts as one that does not recover.
        """
        at, settings = self.at, self.settings
        while at.phase == "prune":
            if not at.recovering:
                if settings.search == "linear":
                    at.fraction = settings.step_at(at.step)
                # Ends where the fraction is too small, or no live unit is left to remove.
                if at.fraction < settings.step_at(at.step) or not self.cut():
                    self.begin("polish")
                    return
                at.recovering, at.done = True, 0

            if self.enough_left() and self.recover():
                at.recovering = False
                self.accept()
            else:
                self.undo()

    def cut(self) -> int:
        """Score the live units and remove the least important ones. Returns how many were removed."""
        settings = self.settings
        importance = settings.importance_at(self.at.step)
        plan = self.network.prune(
            self.at.fraction,
            importance,
            of=settings.of,
            data=self.loader if importance in ("taylor", "hybrid") else None,
            loss=self.loss,
            keep_at_least=settings.keep_at_least,
            generator=self.generator,
            optimizer=self.optimizer,
        )
        if plan.removed:
            self.at.step += 1
            self.tell("prune")
        return plan.removed

    def enough_left(self) -> bool:
        """Whether pruning removed no more of the weights than the settings allow."""
        pruned, most = self.at.weights - weights_present(self.network), self.settings.max_pruned * self.at.weights
        return pruned <= most + 1e-9  # 0.29 of 100 weights are 29, whatever its last bit says

    def recover(self) -> bool:
        """Train until accuracy is within the tolerance of the best. Returns whether it is."""
        at, settings = self.at, self.settings
        while at.done < settings.max_recovery_epochs:
            accuracy = self.epoch("recover")
            enough = accuracy >= at.best * (1 - settings.tolerance)
            at.best = max(at.best, accuracy)
            if enough:
                return True
            self.save(recovering=True)

        # An epoch's own accuracy is an average over its steps, the first of them on a damaged network and all of them
        # under dropout. Before a step is undone for good, backoff looks at what the network has become.
        if settings.search == "backoff":
            return evaluate(self.network, self.loader).accuracy >= at.best * (1 - settings.tolerance)
        return False

    def undo(self) -> None:
        """Go back to before the last step of pruning."""
        state = self.good.state
        assert state is not None, "epochs of training come before pruning"
        self.network.restore(state.snapshot, self.optimizer)
        self.at.recovering = False
        self.tell("restore")
        if self.settings.search == "linear":
            self.begin("polish")
        else:
            self.at.fraction /= 2

    def polish(self) -> None:
        """Train what is left at a falling learning rate. The last epoch's weights stay: accuracy rises to the end."""
        at, epochs = self.at, self.settings.polish_epochs
        while at.phase == "polish":
            anneal(self.optimizer, at.rates, at.done, epochs)
            self.epoch("polish")
            if at.done == epochs:
                self.begin("end")
            self.accept()

    def compare_with_majority(self) -> None:
        """Warn where the task ends no better than a constant answer, its most frequent class, would be."""
        majority = self.at.majority
        if self.at.last > majority or majority == 1:
            return
        # An epoch's own accuracy is an average over its steps, under dropout.
        accuracy = evaluate(self.network, self.loader).accuracy
        if accuracy > majority:
            return
        warnings.warn(
            f"task {self.task} ends with a training accuracy of {accuracy:.1%}, no better than answering its most "
            f"frequent class every time, which is right for {majority:.1%} of the samples: it may have learned nothing "
            "else. Train longer (max_epochs, patience) or at another learning rate, weight the loss by class, or prune "
            "less (keep_at_least, a smaller tolerance).",
            stacklevel=4,
        )

    # ---- what every step is made of

    def epoch(self, phase: str) -> float:
        """Train for one epoch. Returns training accuracy."""
        self.at.epochs += 1
        if isinstance(self.loader, CountsEpochs):
            self.at.passes.append(self.loader.epoch)
        try:
            result = train_epoch(
                self.network,
                self.loader,
                self.optimizer,
                self.loss,
                self.features,
                self.captured,
                self.settings.autocast,
            )
        except NotFinite as error:
            rate = self.optimizer.param_groups[0]["lr"]
            raise NonFiniteLossError(
                f"task {self.task}, epoch {self.at.epochs} ({phase}): {error} at learning rate {rate}. Training "
                "stopped, and the network is back at its last good state. Lower the learning rate, or check the inputs."
            ) from None

        self.at.done += 1
        self.at.last, self.at.majority = result.accuracy, result.majority
        self.tell(phase, result.loss, result.accuracy)
        if self.features is not None and self.features.off is not None:
            self.note("features", self.features.off)
            self.features = None
        if self.captured is not None and self.captured.off is not None:
            self.note("graphs", self.captured.off)
            self.captured = None
        return result.accuracy

    def accept(self) -> None:
        """Let the present state be the last good one."""
        self.good.keep(TrainingState.of(self.network, self.optimizer, self.good.state))
        self.save(recovering=False)

    def save(self, recovering: bool) -> None:
        """Write how far training got, if that was asked for; ``recovering``: the present state is not accepted."""
        if self.progress is None:
            return
        run = {
            "at": vars(self.at),
            "history": [vars(event) for event in self.history],
            "seconds": time.perf_counter() - self.started,
            "features": self.features is not None,
            "graphs": self.captured is not None,
        }
        try:
            self.progress.save(run, sum(event.note is None for event in self.history), recovering)
        except InputError as error:
            self.progress = None
            self.note("progress", f"{error.args[0].rstrip('.')} (the state of {type(self.optimizer).__name__})")

    def resume(self, progress: TaskProgress, saved: dict[str, Any]) -> None:
        """Go on where the process that wrote ``saved`` was."""
        run = saved["run"]
        self.at = Position(**run["at"])
        self.history = [Event(**event) for event in run["history"]]
        self.features = self.features if run["features"] else None
        self.captured = self.captured if run["graphs"] else None
        progress.put_back(saved, self.features, self.at.passes)
        progress.saved = None  # frees its tensors
        self.started = time.perf_counter() - run["seconds"]

        for event in self.history:
            if event.note is not None:  # for people who watch this process
                for callback in self.callbacks:
                    callback(event)

    # ---- what callbacks and callers are told

    def note(self, about: str, reason: str | None) -> None:
        """Report why frozen "features" are not cached, or why there are no CUDA "graphs"; None reports nothing."""
        if reason is not None:
            self.tell(about, note=f"{NOTES[about]}: {reason}.")

    def tell(
        self, phase: str, loss: float | None = None, accuracy: float | None = None, note: str | None = None
    ) -> None:
        """Add an event to the history, and report it to every callback."""
        seconds = time.perf_counter() - self.started
        units = units_of(self.network)
        event = Event(seconds, self.task, phase, self.at.epochs, self.at.step, loss, accuracy, *units, note)
        self.history.append(event)
        for callback in self.callbacks:
            callback(event)

    def result(self) -> TaskResult:
        """The outcome so far."""
        kept = {group.name: group.segments.size(self.task) for group in self.network.groups}
        seconds = time.perf_counter() - self.started
        return TaskResult(self.task, self.at.unpruned, kept, self.at.epochs, seconds, tuple(self.history))
