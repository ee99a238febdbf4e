"""Training the router, the network's last head, on the meta task data set (paper, section 1)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import NonFiniteLossError, TaskError
from eidetic_kernels.tasks.routing import of_tasks

from .annealing import annealed
from .events import Callback, Event, units_of
from .last_good import modes_put_back
from .router_data import moments_of, router_data
from .router_settings import RouterSettings
from .trained_router import TrainedRouter


def train_router(
    network: EideticNetwork,
    loaders: Iterable[Iterable],
    *,
    settings: RouterSettings | None = None,
    callbacks: Sequence[Callback] = (),
    **overrides: Any,
) -> float:
    """Train the task classifier on all tasks' data, relabelled by task.

    The body is frozen, so what the router reads of it is computed once and cached if it can be. The network changes
    only when training is done: whatever is raised before (by a loader, a callback or a lack of memory, and Ctrl-C), it
    has the router it had.

    Args:
        loaders: one for each finished task, in order, of batches (x [N, ...], y [N] int64). The labels y matter with
            ``classes=True`` alone.
        settings: all settings; single ones may be given by name instead (``hidden=64``).
        callbacks: each is called with every :class:`~eidetic_training.training.events.Event`.

    Returns:
        Training accuracy in [0, 1] of naming the task, in the epoch whose weights are kept: the best one, or the last
        one of ``polish_epochs``.

    Raises:
        TaskError: a task is in training, or loaders and finished tasks differ in number.
        InputError: settings or loaders that cannot be, or inputs that the convolutions cannot read.
        RouterError: ``layers`` that cannot be read (windows, parameters).
        NonFiniteLossError: the loss became NaN or infinite.
    """
    settings = RouterSettings.given(settings, overrides)
    loaders = list(loaders)
    if network.current_task is not None:
        raise TaskError(f"task {network.current_task} is in training: finish it before training the router.")
    if len(loaders) != network.finished_tasks:
        raise TaskError(
            f"{len(loaders)} loaders were given for {network.finished_tasks} finished tasks; expected one "
            "for each, since the router needs data of every task."
        )

    with modes_put_back(network):
        run = _RouterRun(network, loaders, settings, callbacks)
        run.train()
        run.polish()
        dtype = network.heads[0].get_buffer("frozen_weight").dtype
        router = run.kept.folded(run.classes).to(dtype)
        with network.changing():
            network.router = router
        return run.best


class _RouterRun:
    """The state of one call: the data, the router in training, and the router of the best epoch."""

    def __init__(
        self,
        network: EideticNetwork,
        loaders: Sequence[Iterable],
        settings: RouterSettings,
        callbacks: Sequence[Callback],
    ):
        self.network, self.settings, self.callbacks = network, settings, callbacks
        self.tasks, self.epochs, self.started = len(loaders), 0, time.perf_counter()
        self.classes = tuple(network.num_classes) if settings.classes else None
        self.data = router_data(network, loaders, settings, self.classes)
        moments = moments_of(self.data)
        self.owners = _owners(self.tasks, self.classes).to(moments.mean.device)
        self.router = TrainedRouter(settings, moments, len(self.owners), network.input_shape or ())
        self.optimizers = self.router.optimizers()
        self.best, self.kept = -1.0, self.router

    def train(self) -> None:
        """Epochs until training accuracy has not improved for ``patience`` of them, or is 1. Keeps the best."""
        since = 0
        for _ in range(self.settings.max_epochs):
            accuracy = self.epoch()
            since = 0 if accuracy > self.best else since + 1
            if accuracy > self.best:
                self.best, self.kept = accuracy, copy.deepcopy(self.router)
            if accuracy == 1 or since >= self.settings.patience:
                break

    def polish(self) -> None:
        """Train on at a falling learning rate. The last epoch's weights are kept: accuracy rises to the end."""
        for _ in zip(*(annealed(each, self.settings.polish_epochs) for each in self.optimizers)):
            self.best, self.kept = self.epoch(), self.router

    def epoch(self) -> float:
        """One pass over the data. Returns the accuracy of naming the task, over its steps."""
        self.epochs += 1
        device = self.owners.device
        samples, correct, losses = 0, torch.zeros((), device=device), torch.zeros((), device=device)
        for rows, label in self.data:
            scores, loss = self.step(rows, label)
            samples += len(label)
            with torch.no_grad():
                correct += (of_tasks(scores, self.classes).argmax(1) == self.owners[label]).sum()
                losses += loss * len(label)

        if not math.isfinite(losses.item()):
            raise NonFiniteLossError(
                f"the router's loss became NaN or infinite in epoch {self.epochs} at learning rate {self.settings.lr}; "
                "the network is as it was. Check the loaders' inputs, or lower the learning rate."
            )
        accuracy = correct.item() / samples
        self.tell(losses.item() / samples, accuracy)
        return accuracy

    def step(self, rows: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and mean loss of a batch, from before its step."""
        scores = self.router(rows)
        loss = F.cross_entropy(scores, label, label_smoothing=self.settings.label_smoothing)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return scores, loss

    def tell(self, loss: float, accuracy: float) -> None:
        """Report an epoch to every callback."""
        seconds = time.perf_counter() - self.started
        event = Event(seconds, self.tasks, "router", self.epochs, 0, loss, accuracy, *units_of(self.network))
        for callback in self.callbacks:
            callback(event)


def _owners(tasks: int, classes: Sequence[int] | None) -> Tensor:
    """The task of everything that gets a score: [tasks], or [classes of all tasks]."""
    owners = torch.arange(tasks)
    return owners if classes is None else owners.repeat_interleave(torch.tensor(classes))
