"""What a trained network expects at its input. A run keeps it, so that new images can be classified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eidetic_kernels.checking import LARGEST, require, whole_number
from eidetic_kernels.errors import InputError

from ..data import Normalisation, Task
from ..data.encoded import decode_file


@dataclass(frozen=True)
class Inputs:
    """The network's inputs and labels.

    Args:
        shape: (channels, height, width).
        mean, std: of each channel, for pixels in [0, 1].
        labels: for each task, the data set's label of each of its classes.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> Inputs:
        """The inputs of a sequence of tasks, whose images all have one shape and one normalisation."""
        first = tasks[0]
        labels = tuple(tuple(int(label) for label in task.labels or range(task.num_classes)) for task in tasks)
        return cls(_image(first.train.shape), tuple(first.normalisation.mean), tuple(first.normalisation.std), labels)

    @classmethod
    def from_json(cls, values: Any, path: str | Path = "inputs.json") -> Inputs:
        """What :meth:`to_json` wrote to ``path``. Raises InputError for anything else."""
        try:
            shape = _image(values["shape"])
            pixels = Normalisation(tuple(values["mean"]), tuple(values["std"]))
            require(len(pixels.mean) == shape[0], f"mean must be {shape[0]} numbers, one for each channel", pixels.mean)
            labels = tuple(tuple(whole_number("a label", label, -LARGEST) for label in t) for t in values["labels"])
            return cls(shape, pixels.mean, pixels.std, labels)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged: the run's inputs must be shape (three whole numbers), mean and std (a number for "
                f"each channel) and labels (class labels for each task); got {str(values)[:200]} "
                f"({type(error).__name__}: {str(error).rstrip('.')}). Restore it from a copy of the run."
            ) from error

    def label(self, task: int, index: int) -> int:
        """The data set's label of class ``index`` of a task. Raises InputError if there is none on record."""
        if 0 <= task < len(self.labels) and 0 <= index < len(self.labels[task]):
            return self.labels[task][index]
        raise InputError(
            f"inputs.json has no label of class {index} of task {task}, which the run has learned: it is damaged, or "
            "the file that names that class is. Restore both from a copy of the run."
        )

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON knows them."""
        return asdict(self)

    def read_image(self, path: Path) -> Tensor:
        """An image file as the network takes it, float32 [C, H, W]: the shorter side resized, the centre cut out.

        16 bits are scaled to 8, EXIF orientations applied, transparent pixels shown on white, as in data sets
        (:mod:`eidetic_training.data.encoded`).

        Raises InputError for a network whose inputs are not square, grey or RGB, and for a file that is no image.
        """
        channels, height, width = self.shape
        if height != width:
            raise InputError(f"image files can be read for square inputs only; this network takes {height}x{width}.")
        if channels not in (1, 3):
            raise InputError(f"image files can be read with 1 or 3 channels only; this network takes {channels}.")
        pixels = torch.from_numpy(decode_file(path, grey=channels == 1, resolution=height).copy())
        return Normalisation(self.mean, self.std)(pixels.unsqueeze(0))[0]


def _image(shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = (whole_number("shape", side, least=1) for side in shape)
    return channels, height, width
