"""Sequences of tasks made from image sets: permuted pixels, split classes, several sets (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from eidetic_kernels.checking import (
    a_list,
    flag,
    instance,
    path,
    random_seed,
    real_number,
    require,
    shown,
    whole_number,
)
from eidetic_kernels.errors import InputError

from ._memory import bytes_of_memory
from ._seeds import generator
from .augment import Augmentation
from .encoded import MAX_PIXELS, resized
from .image_set import ImageSet, Normalisation
from .loader import TensorLoader
from .preparation import Preparation
from .sources import Source, as_source

SourceLike = str | Source | tuple[ImageSet, ImageSet]


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a sequence. Its labels are 0..num_classes-1.

    Args:
        normalisation: one for the whole sequence, so that an input can be prepared before its task is known.
        augment: of the training set.
        labels: the source's label of each of the task's classes.
        permutation: int64 [H*W] for permuted pixels: pixel i of the task is pixel ``permutation[i]`` of the source.
    """

    name: str
    train: ImageSet
    test: ImageSet
    num_classes: int
    normalisation: Normalisation
    augment: Augmentation | None = None
    labels: tuple[int, ...] = ()
    permutation: Tensor | None = None

    def __post_init__(self) -> None:
        instance("name", self.name, str, "text")
        instance("train", self.train, ImageSet, "an ImageSet")
        instance("test", self.test, ImageSet, "an ImageSet")
        whole_number("num_classes", self.num_classes, 1)
        instance("normalisation", self.normalisation, Normalisation, "a Normalisation")
        Preparation(self.augment)  # checks it
        for label in a_list("labels", self.labels, "the source's label of each class"):
            whole_number("a label", label)
        if self.permutation is not None:
            instance("permutation", self.permutation, Tensor, "int64 [H*W], or None")

    def train_loader(self, batch_size: int, seed: int = 0, device: torch.device | str | None = None) -> TensorLoader:
        """Shuffled, augmented batches of the training set, on ``device``."""
        whole_number("batch_size", batch_size, 1)  # before anything moves
        images = self.train if device is None else self.train.to(device)
        return TensorLoader(
            images.images,
            images.labels,
            batch_size,
            seed=seed,
            preparation=Preparation(self.augment, self.normalisation),
            num_classes=self.num_classes,
        )

    def test_loader(self, batch_size: int, device: torch.device | str | None = None) -> TensorLoader:
        """Batches of the test set in its own order, on ``device``."""
        whole_number("batch_size", batch_size, 1)  # before anything moves
        images = self.test if device is None else self.test.to(device)
        return TensorLoader(
            images.images,
            images.labels,
            batch_size,
            shuffle=False,
            preparation=Preparation(normalisation=self.normalisation),
            num_classes=self.num_classes,
        )


def permuted(
    source: SourceLike,
    tasks: int,
    seed: int = 0,
    *,
    identity_first: bool = True,
    folder: str | Path | None = None,
    resolution: int | None = None,
) -> list[Task]:
    """Tasks that each hold the whole of ``source``, with the pixels in another order.

    The order of task t depends on (seed, t) only; task 0 keeps the original one, unless ``identity_first`` is
    False. All channels of a pixel move together. The tasks are never augmented: neighbours mean nothing after a
    permutation.

    Each task holds a permuted copy (task 0 the source's own tensors). Measured on 60,000 MNIST images, a copy costs
    0.1 s and 47 MB once, against 0.4 ms a batch for gathering pixels batch by batch.

    Raises InputError for a source or an argument of the wrong kind.
    """
    tasks, seed = whole_number("tasks", tasks, least=1), random_seed("seed", seed)
    flag("identity_first", identity_first)
    source = as_source(source, folder, resolution)
    each, most = source.train.images.nbytes + source.test.images.nbytes, bytes_of_memory()
    if most is not None and (tasks - 1) * each > most:
        raise InputError(
            f"{tasks:,} tasks of permuted pixels take {(tasks - 1) * each:,} bytes, a copy of {source.name} each, and "
            f"this machine has {most:,} bytes of memory. Ask for fewer tasks."
        )

    normalisation = Normalisation.of(source.train.images)
    made = []
    for t in range(tasks):
        train, test, order = source.train, source.test, None
        if t > 0 or not identity_first:
            pixels = source.train.shape[1] * source.train.shape[2]
            order = torch.randperm(pixels, generator=generator(seed, t, "pixels"))
            train, test = _permute(train, order), _permute(test, order)
        labels = tuple(range(train.classes))
        name = f"{source.name} permutation {t}"
        made.append(Task(name, train, test, train.classes, normalisation, None, labels, order))
    return made


def split_classes(
    source: SourceLike,
    tasks: int,
    order: Sequence[int] | None = None,
    *,
    augment: Augmentation | None | str = "usual",
    folder: str | Path | None = None,
    resolution: int | None = None,
) -> list[Task]:
    """Tasks that divide the classes of ``source``, as evenly as possible; the first tasks get the remainder.

    Args:
        order: the classes, each once, in the order in which tasks take them (default: 0, 1, ...). Within a task, labels
            count from 0 in that order.
        augment: "usual" is the source's own.

    Raises InputError when there are fewer classes than tasks, or a class has no image in one of the splits.
    """
    tasks = whole_number("tasks", tasks, least=1)
    source = as_source(source, folder, resolution)
    classes = source.train.classes
    if tasks > classes:
        raise InputError(
            f"{source.name} has {classes} classes, not enough for {tasks} tasks. Ask for at most {classes}."
        )

    every = list(range(classes))
    if order is None:
        order = every
    else:
        given = a_list("order", order, "a list of the classes")
        order = [whole_number("a class in order", each, 0, classes - 1) for each in given]
    require(sorted(order) == every, f"order must hold every class 0..{classes - 1} exactly once", order)
    augment = _augmentation(augment, source)
    normalisation = Normalisation.of(source.train.images)

    each, rest = divmod(classes, tasks)
    made, start = [], 0
    for t in range(tasks):
        labels = tuple(order[start : start + each + (t < rest)])
        start += len(labels)
        name = f"{source.name} classes {', '.join(map(str, labels))}"
        train, test = (_only(s, labels, name) for s in (source.train, source.test))
        made.append(Task(name, train, test, len(labels), normalisation, augment, labels))
    return made


def several(
    sources: Sequence[SourceLike],
    shape: tuple[int, int, int] | None = None,
    *,
    augment: Augmentation | None | str = "usual",
    folder: str | Path | None = None,
) -> list[Task]:
    """One task for each data set, in order.

    All tasks are normalised with the first source's numbers, which are known when it is learned.

    Args:
        shape: (C, H, W) that all images are brought to. Grey is repeated over channels; the shorter side is resized
            (bilinear) and the centre cut out.
        augment: "usual" is each source's own.
        folder: for sources given by name, the folder that holds a folder of each.

    Raises InputError when shapes differ and ``shape`` is not given, or colour would become grey.
    """
    sources = a_list("sources", sources, "a list of data sets")
    require(bool(sources), "sources must be a list of at least one data set", sources)
    if shape is not None:
        shape = _checked(shape)
    if folder is not None:
        folder = path("folder", folder, "a folder")
    loaded = [as_source(s, folder if isinstance(s, str) and s != "digits" else None) for s in sources]
    if shape is None and len({s.train.shape for s in loaded}) > 1:
        given = ", ".join(f"{s.name} {list(s.train.shape)}" for s in loaded)
        raise InputError(
            f"images differ in shape: {given}; expected one. Pass shape=(C, H, W) to bring them to a common one."
        )

    made, normalisation = [], None
    for source in loaded:
        train, test = source.train, source.test
        if shape is not None:
            train, test = (_reshape(s, shape, source.name) for s in (train, test))
        normalisation = normalisation or Normalisation.of(train.images)
        labels = tuple(range(train.classes))
        usual = _augmentation(augment, source)
        made.append(Task(source.name, train, test, train.classes, normalisation, usual, labels))
    return made


def hold_out(task: Task, share: float, seed: int = 0) -> Task:
    """The task with a part of its training set in place of its test set, to choose settings on (paper, section 4).

    The part is ``share`` of every class, at least one image and never all of them. It is drawn from (seed, class), so
    tasks made of the same images in the same order, such as permuted ones, hold out the same images. The test set
    itself is dropped. The normalisation stays the sequence's.

    Raises InputError for a share outside (0, 1), and for a class with one image.
    """
    instance("task", task, Task, "a Task")
    share, seed = real_number("share", share, above=0.0, below=1.0), random_seed("seed", seed)

    labels, parts = task.train.labels, []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise InputError(f"{task.name}: class {label} has one image, expected two or more to hold one out.")
        order = torch.randperm(len(rows), generator=generator(seed, label, "held out")).to(rows.device)
        parts.append(rows[order][: min(max(1, round(share * len(rows))), len(rows) - 1)])

    chosen = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    chosen[torch.cat(parts)] = True
    return replace(task, train=_rows(task.train, ~chosen), test=_rows(task.train, chosen))


def _rows(images: ImageSet, chosen: Tensor) -> ImageSet:
    return ImageSet(images.images[chosen], images.labels[chosen], images.classes)


def _augmentation(augment: Augmentation | None | str, source: Source) -> Augmentation | None:
    if isinstance(augment, str) and augment == "usual":
        return source.augment
    if augment is None or isinstance(augment, Augmentation):
        return augment
    raise InputError(f'augment must be "usual", None or an Augmentation; got {shown(augment)}.')


def _permute(images: ImageSet, order: Tensor) -> ImageSet:
    # As a matrix: gathering columns of [N, C, H*W] takes three times as long.
    planes = images.images.reshape(-1, len(order))
    pixels = planes[:, order.to(planes.device)].view(images.images.shape)
    return ImageSet(pixels, images.labels, images.classes)


def _only(images: ImageSet, labels: Sequence[int], name: str) -> ImageSet:
    """The rows with one of ``labels``, relabelled by its place among them."""
    table = torch.full((images.classes,), -1, device=images.labels.device)
    table[list(labels)] = torch.arange(len(labels), device=table.device)
    remapped = table[images.labels]
    rows = (remapped >= 0).nonzero().flatten()
    missing = set(range(len(labels))) - set(remapped[rows].unique().tolist())
    if missing:
        absent = ", ".join(str(labels[i]) for i in sorted(missing))
        raise InputError(
            f"{name}: no image of class {absent} in one of the splits, "
            "expected some of every class in train and test. Leave the class out of the data set."
        )
    return ImageSet(images.images.index_select(0, rows), remapped[rows], len(labels))


def _reshape(images: ImageSet, shape: tuple[int, int, int], name: str) -> ImageSet:
    channels, height, width = shape
    pixels = images.images
    if pixels.shape[1] not in (1, channels):
        raise InputError(
            f"{name} has {pixels.shape[1]} channels, but shape asks for {channels}. "
            "Only grey images can be given more channels; ask for the largest count among the sources."
        )
    if pixels.shape[2:] != (height, width):
        try:
            wide, high = resized(pixels.shape[3], pixels.shape[2], (width, height))
        except InputError as error:
            raise InputError(f"{name}: an image cannot be resized: {error}") from error
        at_once = max(1, min(1024, MAX_PIXELS // (pixels.shape[1] * wide * high)))
        pixels = torch.cat([_fit(part, height, width) for part in pixels.split(at_once)])
    if pixels.shape[1] != channels:
        pixels = pixels.repeat(1, channels, 1, 1)
    return ImageSet(pixels, images.labels, images.classes)


def _checked(shape: object) -> tuple[int, int, int]:
    """A shape (C, H, W). Raises InputError for anything else."""
    given = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    right = len(given) == 3 and all(type(size) is int and size >= 1 for size in given)
    require(right, "shape must be (C, H, W), each a whole number, 1 or more", shape)
    return cast("tuple[int, int, int]", given)


def _fit(pixels: Tensor, height: int, width: int) -> Tensor:
    """Scaled until both sides cover (height, width), then cut in the centre; keeps the dtype."""
    wide, high = resized(pixels.shape[3], pixels.shape[2], (width, height))
    scaled = F.interpolate(pixels.float(), size=(high, wide), mode="bilinear", antialias=True, align_corners=False)
    top, left = (high - height) // 2, (wide - width) // 2
    window = scaled[:, :, top : top + height, left : left + width]
    return window.round().clamp(0, 255).to(torch.uint8) if pixels.dtype == torch.uint8 else window.to(pixels.dtype)
