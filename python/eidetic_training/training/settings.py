"""How one task is trained and pruned: every knob, with the paper's meaning and our default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from eidetic_kernels.errors import InputError
from eidetic_kernels.tasks.pruning import IMPORTANCES

_TYPES = {
    "int": int,
    "float": (int, float),
    "int | float": (int, float),
    "bool": bool,
    "str": str,
    "bool | str": (bool, str),
}
SEARCHES = ("backoff", "linear", "none")


@dataclass(frozen=True)
class TaskSettings:
    """Settings of :func:`eidetic_training.train_task` (paper, sections 3 and 4).

    The paper's procedure and nothing else is ``search="linear", of="width", polish_epochs=0, keep_at_least=0``.

    max_epochs: upper bound on epochs before pruning.
    patience: epochs without a better training accuracy before pruning begins.
    halve_learning_rate: halve it then, and train one more epoch ("settle"), before pruning.
    search: "backoff" (ours), "linear" (the paper's), "none" (train only; the last task of a known sequence).
    importance: "l1", "l2", "taylor", "random" or "hybrid".
    step: the share of units that one step of "linear" removes, and the smallest share that "backoff" tries.
    of: whether shares are counted of the "live" units now present or of each layer's "width" (as the paper counts).
    first_step: the share that "backoff" removes first.
    tolerance: how far training accuracy may fall below its best, as a share of the best.
    max_recovery_epochs: epochs in which a pruned network may recover to that.
    polish_epochs: epochs at the end, on the units that are kept, in which the learning rate falls to zero ("polish").
    keep_at_least: live units that each layer keeps at least, a count or a share of its width. Training accuracy alone
        would let a task shrink until test accuracy suffers: compare bench/results/pruning.md (12 units) with demo.md
        (50 units) there.
    frozen_features: what the task reads of frozen units, kept by sample so that a step costs what the live units cost
        (:class:`eidetic_kernels.FrozenFeatures`). "auto": where the training set is not augmented, its loader numbers
        the samples, the network allows it and no more than ``frozen_features_gib`` GiB are needed; an event says when
        not. True: whatever memory it takes, and InputError where it cannot be. False: never.
    cuda_graphs: steps captured as a CUDA graph once an epoch and launched at once, so that small ones do not wait for
        the host (:class:`eidetic_training.captured_step.CapturedSteps`). "auto": on a GPU where the optimizer can be
        captured (fused Adam or AdamW, SGD, any with ``capturable=True``) and an epoch's batches keep their shape; an
        event says when not. True: InputError where it cannot be. False, the default: what it gains has not been
        measured on a GPU yet (``bench/gpu.py --only graphs`` does). A step, with its loss, must do the same for every
        batch.
    autocast: training's forward passes and losses in bfloat16 (torch.autocast), for GPUs that are fast in it; weights,
        statistics and recall stay in the network's own dtype. Of a float64 network, which torch does not cast, nothing.
    label_smoothing: the share of each label that is spread over all classes in the loss (Szegedy et al., 2016).
    seed: of random importance.
    """

    max_epochs: int = 50
    patience: int = 3
    halve_learning_rate: bool = False
    search: str = "backoff"
    importance: str = "l2"
    step: float = 0.05
    of: str = "live"
    first_step: float = 0.5
    tolerance: float = 0.01
    max_recovery_epochs: int = 4
    polish_epochs: int = 10
    keep_at_least: int | float = 0.025
    frozen_features: bool | str = "auto"
    frozen_features_gib: float = 1.0
    cuda_graphs: bool | str = False
    autocast: bool = False
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for field in fields(self):
            value, types = getattr(self, field.name), _TYPES[field.type]
            _require(
                isinstance(value, types) and ("bool" in field.type or not isinstance(value, bool)),
                f"{field.name} must be of type {field.type}",
                value,
            )
        _require(self.max_epochs >= 1, "max_epochs must be 1 or more", self.max_epochs)
        _require(self.patience >= 1, "patience must be 1 or more", self.patience)
        _require(self.search in SEARCHES, f"search must be one of {', '.join(SEARCHES)}", self.search)
        _require(self.importance in IMPORTANCES, f"importance must be one of {', '.join(IMPORTANCES)}", self.importance)
        _require(self.of in ("live", "width"), 'of must be "live" or "width"', self.of)
        _require(0 < self.step <= 1, "step must lie in (0, 1]", self.step)
        if self.search == "backoff":
            _require(self.step <= self.first_step <= 1, "first_step must lie in [step, 1]", self.first_step)
        _require(0 <= self.tolerance < 1, "tolerance must lie in [0, 1)", self.tolerance)
        _require(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1)", self.label_smoothing)
        _require(self.polish_epochs >= 0, "polish_epochs must be 0 or more", self.polish_epochs)
        _require(self.max_recovery_epochs >= 1, "max_recovery_epochs must be 1 or more", self.max_recovery_epochs)
        _require(
            self.frozen_features in ("auto", True, False),
            'frozen_features must be "auto", True or False',
            self.frozen_features,
        )
        _require(
            self.cuda_graphs in ("auto", True, False), 'cuda_graphs must be "auto", True or False', self.cuda_graphs
        )
        _require(self.frozen_features_gib >= 0, "frozen_features_gib must be 0 or more", self.frozen_features_gib)
        _require(
            self.keep_at_least >= 0 and (isinstance(self.keep_at_least, int) or self.keep_at_least <= 1),
            "keep_at_least must be a count or a share in [0, 1]",
            self.keep_at_least,
        )

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> TaskSettings:
        """Settings from a configuration; raises InputError for a name that is none, listing those there are."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise InputError(f"unknown setting {', '.join(map(repr, unknown))}; there are: {', '.join(known)}.")
        return cls(**values)


def _require(holds: bool, expected: str, given: Any) -> None:
    if not holds:
        raise InputError(f"{expected}; got {given!r}.")
