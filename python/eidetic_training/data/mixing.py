"""Two ways of mixing several tasks' batches: one joint shuffle of tensors, or drawing from any loaders in turn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from eidetic_kernels.checking import a_list, require, whole_number
from eidetic_kernels.errors import InputError

from ._seeds import generator
from .loader import TensorLoader, batch_bounds

# Of one loader at a time, so that a much shorter one beside it does not make an epoch one huge batch.
_MOST_BATCHES_HELD = 8

Batch = tuple[Tensor, Tensor]


class MetaLabels:
    """What the meta task calls a sample: by its task, or by its class among those of all tasks.

    Args:
        classes: how many each task has, where samples are called by their class; None where by their task.

    Raises InputError unless there are ``tasks`` of them.
    """

    def __init__(self, classes: Sequence[int] | None, tasks: int):
        self.classes = None
        if classes is not None:
            given = a_list("classes", classes, "a list of each task's number of classes")
            self.classes = [whole_number("classes of a task", each, 1) for each in given]
            require(len(self.classes) == tasks, f"classes must be {tasks} numbers, one for each task", classes)

    def of(self, task: int, x: Tensor, y: object) -> Tensor:
        """int64 [N] for samples ``x`` [N, ...] of ``task``. Their own labels ``y`` matter to classes alone.

        Raises InputError for a ``y`` that holds no classes of the task.
        """
        if self.classes is None:
            return torch.full((x.shape[0],), task, device=x.device)
        if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise InputError(
                f"Task {task}'s labels are {_described(y)}, expected class indices [{x.shape[0]}] of torch.int64."
            )
        # On a GPU this would wait for the device at every batch; data sets held there are checked in the beginning.
        if not y.is_cuda and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.classes[task]:
            raise InputError(
                f"Task {task}'s labels lie in {int(y.min())}..{int(y.max())}, expected 0..{self.classes[task] - 1}: "
                "the classes it was trained with."
            )
        return sum(self.classes[:task]) + y.to(x.device)


class Mixing(ABC):
    """Batches (x, meta label) of about ``batch_size`` that mix all tasks.

    Args:
        shuffle: False keeps the tasks one after another.
    """

    def __init__(self, labels: MetaLabels, batch_size: int, shuffle: bool, seed: int):
        self.labels, self.batch_size, self.shuffle, self.seed = labels, batch_size, shuffle, seed

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch; they depend on the seed and the epoch's number."""


class JointShuffle(Mixing):
    """One shuffle over every row of every task, for tensors on one device. Nothing is copied but the batch.

    Raises InputError for data on several devices, of several shapes, or with wrong labels.
    """

    def __init__(self, loaders: Sequence[TensorLoader], labels: MetaLabels, batch_size: int, shuffle: bool, seed: int):
        super().__init__(labels, batch_size, shuffle, seed)
        self.loaders, self.device = loaders, loaders[0].device
        for task, loader in enumerate(loaders):
            _check_shape(task, loader.x, loaders[0].x)
            if loader.device != self.device:
                raise InputError(
                    f"Task {task}'s data is on {loader.device}, task 0's on {self.device}. "
                    "Move all to one device with loader.to(device)."
                )
            if labels.classes is not None:
                labels.of(task, loader.x, loader.y.cpu())  # checks them
        sizes = torch.tensor([loader.num_samples for loader in loaders])
        self._ends = sizes.cumsum(0)
        self._starts = self._ends - sizes
        self._bounds = batch_bounds(int(self._ends[-1]), batch_size, drop_last=False)

    def __len__(self) -> int:
        return len(self._bounds)

    def batches(self, epoch: int) -> Iterator[Batch]:
        # Indices stay on the CPU until a batch's own go over in one piece: no waiting for a GPU.
        rows = int(self._ends[-1])
        order = torch.arange(rows)
        if self.shuffle:
            order = torch.randperm(rows, generator=generator(self.seed, epoch, "meta"))
        noise = [loader.noise(epoch) for loader in self.loaders]

        for begin, end in self._bounds:
            chosen = order[begin:end].sort().values
            owner = torch.searchsorted(self._ends, chosen, right=True)
            local = (chosen - self._starts[owner]).to(self.device)
            counts = torch.bincount(owner, minlength=len(self.loaders)).tolist()
            yield self._gathered(local.split(counts), noise)

    def _gathered(self, rows: Sequence[Tensor], noise: list[torch.Generator | None]) -> Batch:
        """One batch of each loader's ``rows``."""
        parts, labels = [], []
        for task, (loader, own, stream) in enumerate(zip(self.loaders, rows, noise, strict=True)):
            if len(own):
                parts.append(loader.preparation(loader.x.index_select(0, own), stream))
                labels.append(self.labels.of(task, parts[-1], loader.y.index_select(0, own)))
        return torch.cat(parts), torch.cat(labels)


class InTurn(Mixing):
    """Batches are drawn from all loaders in proportion to their lengths, concatenated, shuffled and cut.

    ``len`` is about right. It raises TypeError if a loader has no length. Batches that are no pair (x, y), empty
    loaders and inputs whose shapes differ between tasks raise InputError when they are met.
    """

    def __init__(self, loaders: Sequence[Iterable], labels: MetaLabels, batch_size: int, shuffle: bool, seed: int):
        super().__init__(labels, batch_size, shuffle, seed)
        self.loaders = loaders

    def __len__(self) -> int:
        rows = sum(len(cast(Sized, each)) * (getattr(each, "batch_size", None) or 1) for each in self.loaders)
        return max(1, round(rows / self.batch_size))

    def batches(self, epoch: int) -> Iterator[Batch]:
        shapes: list[Tensor] = []
        streams = [self._labelled(task, epoch, shapes) for task in range(len(self.loaders))]
        if not self.shuffle:
            for stream in streams:
                yield from stream
            return
        draw = generator(self.seed, epoch, "meta")
        for group in self._rounds(streams):
            yield from self._cut(group, draw)

    def _labelled(self, task: int, epoch: int, seen: list[Tensor]) -> Iterator[Batch]:
        """A loader's batches with their meta labels; ``seen`` holds the first x of any task."""
        loader, empty = self.loaders[task], True
        for batch in loader.batches(epoch) if isinstance(loader, TensorLoader) else loader:
            x, empty = _input_of(batch, task), False
            seen[:] = seen or [x]
            _check_shape(task, x, seen[0])
            yield x, self.labels.of(task, x, batch[1])
        if empty:
            raise InputError(f"Task {task}'s loader gave no batch, expected at least one.")

    def _rounds(self, streams: list[Iterator[Batch]]) -> Iterator[list[Batch]]:
        """Groups of batches to be mixed. A loader of twice the length gives twice as many in a round, so that all end
        together. If a length is unknown, each gives one in a round until it ends."""
        lengths = [each for each in map(length_of, self.loaders) if each is not None]
        if len(lengths) < len(streams):
            rounds, due_in_all = 1, [1] * len(streams)
        else:
            rounds, due_in_all = max(min(lengths), -(-max(lengths) // _MOST_BATCHES_HELD)), lengths

        running, turn = dict(enumerate(streams)), 0
        while running:
            group: list[Batch] = []
            for task, stream in list(running.items()):
                due = (turn + 1) * due_in_all[task] // rounds - turn * due_in_all[task] // rounds
                batches = list(islice(stream, due))
                group += batches
                if len(batches) < due:
                    del running[task]
            turn += 1
            if group:
                yield group

    def _cut(self, group: list[Batch], draw: torch.Generator) -> Iterator[Batch]:
        """Concatenate, shuffle, and deal into even batches of about ``batch_size``."""
        x, labels = (torch.cat(part) for part in zip(*group, strict=True))
        order = torch.randperm(len(x), generator=draw).to(x.device)
        x, labels = x.index_select(0, order), labels.index_select(0, order)
        pieces = max(1, round(len(x) / self.batch_size))
        yield from zip(x.tensor_split(pieces), labels.tensor_split(pieces), strict=True)


def length_of(loader: Iterable) -> int | None:
    """Its ``len``; None if it has none."""
    try:
        return len(cast(Sized, loader))
    except TypeError:
        return None


def _input_of(batch: object, task: int) -> Tensor:
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor) and batch[0].ndim > 0:
        return batch[0]
    raise InputError(f"Task {task}'s loader gave a {type(batch).__name__}, expected a pair (x, y) with a tensor x.")


def _described(y: object) -> str:
    return f"{list(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _check_shape(task: int, x: Tensor, first: Tensor) -> None:
    if x.shape[1:] != first.shape[1:]:
        raise InputError(
            f"Task {task}'s inputs have shape {list(x.shape[1:])}, others {list(first.shape[1:])}; expected one shape. "
            "Bring them to a common one, e.g. several(..., shape=(C, H, W))."
        )
