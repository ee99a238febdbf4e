"""What the router is trained on: columns that it reads of the network and the input, labelled by task or class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eidetic_kernels import EideticNetwork
from eidetic_kernels.errors import InputError
from eidetic_kernels.modes import evaluating
from eidetic_kernels.tasks.base import device_of

from ..data import MetaLoader, TensorLoader
from ..data._epochs import Epochs
from .router_settings import RouterSettings

Batches = Iterable[tuple[Tensor, Tensor]]


class Moments(NamedTuple):
    """Mean and standard deviation of each column, float32 [columns]."""

    mean: Tensor
    deviation: Tensor

    def first(self, columns: int) -> Moments:
        """Those of the first ``columns``."""
        return Moments(self.mean[:columns], self.deviation[:columns])


def router_data(
    network: EideticNetwork, loaders: Sequence[Iterable], settings: RouterSettings, classes: Sequence[int] | None
) -> Epochs:
    """Batches (columns [N, C] float32, label [N] int64) of all tasks mixed, on the network's device.

    Columns are the features, then what ``settings`` add: other layers, and the flattened input as the last columns,
    which convolutions read too. The label is the task, or with ``classes`` (how many each task has) the class among
    those of all tasks.

    The body is frozen, so columns are computed once, unless a loader augments or they need more than
    ``settings.max_cached_bytes``. Then they are computed anew every epoch.
    """
    if settings.examples is not None:
        loaders = [_first_examples(loader, settings.examples, settings) for loader in loaders]
    meta = MetaLoader(loaders, settings.batch_size, seed=settings.seed, classes=classes)
    computed = _Computed(network, meta, layers=settings.layers, inputs=settings.inputs or bool(settings.stages))
    return computed if meta.has_augmentation else _cached(computed, settings.max_cached_bytes)


def moments_of(data: Batches) -> Moments:
    """Mean and standard deviation over all of ``data``, computed in float64. A column that never changes has 1.

    Raises InputError if there is no batch.
    """
    count, total, squares = 0, None, None
    for columns, _ in data:
        values = columns.double()
        sums, sums_of_squares = values.sum(0), values.square().sum(0)
        count += len(values)
        total = sums if total is None else total + sums
        squares = sums_of_squares if squares is None else squares + sums_of_squares
    if total is None or squares is None:
        raise InputError("the loaders gave no batch, expected at least one.")

    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    # A unit that never fires carries nothing; dividing by its deviation would only blow up rounding.
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    return Moments(mean.float(), deviation.float())


class _Computed(Epochs):
    """Batches (columns, label), computed anew every epoch."""

    def __init__(self, network: EideticNetwork, meta: MetaLoader, layers: bool, inputs: bool):
        self.network, self.meta, self.layers, self.inputs = network, meta, layers, inputs

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch; this loader's own count of epochs stays as it is."""
        device = device_of(self.network)
        for x, label in self.meta.batches(epoch):
            with torch.no_grad(), evaluating(self.network):
                _, columns = self.network.routing_features(x.to(device), self.layers, self.inputs)
            yield columns.float(), label.to(device)


def _cached(computed: _Computed, max_bytes: int) -> Epochs:
    """What ``computed`` gives, kept in memory; ``computed`` itself where that takes more than ``max_bytes``."""
    columns, labels, used = [], [], 0
    for each, label in computed:
        used += each.numel() * each.element_size()
        if used > max_bytes:
            return computed
        columns.append(each)
        labels.append(label)
    if not columns:
        raise InputError("the loaders gave no batch, expected at least one.")
    meta = computed.meta
    return TensorLoader(torch.cat(columns), torch.cat(labels), meta.batch_size, seed=meta.seed)


def _first_examples(loader: Iterable, examples: int, settings: RouterSettings) -> TensorLoader:
    """The first ``examples`` inputs of a task's loader. Labels are 0 where the router needs none."""
    inputs, labels, rows = [], [], 0
    for x, y in loader:
        inputs.append(x[: examples - rows])
        none = torch.zeros(len(inputs[-1]), dtype=torch.long)
        labels.append((y[: examples - rows] if settings.classes else none).to(x.device))
        rows += len(inputs[-1])
        if rows == examples:
            break

    if not inputs:
        raise InputError("a loader gave no batch, expected at least one.")
    return TensorLoader(torch.cat(inputs), torch.cat(labels), settings.batch_size)
