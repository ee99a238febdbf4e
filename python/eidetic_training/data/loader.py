"""Batches from whole data sets that live as tensors on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eidetic_kernels.errors import InputError

from ._epochs import Epochs
from ._seeds import generator
from .augment import Augmentation
from .image_set import Normalisation, check_labels


def batch_bounds(rows: int, batch_size: int, drop_last: bool) -> list[tuple[int, int]]:
    """(start, stop) of every batch. A trailing batch of one row joins the batch before it: BatchNorm cannot
    train on a single sample."""
    starts = list(range(0, rows, batch_size))
    if drop_last and rows % batch_size:
        starts.pop()
    elif len(starts) > 1 and batch_size > 1 and rows - starts[-1] == 1:
        starts.pop()
    stops = starts[1:] + [starts[-1] + batch_size if drop_last else rows] if starts else []
    return list(zip(starts, stops, strict=True))


def check_batch_size(batch_size: int) -> None:
    """Raise `InputError` unless `batch_size` is an integer of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, expected an integer of at least 1.")


class TensorLoader(Epochs):
    """Iterates over (x, y) batches of a data set held as two tensors; the fast path of training.

    x: `[N, C, H, W]` images or `[N, ...]` features, uint8 or floating point; y: int64 `[N]`. A batch is rows
    taken by one `index_select` (a slice when not shuffled), augmented, then normalised to float32 with
    `normalisation`; uint8 data without one is normalised with its own statistics, float data is left as it
    is. uint8 data stays uint8 in memory: normalising a batch of 256 digits takes 0.05 to 0.1 ms, a float
    copy of everything takes four times the memory.

    Every `iter()` is an epoch. Its order and augmentation depend only on `seed` and the epoch's number, so
    two loaders with one seed give the same batches, and `set_epoch(e)` goes on from epoch `e`. The order is
    the same on every device.

    A trailing batch of a single sample is merged into the one before it. Raises `InputError` when the set is
    empty, when x and y do not match, when labels are not int64 in `0..num_classes-1`, when `batch_size` < 1,
    or when `drop_last` leaves nothing.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augmentation | None = None,
        drop_last: bool = False,
        *,
        normalisation: Normalisation | None = None,
        num_classes: int | None = None,
    ) -> None:
        if not isinstance(x, Tensor) or x.ndim < 2:
            given = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"x is {given}, expected a tensor [N, ...]: images [N, C, H, W] or features [N, F].")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise InputError(f"x has dtype {x.dtype}, expected torch.uint8 or floating point. Convert with .float().")
        check_batch_size(batch_size)
        check_labels(y, x.shape[0], num_classes)
        if y.device != x.device:
            raise InputError(f"x is on {x.device} but y on {y.device}. Move both to one device.")
        if augment and x.ndim != 4:
            raise InputError(f"augment works on images [N, C, H, W], x has shape {list(x.shape)}. Give augment=None.")
        self.x, self.y = x, y
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last
        self.augment = augment or None
        self.num_classes = int(y.max()) + 1 if num_classes is None else num_classes
        if normalisation is None and x.dtype == torch.uint8:
            normalisation = Normalisation.of(x)
        self.normalisation = normalisation
        self._bounds = batch_bounds(x.shape[0], batch_size, drop_last)
        if not self._bounds:
            raise InputError(
                f"drop_last with batch_size {batch_size} leaves no batch of {x.shape[0]} rows. "
                "Give a smaller batch_size or drop_last=False."
            )

    @property
    def num_samples(self) -> int:
        """Rows in the data set."""
        return self.x.shape[0]

    @property
    def device(self) -> torch.device:
        """Where batches come out."""
        return self.x.device

    @property
    def has_augmentation(self) -> bool:
        """Whether a sample differs from epoch to epoch (then features cannot be computed once)."""
        return self.augment is not None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._bounds)

    def numbered(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `iter()`, an epoch, with the number of every sample, its row in the data set: (rows, x, y)."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._numbered(epoch)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `epoch`, leaving the loader's own count of epochs as it is."""
        return ((x, y) for _, x, y in self._numbered(epoch))

    def _numbered(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = torch.arange(self.num_samples)
        if self.shuffle:
            order = torch.randperm(self.num_samples, generator=generator(self.seed, epoch, "order"))
        order, noise = order.to(self.device), self.noise(epoch)
        for start, stop in self._bounds:
            rows = order[start:stop]
            if self.shuffle:
                yield rows, self.prepare(self.x.index_select(0, rows), noise), self.y.index_select(0, rows)
            else:
                yield rows, self.prepare(self.x[start:stop], noise), self.y[start:stop]

    def noise(self, epoch: int) -> torch.Generator | None:
        """The random stream of an epoch's augmentation, on the data's device; None without augmentation."""
        return generator(self.seed, epoch, "augment", device=self.device) if self.augment else None

    def prepare(self, raw: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Raw rows of `x` as the network gets them: augmented with `noise` (None: not), normalised."""
        full_scale = 255.0 if raw.dtype == torch.uint8 else 1.0
        if self.augment is not None and noise is not None:
            raw = self.augment(raw, noise)
        if self.normalisation is None:
            return raw.to(torch.float32, copy=True)  # a slice of x must not reach a network with in-place ops
        return self.normalisation.apply(raw, full_scale)

    def to(self, device: torch.device | str) -> TensorLoader:
        """The same loader, at the same epoch, with its data on `device`."""
        moved = TensorLoader(
            self.x.to(device),
            self.y.to(device),
            self.batch_size,
            self.shuffle,
            self.seed,
            self.augment,
            self.drop_last,
            normalisation=self.normalisation,
            num_classes=self.num_classes,
        )
        moved.epoch = self.epoch
        return moved

    def __repr__(self) -> str:
        return (
            f"TensorLoader({self.num_samples:,} x {list(self.x.shape[1:])}, {self.num_classes} classes, "
            f"{len(self)} batches of {self.batch_size}, {self.device})"
        )
