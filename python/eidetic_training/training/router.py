"""Training the router, the network's last head, on the meta task data set (paper, section 1)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.checking import a_list, instance, path
from eidetic_kernels.errors import NonFiniteLossError, RouterError, TaskError
from eidetic_kernels.tasks.checks import gradients
from eidetic_kernels.tasks.routing import of_tasks

from ..data import TensorLoader
from .annealing import anneal
from .events import NOTES, Callback, Event, checked_callbacks, units_of
from .last_good import modes_put_back
from .progress import ProgressFile, identity_of
from .random_state import put_random_state_back, random_state
from .router_data import moments_of, router_data
from .router_settings import RouterSettings
from .trained_router import TrainedRouter


def train_router(
    network: EideticNetwork,
    loaders: Iterable[Iterable],
    *,
    settings: RouterSettings | None = None,
    callbacks: Sequence[Callback] = (),
    progress: str | Path | None = None,
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
        progress: a file that is written after every epoch, from which a process that was killed is continued; as that
            of :func:`~eidetic_training.train_task`. All loaders must be :class:`~eidetic_training.data.TensorLoader`.

    Returns:
        Training accuracy in [0, 1] of naming the task, in the epoch whose weights are kept: the best one, or the last
        one of ``polish_epochs``.

    Raises:
        TaskError: a task is in training, loaders and finished tasks differ in number, or torch records no gradients
            here.
        InputError: settings or loaders that cannot be, inputs that the convolutions cannot read, or ``progress`` of a
            router that was trained otherwise.
        RouterError: ``layers`` that cannot be read (windows), or no unit that a router could read.
        NonFiniteLossError: the loss became NaN or infinite.
        CheckpointError: the file of ``progress`` is damaged, or cannot be written.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    settings = RouterSettings.given(settings, overrides)
    loaders = a_list("loaders", loaders, "a list of loaders, one for each finished task")
    callbacks, progress = checked_callbacks(callbacks), None if progress is None else path("progress", progress)
    gradients("train_router")
    if network.current_task is not None:
        raise TaskError(f"task {network.current_task} is in training: finish it before training the router.")
    if len(loaders) != network.finished_tasks:
        raise TaskError(
            f"{len(loaders)} loaders were given for {network.finished_tasks} finished tasks; expected one "
            "for each, since the router needs data of every task."
        )

    with modes_put_back(network):
        run = _RouterRun(network, loaders, settings, callbacks, progress)
        run.run()
        dtype = network.heads[0].get_buffer("frozen_weight").dtype
        router = run.kept.folded(run.classes).to(dtype)
        with network.changing():
            network.router = router
        return run.at.best


@dataclass
class _Position:
    """How far the router's training got.

    Args:
        phase: "train", "polish" or "end".
        done: epochs of the phase.
        epochs: all of them.
        best: training accuracy in the epoch whose weights are kept, -1 before the first.
        since: epochs since it rose.
        rates: the learning rates from which polishing lets them fall, by optimizer.
    """

    phase: str = "train"
    done: int = 0
    epochs: int = 0
    best: float = -1.0
    since: int = 0
    rates: list[list[float]] = field(default_factory=list)


class _RouterRun:
    """The state of one call: the data, the router in training, and the router of the best epoch.

    ``progress`` is the file from which this run continues, if it holds this router's progress, and which is written
    after every epoch.
    """

    def __init__(
        self,
        network: EideticNetwork,
        loaders: Sequence[Iterable],
        settings: RouterSettings,
        callbacks: Sequence[Callback],
        progress: str | Path | None,
    ):
        self.network, self.settings, self.callbacks = network, settings, callbacks
        self.tasks, self.at, self.started = len(loaders), _Position(), time.perf_counter()
        self.classes = tuple(network.num_classes) if settings.classes else None
        training = self.identity(loaders)
        self.data = router_data(network, loaders, settings, self.classes)
        moments = moments_of(self.data)
        if not len(moments.mean):
            raise RouterError(
                "no finished task kept a unit that reaches the features, so a router has nothing to read: let it read "
                "the input (inputs=True, or convolutions=(64, 128, 256)), or let tasks take units (max_units)."
            )
        self.owners = _owners(self.tasks, self.classes).to(moments.mean.device)
        self.router = TrainedRouter(settings, moments, len(self.owners), network.input_shape or ())
        self.optimizers = self.router.optimizers()
        self.kept = self.router

        self.progress = None
        if progress is not None:
            self.begin_progress(ProgressFile(progress, training), loaders)

    def run(self) -> None:
        """Everything from the present position to the end."""
        while self.at.phase != "end":
            self.train() if self.at.phase == "train" else self.polish()

    def begin(self, phase: str) -> None:
        """Let ``phase`` come next; without epochs to polish, the end."""
        self.at.phase, self.at.done = phase if self.settings.polish_epochs else "end", 0
        self.at.rates = [[group["lr"] for group in each.param_groups] for each in self.optimizers]

    def train(self) -> None:
        """An epoch: they end when training accuracy has not improved for ``patience`` of them, or is 1.

        Keeps the best.
        """
        at, settings = self.at, self.settings
        accuracy = self.epoch()
        at.since = 0 if accuracy > at.best else at.since + 1
        if accuracy > at.best:
            at.best, self.kept = accuracy, copy.deepcopy(self.router)
        if accuracy == 1 or at.since >= settings.patience or at.done >= settings.max_epochs:
            self.begin("polish")
        self.save()

    def polish(self) -> None:
        """An epoch at a falling learning rate. The last one's weights are kept: accuracy rises to the end."""
        at, epochs = self.at, self.settings.polish_epochs
        for optimizer, rates in zip(self.optimizers, at.rates):
            anneal(optimizer, rates, at.done, epochs)
        at.best, self.kept = self.epoch(), self.router
        if at.done == epochs:
            self.begin("end")
        self.save()

    def epoch(self) -> float:
        """One pass over the data. Returns the accuracy of naming the task, over its steps."""
        self.at.epochs += 1
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
                f"the router's loss became NaN or infinite in epoch {self.at.epochs} at learning rate "
                f"{self.settings.lr}; the network is as it was. Check the loaders' inputs, or lower the learning rate."
            )
        accuracy = correct.item() / samples
        self.at.done += 1
        self.tell("router", losses.item() / samples, accuracy)
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

    def tell(
        self, phase: str, loss: float | None = None, accuracy: float | None = None, note: str | None = None
    ) -> None:
        """Report an event to every callback."""
        seconds = time.perf_counter() - self.started
        event = Event(seconds, self.tasks, phase, self.at.epochs, 0, loss, accuracy, *units_of(self.network), note)
        for callback in self.callbacks:
            callback(event)

    # ---- progress

    def identity(self, loaders: Sequence[Iterable]) -> dict[str, Any]:
        """All that must be the same in the process that continues."""
        return {
            "kind": "router",
            "task": self.tasks,
            "settings": asdict(self.settings),
            "units": {group.name: [*group.segments.frozen] for group in self.network.groups},
            "classes": self.network.num_classes,
            "data": [identity_of(loader) for loader in loaders],
        }

    def begin_progress(self, file: ProgressFile, loaders: Sequence[Iterable]) -> None:
        """Continue from ``file``, and write it from now on. An event says why, where that cannot be."""
        others = [loader for loader in loaders if not isinstance(loader, TensorLoader)]
        if others:
            reason = f"a loader ({type(others[0]).__name__}) is no eidetic_training.data.TensorLoader"
            self.tell("progress", note=f"{NOTES['progress']}: {reason}.")
            return
        self.progress = file
        saved = file.load()
        if saved is not None:
            self.resume(saved)

    def save(self) -> None:
        """Write how far training got, if that was asked for."""
        if self.progress is None:
            return
        state = {
            "at": vars(self.at),
            "seconds": time.perf_counter() - self.started,
            "router": dict(self.router.state_dict()),
            "kept": None if self.kept is self.router else dict(self.kept.state_dict()),
            "optimizers": [_state_of(optimizer) for optimizer in self.optimizers],
            "data": self.data.epoch,
            "random": random_state(self.owners.device),
        }
        self.progress.save(state, events=self.at.epochs)

    def resume(self, saved: dict[str, Any]) -> None:
        """Go on where the process that wrote ``saved`` was."""
        self.at = _Position(**saved["at"])
        self.router.load_state_dict(saved["router"])
        if saved["kept"] is not None:
            self.kept = copy.deepcopy(self.router)
            self.kept.load_state_dict(saved["kept"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"]):
            _put_state_back(optimizer, state)
        self.data.set_epoch(saved["data"])
        self.started = time.perf_counter() - saved["seconds"]
        put_random_state_back(saved["random"], self.owners.device)


def _state_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """For each parameter group its learning rate, and the state of each of its parameters."""
    return [
        {"lr": group["lr"], "states": [dict(optimizer.state.get(each, {})) for each in group["params"]]}
        for group in optimizer.param_groups
    ]


def _put_state_back(optimizer: torch.optim.Optimizer, saved: list[Any]) -> None:
    for group, values in zip(optimizer.param_groups, saved):
        group["lr"] = values["lr"]
        for parameter, state in zip(group["params"], values["states"]):
            if state:
                optimizer.state[parameter] = state


def _owners(tasks: int, classes: Sequence[int] | None) -> Tensor:
    """The task of everything that gets a score: [tasks], or [classes of all tasks]."""
    owners = torch.arange(tasks)
    return owners if classes is None else owners.repeat_interleave(torch.tensor(classes))
