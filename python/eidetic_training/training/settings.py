"""How one task is trained and pruned: every setting, with the paper's meaning and our default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from eidetic_kernels.checking import flag, one_of, random_seed, real_number, require, share, whole_number
from eidetic_kernels.tasks.checks import count_or_share
from eidetic_kernels.tasks.importance import an_importance
from eidetic_kernels.tasks.pruning import COUNTED

from .settings_base import Settings

Value = TypeVar("Value")

SEARCHES = ("backoff", "linear", "none")
AUTO = ("auto", True, False)


@dataclass(frozen=True)
class TaskSettings(Settings):
    """Settings of :func:`eidetic_training.train_task` (paper, sections 3 and 4).

    The paper's procedure and nothing else is ``search="linear", of="width", polish_epochs=0, keep_at_least=0``.

    Args:
        max_epochs: upper bound on epochs before pruning.
        patience: pruning begins after this many epochs without a better training accuracy.
        halve_learning_rate: halve the learning rate before pruning, and train one more epoch ("settle").
        search: "backoff" (ours), "linear" (the paper's), "none" (train only; the last task of a known sequence).
        importance: "l1", "l2" (or 1, 2), "taylor", "random" or "hybrid"; a list is cycled through, step of pruning by
            step.
        step: the fraction of the units that one step of "linear" removes, and the smallest that "backoff" tries.
            "linear" takes a list, too, and cycles through it; if it is as long as that of ``importance``, the two are
            paired.
        of: what fractions count: the "live" units, all units "present" (frozen ones, too), or each layer's "width" (as
            the paper does).
        first_step: the fraction that "backoff" removes first.
        tolerance: how far training accuracy may fall below its best, as a fraction of the best.
        max_recovery_epochs: within this many epochs a pruned network must recover to that accuracy.
        polish_epochs: epochs at the end, on the units that are kept, in which the learning rate falls to zero
            ("polish").
        keep_at_least: how many live units each layer keeps at least, a count or a fraction of its width. Training
            accuracy alone would let a task shrink until test accuracy suffers: compare bench/results/pruning.md (12
            units) with demo.md (50 units) there.
        max_pruned: the largest share of the network's weights that pruning may remove, of those present when it begins
            (the weight matrices whole, and the task's head). A step that would remove more is undone.
        frozen_features: cache what the task reads of frozen units, by sample, so that a step costs what the live units
            cost (:class:`eidetic_kernels.FrozenFeatures`). "auto": if the training set is not augmented, its loader
            numbers the samples, the network allows it and the cache fits into ``frozen_features_gib`` GiB; otherwise an
            event says why not. True: whatever memory it takes, and InputError if it is impossible. False: never.
        cuda_graphs: capture a training step as a CUDA graph once an epoch and replay it, so that small steps do not
            wait for the host (:class:`eidetic_training.training.captured_step.CapturedSteps`). "auto": on a GPU, if the
            optimizer can be captured (fused Adam or AdamW, SGD, any with ``capturable=True``) and an epoch's batches
            keep their shape; otherwise an event says why not. True: InputError if it is impossible. False, the default:
            the gain has not been measured on a GPU yet (``bench/gpu.py --only graphs`` does). A step, with its loss,
            must do the same for every batch.
        autocast: run training's forward passes and losses in bfloat16 (torch.autocast), for GPUs that are fast in it.
            Weights, statistics and recall stay in the network's own dtype. It has no effect on a float64 network, which
            torch does not cast.
        label_smoothing: the fraction of each label that the loss spreads over all classes (Szegedy et al., 2016).
        seed: of random importance.

    Raises InputError for a value of a wrong type or out of its range.
    """

    max_epochs: int = 50
    patience: int = 3
    halve_learning_rate: bool = False
    search: str = "backoff"
    importance: str | int | tuple[str | int, ...] = "l2"
    step: float | tuple[float, ...] = 0.05
    of: str = "live"
    first_step: float = 0.5
    tolerance: float = 0.01
    max_recovery_epochs: int = 4
    polish_epochs: int = 10
    keep_at_least: int | float = 0.025
    max_pruned: float = 1.0
    frozen_features: bool | str = "auto"
    frozen_features_gib: float = 1.0
    cuda_graphs: bool | str = False
    autocast: bool = False
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.check(whole_number, "max_epochs", "patience", "max_recovery_epochs", least=1, unit="epochs")
        self.check(whole_number, "polish_epochs", unit="epochs")
        self.check(flag, "halve_learning_rate", "autocast")
        self.check(random_seed, "seed")

        self.check(one_of, "search", known=SEARCHES)
        self.check(_one_or_several, "importance", each=an_importance)
        self.check(one_of, "of", known=COUNTED)
        self.check(one_of, "frozen_features", "cuda_graphs", known=AUTO)

        self.check(_one_or_several, "step", each=real_number, above=0.0, most=1.0)
        backoff = self.search == "backoff"
        require(not backoff or not isinstance(self.step, tuple), 'step must be one number for "backoff"', self.step)
        self.check(real_number, "first_step", least=self.step_at(0) if backoff else 0.0, most=1.0)
        self.check(real_number, "tolerance", "label_smoothing", least=0.0, below=1.0)
        self.check(real_number, "frozen_features_gib", least=0.0)
        self.check(count_or_share, "keep_at_least")
        self.check(share, "max_pruned")

    def importance_at(self, step: int) -> str:
        """The importance of a task's pruning step ``step``, counted from 0."""
        names = cast("str | tuple[str, ...]", self.importance)
        return names if isinstance(names, str) else names[step % len(names)]

    def step_at(self, step: int) -> float:
        """The fraction that a task's pruning step ``step``, counted from 0, removes."""
        return self.step[step % len(self.step)] if isinstance(self.step, tuple) else self.step


def _one_or_several(name: str, value: object, each: Callable[..., Value], **limits: Any) -> Value | tuple[Value, ...]:
    """``value`` as ``each`` has it, or a tuple of its members, where it is a list of one or more. Raises InputError."""
    if not isinstance(value, (list, tuple)):
        return each(name, value, **limits)
    members = cast("list[object] | tuple[object, ...]", value)
    require(len(members) > 0, f"{name} must be one value, or a list of one or more", members)
    return tuple(each(name, member, **limits) for member in members)
