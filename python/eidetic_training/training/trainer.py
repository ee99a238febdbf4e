"""Training one task: train, prune while training accuracy holds, finish (paper, sections 3 and 4)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from eidetic_kernels import EideticNetwork, default_optimizer
from eidetic_kernels.checking import flag, function, instance, path
from eidetic_kernels.errors import InputError, TaskError
from eidetic_kernels.tasks.checks import an_optimizer, gradients, trainable
from eidetic_kernels.tasks.optimizer_state import check_current

from .epoch import count_classes
from .events import Callback, checked_callbacks
from .last_good import going_back
from .settings import TaskSettings
from .task_run import Loss, TaskResult, TaskRun


def train_task(
    network: EideticNetwork,
    loader: Iterable,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    settings: TaskSettings | None = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    finish: bool = True,
    progress: str | Path | None = None,
    **overrides: Any,
) -> TaskResult:
    """Train the network's current task on ``loader``, prune it, and finish it.

    Whatever is raised inside (by the loader, one of its workers, the loss, a callback or a lack of memory, and Ctrl-C),
    network and optimizer go back to the last good state, every module to its mode, and learning rates to what they
    were. Training can then go on with the same optimizer. The last good state is the end of the last epoch whose
    callbacks returned; while a pruned network recovers, it is the one before that step of pruning, which is undone.
    Before the first epoch's end, it is the state at the call. A callback that raises at "finish" leaves a finished
    task.

    Warns, with both figures, where the task ends no better than answering its most frequent class every time.

    Args:
        loader: batches (x [N, ...], y [N] int64), iterated once an epoch.
        optimizer: any torch optimizer on the network's parameters, or one kept from the task before; the default is
            Adam on its fused kernel. Its state is cut along with pruned parameters.
        settings: all settings; single ones may be given by name instead (``search="linear"``).
        loss: mean loss of (logits [N, classes], y [N]); by default cross-entropy, labels smoothed as set.
        callbacks: each is called with every :class:`~eidetic_training.training.events.Event`.
        finish: freeze the task at the end; False leaves it in training.
        progress: a file that is written after every epoch. If it exists, and the process before this one was killed,
            training goes on where that one was, at worst one epoch back, and ends with the same bits: begin the task as
            there, with the same random seed, loader, optimizer and settings. A file of another task is ignored, and
            replaced after the first epoch. Delete the file once the finished task is saved. The loader must count its
            epochs, as :class:`~eidetic_training.data.TensorLoader` does; for others an event says that nothing is
            written.

    Raises:
        TaskError: no task is in training, or torch records no gradients here (``no_grad``, ``inference_mode``).
        BusyError: another thread trains the network.
        InputError: an empty loader, wrong labels or inputs, a loss beside label smoothing, or ``progress`` of a
            training of this task with other settings, loader or optimizer, or that is no file.
        CheckpointError: the file of ``progress`` is damaged, or cannot be written (training goes on from what it was).
        StaleOptimizerError: the optimizer holds none of the network's current parameters.
        NonFiniteLossError: the loss, or what was trained, became NaN or infinite.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    settings = TaskSettings.given(settings, overrides)
    loss = _loss(loss, settings)
    callbacks, progress = checked_callbacks(callbacks), None if progress is None else path("progress", progress)
    flag("finish", finish)
    if network.current_task is None:
        raise TaskError("no task is in training: call net.prepare_for_task(t, num_classes=...) before train_task.")
    gradients("train_task")
    trainable(network)
    if optimizer is not None:
        _check_optimizer(network, an_optimizer(optimizer))

    with network.training_here(), going_back(network, optimizer) as good:
        if len(network.heads) == network.current_task:
            network.add_head(count_classes(loader))
        if optimizer is None:
            optimizer = default_optimizer(network.parameters())
            good.begin(optimizer)
        else:
            network.adopt(optimizer)

        run = TaskRun(network, loader, optimizer, settings, loss, callbacks, good, progress)
        run.procedure()
        run.compare_with_majority()
        good.put_rates_back()  # the next task starts from the learning rates as they were given
        if finish:
            network.finish_task()
            run.tell("finish")
        return run.result()


def _loss(given: Loss | None, settings: TaskSettings) -> Loss:
    if given is None:
        return functools.partial(F.cross_entropy, label_smoothing=settings.label_smoothing)
    if settings.label_smoothing:
        raise InputError(
            f"label_smoothing={settings.label_smoothing} is for the default loss, cross-entropy, and loss= is given: "
            "smooth labels in your loss."
        )
    return function("loss", given, "a function of logits and labels")


def _check_optimizer(network: EideticNetwork, optimizer: torch.optim.Optimizer) -> None:
    check_current(optimizer, network.parameters())
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{type(optimizer).__name__} evaluates the loss several times a step, which train_task does not offer: use "
            "it in a loop of your own (net.prune, net.snapshot, net.finish_task), or another optimizer here."
        )
