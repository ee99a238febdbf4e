"""One pass over the data, to train on it or to evaluate on it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from eidetic_kernels import EideticNetwork, FrozenFeatures
from eidetic_kernels.checking import flag, function, instance, shown, whole_number
from eidetic_kernels.errors import EideticError, InputError
from eidetic_kernels.memory import bytes_of
from eidetic_kernels.modes import evaluating
from eidetic_kernels.tasks.base import device_of
from eidetic_kernels.tasks.checks import an_optimizer, pairs
from eidetic_kernels.tasks.frozen_features import PassDiffers
from eidetic_kernels.tasks.snapshots import all_live

from .accuracy import Accuracy, ClassCount, ClassCounter, LabelCounts
from .captured_step import CapturedSteps
from .features import Numbered


class EpochResult(NamedTuple):
    """Mean loss, and accuracy in [0, 1], over the samples of an epoch; and the share of the most frequent class."""

    loss: float
    accuracy: float
    majority: float = 0.0


class NotFinite(EideticError):
    """An epoch's loss, or a parameter after it, is NaN or infinite."""


class Evaluation(NamedTuple):
    """Accuracy of a task in [0, 1], the SHA-256 of its logits, batch after batch, and right answers by class."""

    accuracy: float
    digest: str
    classes: tuple[ClassCount, ...] = ()


def train_epoch(
    network: EideticNetwork,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    features: FrozenFeatures | None = None,
    captured: CapturedSteps | None = None,
    autocast: bool = False,
) -> EpochResult:
    """Train the task in training for one epoch.

    Accuracy is that of the training steps themselves, which the paper's stopping rules read. Sums stay on the device
    until the epoch's end.

    Args:
        loader: batches (x [N, ...], y [N] int64).
        optimizer: of the network's parameters.
        loss: mean loss of (logits [N, classes], y [N]).
        features: cached frozen features of the loader's samples. If any are read, the loader must number its samples
            (``numbered()``, see :class:`~eidetic_training.data.TensorLoader`).
        captured: runs steps as a CUDA graph, except in an epoch that still computes frozen features.
        autocast: run forward passes and the loss in bfloat16 autocast.

    Raises InputError for an empty loader or wrong labels, NotFinite if the loss or a parameter is.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    an_optimizer(optimizer)
    function("loss", loss, "a function of logits and labels")
    if features is not None:
        instance("features", features, FrozenFeatures, "FrozenFeatures, or None")
    flag("autocast", autocast)
    classes = network.live_head.out_features
    network.train()
    device = device_of(network)
    # Kept on the device, and changed in place, since a CUDA graph adds to the same memory at every replay.
    losses, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    labels = LabelCounts(classes)

    def step(rows: Tensor | None, x: Tensor, y: Tensor) -> None:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext():
            logits = _answer(network, x, features, rows)
            value = loss(logits, y)
            if not isinstance(value, Tensor) or value.dim():
                raise InputError(f"loss must return the mean loss of a batch, a tensor []; got {shown(value)}.")
        value.backward()
        optimizer.step()
        with torch.no_grad():
            losses.add_(value.detach() * len(x))
            correct.add_((logits.argmax(1) == y).sum())

    samples = 0
    if captured is None or (features is not None and not features.settled):
        running = nullcontext(step)
    else:
        running = captured.epoch(step)
    with running as run:
        for rows, x, y in _batches(loader, features):
            _check_labels(x, y, classes)
            labels.add(y)
            run(rows, x, y)
            samples += len(x)

    if not samples:
        raise InputError("the loader gave no batch: its data set is empty, or drop_last=True dropped all of it.")
    mean = losses.item() / samples
    if not math.isfinite(mean):
        raise NotFinite(f"the loss became {mean}")
    for path, name, _, tensor in all_live(network):
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"{path}.{name} became NaN or infinite")
    return EpochResult(mean, correct.item() / samples, labels.majority)


@torch.no_grad()
def evaluate(
    network: EideticNetwork,
    loader: Iterable,
    task: int | None = None,
    *,
    each: Callable[[Tensor], None] = lambda logits: None,
) -> Evaluation:
    """Recall ``task`` (None: the one in training) on all batches of ``loader``, in evaluation mode.

    ``each`` is called with every batch's logits [N, classes]. The network's own mode stays as it is.

    Raises InputError for an empty loader or wrong labels.
    """
    instance("network", network, EideticNetwork, "an EideticNetwork")
    function("each", each, "a function of logits")
    device, answered, sha = device_of(network), Accuracy(), hashlib.sha256()
    classes: ClassCounter | None = None
    with evaluating(network):
        for x, y in pairs("loader", loader):
            logits = network(x.to(device), task=task)
            _check_labels(x, y, logits.shape[1])
            right = logits.argmax(1) == y.to(device)
            answered.add(right)
            classes = classes or ClassCounter(logits.shape[1])
            classes.add(right, y.to(device))
            sha.update(bytes_of(logits))
            each(logits)
    return Evaluation(answered.value, sha.hexdigest(), () if classes is None else classes.counts)


def count_classes(loader: Iterable) -> int:
    """The loader's own ``num_classes``, or one more than the largest label in it.

    Raises InputError for an empty loader or wrong labels.
    """
    known = getattr(loader, "num_classes", None)
    if known is not None:
        return whole_number("the loader's num_classes", known, 1)
    largest = -1
    for x, y in pairs("loader", loader):
        _check_labels(x, y, classes=None)
        largest = max(largest, int(y.max()) if len(y) else -1)
    if largest < 0:
        raise InputError("the loader gave no batch, so the number of classes cannot be read off its labels.")
    return largest + 1


def _answer(network: EideticNetwork, x: Tensor, features: FrozenFeatures | None, rows: Tensor | None) -> Tensor:
    """The logits of a batch, beside frozen ``features`` where there are some."""
    if features is not None:
        try:
            with features.batch(rows):
                return network(x)
        except PassDiffers:  # the features are off by now, which the epoch's end reports
            pass
    return network(x)


def _batches(
    loader: Iterable, features: FrozenFeatures | None
) -> Iterable[tuple[Tensor, Tensor, Tensor] | tuple[None, Tensor, Tensor]]:
    """(rows, x, y). The rows are the samples' numbers, or None if nobody needs them."""
    if features is not None and features.reads:
        return cast(Numbered, loader).numbered()
    return ((None, x, y) for x, y in pairs("loader", loader))


def _check_labels(x: Tensor, y: Tensor, classes: int | None) -> None:
    """Raise InputError unless ``y`` holds class indices, below ``classes`` if that is known."""
    if y.dim() != 1 or len(y) != len(x):
        raise InputError(f"labels must be [N] beside inputs [N, ...]; got {list(y.shape)} and {list(x.shape)}.")
    if y.dtype != torch.long:
        raise InputError(f"labels must be class indices of dtype torch.int64, got {y.dtype}: use y.long().")

    # On a GPU this would wait for the device at every step; data sets held there are checked when they are made.
    if y.is_cuda and classes is not None or not len(y):
        return
    if int(y.min()) < 0:
        raise InputError(f"labels are class indices from 0; the smallest here is {int(y.min())}.")
    if classes is not None and int(y.max()) >= classes:
        raise InputError(
            f"labels lie in {int(y.min())}..{int(y.max())}, but the task's head has {classes} classes, "
            f"0..{classes - 1}: relabel them from 0, or give prepare_for_task another num_classes."
        )
