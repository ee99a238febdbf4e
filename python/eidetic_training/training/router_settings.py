"""How the router is trained: every setting, with its default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from eidetic_kernels.checking import flag, random_seed, real_number, require, whole_number
from eidetic_kernels.errors import InputError

from .settings_base import Settings


@dataclass(frozen=True)
class RouterSettings(Settings):
    """Settings of :func:`eidetic_training.train_router`. The defaults are the paper's task classifier: one linear map
    of the features (paper, section 1).

    Args:
        max_epochs: upper bound on epochs before polishing.
        patience: training stops after this many epochs without a better training accuracy, or when it is 1.
        polish_epochs: epochs at the end, in which the learning rate falls to zero.
        lr: learning rate of AdamW, which trains the map and its biases. Weights of convolutions have Muon's own rate.
        batch_size: samples in a batch, drawn from all tasks.
        hidden: ReLU units between features and tasks; 0 is the paper's linear map. They help if tasks lie in one
            domain.
        dropout: of the hidden units, while they are trained.
        label_smoothing: the fraction of each label that the loss spreads over all others.
        weight_decay: of AdamW; use it when many input columns invite overfitting.
        layers: read what every layer computes, and not the features alone. It helps if tasks lie in one domain: what
            distinguishes two tasks' classes need not matter to either task.
        inputs: read the input itself, flattened, too: what no task needed is in no unit.
        convolutions: channels of each stage of the router's own convolutional network over the input, trained with it
            (see :class:`eidetic_kernels.tasks.router_convolutions.RouterConvolutions`); None is none. Use them if the
            body cannot tell whose task an image is.
        augment: let the convolutions see every image cropped and mirrored at random. What the router reads of the body
            is still that of the image as it is, and computed once.
        alone: read the convolutions and nothing of the body: the body's features are overconfident on its own training
            images.
        mirrored: average the scores of an image and its mirror image, as the convolutions see them. Inference then runs
            the convolutions twice.
        classes: learn to tell the classes of all tasks apart instead of the tasks. A task's score is then the log of
            the sum of its classes' exponentials. A class says more about an image than a task whose classes are not
            alike. This is not the paper's, which relabels all data by task.
        examples: train on this many samples of each task, the first of its loader's first epoch; None uses all. It is
            what one would keep of a task whose data goes away.
        seed: of the order of the samples.
        max_cached_bytes: keep what the router reads of the body as long as it needs no more memory; otherwise it is
            computed anew every epoch.

    Raises InputError for a value of a wrong type or out of its range, and for settings that exclude each other.
    """

    max_epochs: int = 30
    patience: int = 3
    polish_epochs: int = 0
    lr: float = 1e-3
    batch_size: int = 256
    hidden: int = 0
    dropout: float = 0.2
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    layers: bool = False
    inputs: bool = False
    convolutions: Sequence[int] | None = None
    augment: bool = False
    alone: bool = False
    mirrored: bool = False
    classes: bool = False
    examples: int | None = None
    seed: int = 0
    max_cached_bytes: int = 2**31

    def __post_init__(self) -> None:
        self.check(whole_number, "max_epochs", "patience", least=1, unit="epochs")
        self.check(whole_number, "polish_epochs", unit="epochs")
        self.check(whole_number, "batch_size", least=1)
        self.check(whole_number, "hidden", unit="units")
        self.check(whole_number, "max_cached_bytes")
        if self.examples is not None:
            self.check(whole_number, "examples", least=1)

        self.check(real_number, "lr", "weight_decay", least=0.0)
        self.check(real_number, "dropout", "label_smoothing", least=0.0, below=1.0)
        self.check(flag, "layers", "inputs", "augment", "alone", "mirrored", "classes")
        self.check(random_seed, "seed")
        require(
            _are_channels(self.convolutions),
            "convolutions must be numbers of channels, 1 or more, one for each stage",
            self.convolutions,
        )
        self._check_convolutions()

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of each stage of the router's own convolutions; empty without convolutions."""
        return tuple(self.convolutions or ())

    def _check_convolutions(self) -> None:
        """Raise InputError if a setting needs convolutions that are not there, or excludes another one."""
        for name in ("augment", "alone", "mirrored"):
            if getattr(self, name) and not self.stages:
                raise InputError(
                    f"{name}=True is about convolutions, and there are none: give convolutions=(64, 128, 256), or "
                    f"{name}=False."
                )
        if self.alone and (self.layers or self.inputs):
            raise InputError(
                "alone=True reads nothing but convolutions: leave out layers and inputs, or give alone=False."
            )


def _are_channels(given: object) -> bool:
    if given is None:
        return True
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        return False
    return all(type(each) is int and each >= 1 for each in cast(Sequence[object], given))
