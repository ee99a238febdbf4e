"""The meta task: every input of every task, labelled with the task it belongs to (paper, section 1).

The router, the network's last head, is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from eidetic_kernels.checking import a_list, flag, one_of, random_seed, shown, whole_number
from eidetic_kernels.errors import InputError

from ._epochs import Epochs
from .image_set import ImageSet, Normalisation
from .loader import TensorLoader
from .mixing import InTurn, JointShuffle, MetaLabels, Mixing, length_of
from .preparation import Preparation
from .tasks import Task

DEFAULT_BATCH = 256


class MetaLoader(Epochs):
    """Iterates over (x, label) batches that mix the tasks of several loaders of (x, y) batches.

    Labels are int64, on x's device. Loaders keep their own augmentation and preparation; they and their data stay as
    they are. The order depends on (seed, epoch) as in :class:`TensorLoader`.

    Args:
        loaders: one for each task. If all are :class:`TensorLoader`, one joint shuffle covers every row of every task
            (the fast path). Otherwise they are any iterables of (x, y) batches, such as a
            ``torch.utils.data.DataLoader``: batches are drawn from all of them in proportion to their lengths.
        batch_size: the first loader's when left out.
        shuffle: False keeps the tasks one after another (for measuring).
        seed: of the order.
        classes: how many each task has. A label is then the class among those of all tasks, numbered task by task,
            instead of the task index.

    Raises InputError for no loaders, an empty one, batches that are no (x, y) pair, and inputs whose shapes differ
    between tasks.
    """

    def __init__(
        self,
        loaders: Sequence[Iterable],
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.loaders = a_list("loaders", loaders, "a list of loaders, one for each task")
        self.shuffle, self.seed = flag("shuffle", shuffle), random_seed("seed", seed)
        if not self.loaders:
            raise InputError("no loaders were given, expected one for each task.")
        for task, loader in enumerate(self.loaders):
            _check_loader(task, loader)
        if batch_size is None:
            batch_size = getattr(self.loaders[0], "batch_size", None) or DEFAULT_BATCH
        self.batch_size = whole_number("batch_size", batch_size, least=1)

        self._labels = MetaLabels(classes, len(self.loaders))
        tensors = [loader for loader in self.loaders if isinstance(loader, TensorLoader)]
        how = self._labels, self.batch_size, self.shuffle, self.seed
        joint = len(tensors) == len(self.loaders)
        self._mixing: Mixing = JointShuffle(tensors, *how) if joint else InTurn(self.loaders, *how)

    @property
    def num_classes(self) -> int:
        """How many labels there are: the tasks, or the classes of all of them."""
        return len(self.loaders) if self._labels.classes is None else sum(self._labels.classes)

    @property
    def has_augmentation(self) -> bool:
        """Whether any loader says that a sample differs from epoch to epoch."""
        return any(getattr(loader, "has_augmentation", False) for loader in self.loaders)

    def __len__(self) -> int:
        """Batches in an epoch; roughly, unless all loaders are :class:`TensorLoader`.

        Raises TypeError if one of them has no length.
        """
        return len(self._mixing)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch; this loader's own count of epochs stays as it is."""
        return self._mixing.batches(whole_number("epoch", epoch))


def meta_task(
    items: Sequence[Task | ImageSet | Iterable],
    batch_size: int | None = None,
    *,
    split: str = "train",
    shuffle: bool | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> MetaLoader:
    """A :class:`MetaLoader` over tasks, image sets or loaders, in the order of their task indices.

    Args:
        batch_size: the first loader's, or 256, when left out.
        split: which set of each :class:`Task` is meant. "train" is augmented and, like everything, shuffled; "test" is
            neither, unless ``shuffle`` says otherwise.
        device: where tasks and image sets go; loaders stay where they are.

    Image sets are all normalised with the first one's numbers. Raises InputError for an unknown split.
    """
    one_of("split", split, ("train", "test"))
    if shuffle is not None:
        flag("shuffle", shuffle)
    size = DEFAULT_BATCH if batch_size is None else batch_size
    loaders: list[Iterable] = []
    preparation = Preparation()
    for item in a_list("items", items, "a list of tasks, image sets or loaders"):
        if isinstance(item, Task):
            train = split == "train"
            loaders.append(item.train_loader(size, seed, device) if train else item.test_loader(size, device))
        elif isinstance(item, ImageSet):
            moved = item if device is None else item.to(device)
            if preparation.normalisation is None and moved.images.dtype == torch.uint8:
                preparation = Preparation(normalisation=Normalisation.of(moved.images))
            loaders.append(TensorLoader(moved.images, moved.labels, size, seed=seed, preparation=preparation))
        else:
            loaders.append(cast(Iterable, item))
    shuffle = split == "train" if shuffle is None else shuffle
    return MetaLoader(loaders, batch_size, shuffle, seed)


def _check_loader(task: int, loader: object) -> None:
    """Raise InputError unless ``loader`` can be iterated over every epoch, and is not empty."""
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator | Tensor | str | bytes | np.ndarray):
        raise InputError(
            f"Task {task}'s loader is {shown(loader)}, expected something "
            "that can be iterated over every epoch: a DataLoader or TensorLoader, not an iterator."
        )
    if length_of(loader) == 0:
        raise InputError(f"Task {task}'s loader is empty, expected at least one batch.")
