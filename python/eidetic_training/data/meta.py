"""The meta task: every input of every task, labelled with the task it belongs to (paper, section 4).

The router, the network's last head, is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from eidetic_kernels.errors import InputError

from ._epochs import Epochs
from ._seeds import generator
from .image_set import ImageSet, Normalisation
from .loader import TensorLoader, batch_bounds, check_batch_size
from .tasks import Task

# Of one loader at a time, so that a much shorter one beside it does not make an epoch one huge batch.
_MOST_BATCHES_HELD = 8


class MetaLoader(Epochs):
    """Iterates over (x, task index) batches that mix the tasks of several loaders of (x, y) batches.

    loaders[t] holds task t's data: all `TensorLoader`s (the fast path: one joint shuffle over every row of
    every task, nothing copied but the batch), or any iterables of (x, y) batches such as a
    `torch.utils.data.DataLoader` (batches are drawn from all loaders in proportion to their lengths,
    concatenated, shuffled and cut to `batch_size`). Task indices are int64, on x's device. Loaders keep
    their own augmentation and normalisation; the loaders and their data are left as they are.

    batch_size: the first loader's, when left out. Order depends on (seed, epoch) as in `TensorLoader`;
    `shuffle=False` keeps the tasks one after another (for measuring).

    classes: how many each task has. A label is then a class of all of them, counted through task by task, and not a
    task index.

    Raises `InputError` for no loaders, an
    empty one, batches that are no (x, y) pair, and inputs whose shapes differ between tasks.
    """

    def __init__(
        self,
        loaders: Sequence[Iterable],
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        classes: Sequence[int] | None = None,
    ) -> None:
        loaders = list(loaders)
        self._classes = classes
        if not loaders:
            raise InputError("No loaders given, expected one a task.")
        for task, loader in enumerate(loaders):
            if not hasattr(loader, "__iter__") or isinstance(loader, Iterator | Tensor):
                raise InputError(
                    f"Task {task}'s loader is {type(loader).__name__}, expected something "
                    "that can be iterated over every epoch: a DataLoader or TensorLoader, not an iterator."
                )
            if _length(loader) == 0:
                raise InputError(f"Task {task}'s loader is empty, expected at least one batch.")
        self.loaders, self.shuffle, self.seed = loaders, shuffle, seed
        if batch_size is None:
            batch_size = getattr(loaders[0], "batch_size", None) or 256
        check_batch_size(batch_size)
        self.batch_size = batch_size
        self._joint = all(isinstance(loader, TensorLoader) for loader in loaders)
        if self._joint:
            for task, loader in enumerate(loaders):
                _check_shape(task, loader.x, loaders[0].x)
                if loader.device != loaders[0].device:
                    raise InputError(
                        f"Task {task}'s data is on {loader.device}, task 0's on {loaders[0].device}. "
                        "Move all to one device with loader.to(device)."
                    )
                if classes is not None:
                    self._labels(task, loader.x, loader.y.cpu())
            self._ends = torch.tensor([loader.num_samples for loader in loaders]).cumsum(0)
            self._bounds = batch_bounds(int(self._ends[-1]), batch_size, drop_last=False)

    @property
    def num_classes(self) -> int:
        """How many labels there are: tasks, or the classes of all of them."""
        return len(self.loaders) if self._classes is None else sum(self._classes)

    @property
    def has_augmentation(self) -> bool:
        """Whether any loader says that a sample differs from epoch to epoch."""
        return any(getattr(loader, "has_augmentation", False) for loader in self.loaders)

    def __len__(self) -> int:
        """Batches in an epoch; for other loaders than `TensorLoader`s about as many. `TypeError` if one of
        them has no length."""
        if self._joint:
            return len(self._bounds)
        rows = sum(len(loader) * (getattr(loader, "batch_size", None) or 1) for loader in self.loaders)
        return max(1, round(rows / self.batch_size))

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `epoch`, leaving this loader's own count of epochs as it is."""
        return self._jointly(epoch) if self._joint else self._in_turn(epoch)

    def _jointly(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        # Indices stay on the CPU until a batch's own go over in one piece: no waiting for a GPU.
        rows = int(self._ends[-1])
        order = torch.arange(rows)
        if self.shuffle:
            order = torch.randperm(rows, generator=generator(self.seed, epoch, "meta"))
        device = self.loaders[0].device
        starts = self._ends - torch.tensor([loader.num_samples for loader in self.loaders])
        noise = [loader.noise(epoch) for loader in self.loaders]
        for begin, end in self._bounds:
            chosen = order[begin:end].sort().values
            owner = torch.searchsorted(self._ends, chosen, right=True)
            local = (chosen - starts[owner]).to(device)
            counts = torch.bincount(owner, minlength=len(self.loaders)).tolist()
            parts, labels, at = [], [], 0
            for task, (loader, stream, count) in enumerate(zip(self.loaders, noise, counts, strict=True)):
                if count:
                    rows = local[at : at + count]
                    parts.append(loader.prepare(loader.x.index_select(0, rows), stream))
                    labels.append(self._labels(task, parts[-1], loader.y.index_select(0, rows)))
                    at += count
            yield torch.cat(parts), torch.cat(labels)

    def _in_turn(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        shapes: list[Tensor] = []
        streams = [self._labelled(task, epoch, shapes) for task in range(len(self.loaders))]
        if not self.shuffle:
            for stream in streams:
                yield from stream
            return
        draw = generator(self.seed, epoch, "meta")
        for group in self._rounds(streams):
            yield from self._cut(group, draw)

    def _labelled(self, task: int, epoch: int, seen: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """A loader's batches with the task index for a label; `seen` holds the first x of any task."""
        loader, empty = self.loaders[task], True
        for batch in loader.batches(epoch) if isinstance(loader, TensorLoader) else loader:
            x, empty = _input_of(batch, task), False
            seen[:] = seen or [x]
            _check_shape(task, x, seen[0])
            yield x, self._labels(task, x, batch[1])
        if empty:
            raise InputError(f"Task {task}'s loader gave no batch, expected at least one.")

    def _labels(self, task: int, x: Tensor, y: object) -> Tensor:
        """What the meta task calls samples ``x`` [N, ...] of ``task``, whose labels ``y`` matter to classes alone."""
        if self._classes is None:
            return torch.full((x.shape[0],), task, device=x.device)
        if not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.dtype != torch.int64:
            raise InputError(
                f"Task {task}'s labels are {_described(y)}, expected class indices [{x.shape[0]}] of torch.int64."
            )
        # On a GPU this would wait for the device at every batch; data sets held there are checked in the beginning.
        if not y.is_cuda and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self._classes[task]:
            raise InputError(
                f"Task {task}'s labels lie in {int(y.min())}..{int(y.max())}, expected 0..{self._classes[task] - 1}: "
                "the classes it was trained with."
            )
        return sum(self._classes[:task]) + y.to(x.device)

    def _rounds(self, streams: list[Iterator]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Batches to be mixed. A loader of twice the length gives twice as many a round, so that all end
        together; where a length is unknown, each gives one a round until it ends."""
        lengths = [_length(loader) for loader in self.loaders]
        rounds = 1 if None in lengths else max(min(lengths), -(-max(lengths) // _MOST_BATCHES_HELD))
        shares = [1 if None in lengths else length for length in lengths]
        running, turn = dict(enumerate(streams)), 0
        while running:
            group = []
            for task, stream in list(running.items()):
                due = (turn + 1) * shares[task] // rounds - turn * shares[task] // rounds
                batches = list(islice(stream, due))
                group += batches
                if len(batches) < due:
                    del running[task]
            turn += 1
            if group:
                yield group

    def _cut(self, group: list[tuple[Tensor, Tensor]], draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Concatenate, shuffle, and deal into even batches of about `batch_size`."""
        x, tasks = (torch.cat(part) for part in zip(*group, strict=True))
        order = torch.randperm(len(x), generator=draw).to(x.device)
        x, tasks = x.index_select(0, order), tasks.index_select(0, order)
        pieces = max(1, round(len(x) / self.batch_size))
        yield from zip(x.tensor_split(pieces), tasks.tensor_split(pieces), strict=True)


def meta_task(
    items: Sequence[Task | ImageSet | Iterable],
    batch_size: int | None = None,
    *,
    split: str = "train",
    shuffle: bool | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> MetaLoader:
    """A `MetaLoader` over tasks, image sets or loaders, in the order of their task indices.

    split: which set of each `Task` is meant; "train" is augmented and, like everything, shuffled; "test" is
    neither, unless `shuffle` says otherwise. Image sets are all normalised with the first one's numbers.
    device: where tasks and image sets go; loaders stay where they are.
    """
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}, expected 'train' or 'test'.")
    size = 256 if batch_size is None else batch_size
    loaders, normalisation = [], None
    for item in items:
        if isinstance(item, Task):
            train = split == "train"
            item = item.train_loader(size, seed, device) if train else item.test_loader(size, device)
        elif isinstance(item, ImageSet):
            item = item if device is None else item.to(device)
            if normalisation is None and item.images.dtype == torch.uint8:
                normalisation = Normalisation.of(item.images)
            item = TensorLoader(item.images, item.labels, size, seed=seed, normalisation=normalisation)
        loaders.append(item)
    shuffle = split == "train" if shuffle is None else shuffle
    return MetaLoader(loaders, batch_size, shuffle, seed)


def _length(loader: Iterable) -> int | None:
    try:
        return len(loader)
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
            f"Task {task}'s inputs have shape {list(x.shape[1:])}, others {list(first.shape[1:])}; "
            "the router needs one. Bring them to a common shape, e.g. several(..., shape=(C, H, W))."
        )
