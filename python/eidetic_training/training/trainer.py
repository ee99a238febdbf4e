"""Training one task: train, prune while training accuracy holds, finish (paper, sections 3 and 4)."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels import EideticNetwork, Snapshot, default_optimizer
from eidetic_kernels.errors import InputError, NonFiniteLossError, TaskError
from eidetic_kernels.tasks.optimizer_state import check_current

from .annealing import annealed
from .captured_step import captured_steps
from .epoch import NotFinite, count_classes, evaluate, train_epoch
from .events import NOTES, Callback, Event, units_of
from .features import frozen_features
from .settings import TaskSettings

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TaskResult:
    """The outcome of training a task.

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


def train_task(
    network: EideticNetwork,
    loader: Iterable,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    settings: TaskSettings | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    finish: bool = True,
    **overrides: Any,
) -> TaskResult:
    """Train the network's current task on ``loader``, prune it, and finish it.

    Args:
        loader: batches (x [N, ...], y [N] int64), iterated once an epoch.
        optimizer: any torch optimizer on the network's parameters, or one kept from the task before; the default is
            Adam on its fused kernel. Its state is cut along with pruned parameters.
        settings: all settings; single ones may be given by name instead (``search="linear"``).
        loss: mean loss of (logits [N, classes], y [N]); by default cross-entropy, labels smoothed as set.
        callbacks: each is called with every :class:`~eidetic_training.training.events.Event`.
        finish: freeze the task at the end; False leaves it in training.

    Raises:
        TaskError: no task is in training.
        InputError: an empty loader, wrong labels or inputs, a loss beside label smoothing. Nothing has been trained.
        StaleOptimizerError: the optimizer holds none of the network's current parameters.
        NonFiniteLossError: the loss became NaN or infinite; the network is back at its last good state.
    """
    settings = TaskSettings.given(settings, overrides)
    loss = _loss(loss, settings)
    if network.current_task is None:
        raise TaskError("no task is in training: call net.prepare_for_task(t, num_classes=...) before train_task.")
    if optimizer is not None:
        _check_optimizer(network, optimizer)
    if len(network.heads) == network.current_task:
        network.add_head(count_classes(loader))
    if optimizer is None:
        optimizer = default_optimizer(network.parameters())
    else:
        network.adopt(optimizer)

    run = _TaskRun(network, loader, optimizer, settings, loss, callbacks)
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        best = run.train()
        if settings.halve_learning_rate:
            best = max(best, run.settle())
        if settings.search != "none":
            run.prune(best)
        run.polish()
    finally:  # the next task starts from the learning rates as they were given
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate

    if finish:
        network.finish_task()
        run.tell("finish")
    return run.result(best)


def _loss(given: Loss | None, settings: TaskSettings) -> Loss:
    if given is None:
        return functools.partial(F.cross_entropy, label_smoothing=settings.label_smoothing)
    if settings.label_smoothing:
        raise InputError(
            f"label_smoothing={settings.label_smoothing} is for the default loss, cross-entropy, and loss= is given: "
            "smooth labels in your loss."
        )
    return given


def _check_optimizer(network: EideticNetwork, optimizer: torch.optim.Optimizer) -> None:
    check_current(optimizer, network.parameters())
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{type(optimizer).__name__} evaluates the loss several times a step, which train_task does not offer: use "
            "it in a loop of your own (net.prune, net.snapshot, net.finish_task), or another optimizer here."
        )


class _TaskRun:
    """The state of one call: the history, and the last state known to be good."""

    def __init__(
        self,
        network: EideticNetwork,
        loader: Iterable,
        optimizer: torch.optim.Optimizer,
        settings: TaskSettings,
        loss: Loss,
        callbacks: Sequence[Callback],
    ):
        self.network, self.loader, self.optimizer = network, loader, optimizer
        self.settings, self.loss, self.callbacks = settings, loss, callbacks
        self.task = len(network.heads) - 1  # the one in training, which has the last head
        self.history: list[Event] = []
        self.epochs = self.step = 0
        self.started = time.perf_counter()
        self.good: Snapshot = network.snapshot(optimizer)
        self.generator = torch.Generator().manual_seed(settings.seed)

        self.features, no_features = frozen_features(network, loader, settings)
        self.captured, no_graphs = captured_steps(network, optimizer, settings)
        self.note("features", no_features)
        self.note("graphs", no_graphs)

    # ---- the paper's procedure, step by step

    def train(self) -> float:
        """Epochs until training accuracy has not improved for ``patience`` of them, or is 1. Returns the best."""
        best, since = -1.0, 0
        for _ in range(self.settings.max_epochs):
            accuracy = self.epoch("train")
            since = 0 if accuracy > best else since + 1
            best = max(best, accuracy)
            if accuracy == 1 or since >= self.settings.patience:
                break
        return best

    def settle(self) -> float:
        """One more epoch at half the learning rate. Returns its accuracy."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] / 2
        return self.epoch("settle")

    def prune(self, best: float) -> None:
        """Remove units as long as accuracy recovers to within the tolerance of the best.

        "linear" is the paper's schedule: it removes the same fraction until accuracy does not recover for the first
        time. "backoff" begins with a large fraction and halves it whenever accuracy does not recover, down to ``step``.
        """
        settings = self.settings
        fraction = settings.step if settings.search == "linear" else settings.first_step
        while fraction >= settings.step:
            before = self.good
            if not self.cut(fraction):
                return  # no live unit is left to remove

            recovered, best = self.recover(best)
            if not recovered:
                self.network.restore(before, self.optimizer)
                self.good = before
                self.tell("restore")
                if settings.search == "linear":
                    return
                fraction /= 2

    def cut(self, fraction: float) -> int:
        """Score the live units and remove the least important ones. Returns how many were removed."""
        settings = self.settings
        plan = self.network.prune(
            fraction,
            settings.importance,
            of=settings.of,
            data=self.loader if settings.importance in ("taylor", "hybrid") else None,
            loss=self.loss,
            keep_at_least=settings.keep_at_least,
            generator=self.generator,
            optimizer=self.optimizer,
        )
        if plan.removed:
            self.step += 1
            self.tell("prune")
        return plan.removed

    def recover(self, best: float) -> tuple[bool, float]:
        """Train until accuracy is within the tolerance of the best. Returns whether it is, and the best by then."""
        for _ in range(self.settings.max_recovery_epochs):
            accuracy = self.epoch("recover")
            enough = accuracy >= best * (1 - self.settings.tolerance)
            best = max(best, accuracy)
            if enough:
                return True, best

        # An epoch's own accuracy is an average over its steps, the first of them on a damaged network and all of them
        # under dropout. Before a step is undone for good, backoff looks at what the network has become.
        if self.settings.search == "backoff":
            return evaluate(self.network, self.loader).accuracy >= best * (1 - self.settings.tolerance), best
        return False, best

    def polish(self) -> None:
        """Train what is left at a falling learning rate. The last epoch's weights stay: accuracy rises to the end."""
        for _ in annealed(self.optimizer, self.settings.polish_epochs):
            self.epoch("polish")

    # ---- what every step is made of

    def epoch(self, phase: str) -> float:
        """Train for one epoch, and keep its end as the last good state. Returns training accuracy.

        On an error the network is back at the state before the epoch.
        """
        self.epochs += 1
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
            self.network.restore(self.good, self.optimizer)
            rate = self.optimizer.param_groups[0]["lr"]
            raise NonFiniteLossError(
                f"task {self.task}, epoch {self.epochs} ({phase}): {error} at learning rate {rate}. Training stopped, "
                "and the network is back at the end of the last good epoch. Lower the learning rate, or check the "
                "inputs."
            ) from None
        except InputError:
            self.network.restore(self.good, self.optimizer)
            raise

        self.good = self.network.snapshot(self.optimizer)
        self.tell(phase, result.loss, result.accuracy)
        if self.features is not None and self.features.off is not None:
            self.note("features", self.features.off)
            self.features = None
        if self.captured is not None and self.captured.off is not None:
            self.note("graphs", self.captured.off)
            self.captured = None
        return result.accuracy

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
        event = Event(seconds, self.task, phase, self.epochs, self.step, loss, accuracy, *units, note)
        self.history.append(event)
        for callback in self.callbacks:
            callback(event)

    def result(self, best: float) -> TaskResult:
        """The outcome so far; ``best`` is the best training accuracy before pruning."""
        kept = {group.name: group.segments.size(self.task) for group in self.network.groups}
        seconds = time.perf_counter() - self.started
        return TaskResult(self.task, best, kept, self.epochs, seconds, tuple(self.history))
