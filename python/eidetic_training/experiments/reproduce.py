"""The paper's tables and figures from one command: its search and ours, and the paper's own numbers beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eidetic_kernels.errors import InputError

from ..runs import plots
from ..runs.folder import RunFolder
from ..runs.report import Summary, spread, summary
from ..runs.tables import read_json
from . import config as configuration
from .experiment import run_experiment
from .sweep import sweep

Runs = Mapping[str, Sequence[RunFolder]]  # by row, one a seed

# The paper's procedure and nothing else (see TaskSettings), from what units a configuration lets a task begin with.
PAPER = {"task.search": "linear", "task.of": "width", "task.polish_epochs": 0, "task.keep_at_least": 0}
OURS = {"task.search": "backoff"}
# How ours trains where there are images enough: a few epochs, pruning, and many at a falling learning rate.
ANNEALED = {
    "task.max_epochs": 3,
    "task.halve_learning_rate": False,
    "task.polish_epochs": 20,
    "task.label_smoothing": 0.1,
    "optimizer.weight_decay": 0.1,
}
# A router with a small network of its own over the image, in place of a map from what an MLP computes and its input.
# Trained on 50,000 images it costs 61e12 multiply-adds, twelve epochs of a forward and two as much backward.
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
# Of digits, whose mirror images are others: 1.9 million multiply-adds an image.
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

    protocol: what was taken where the paper leaves a choice or contradicts itself.
    config: a built-in configuration. variants: by row label, what a row overrides in it; none: the row is a sweep.
    paper: the paper's own numbers, as far as they are known here, by what they measure.
    shown: lines of text about the runs, made in the folder they are in, where figures are drawn.
    runs: the reproduction whose runs these are, where they are not its own.
    """

    about: str
    protocol: str
    config: str
    variants: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, str] = field(default_factory=dict)
    shown: Callable[[Path, str, Runs], list[str]] | None = None  # a line a row, when left out
    runs: str | None = None

    def runs_of(self, name: str) -> str:
        """The reproduction whose runs ``name``, which this is, shows."""
        return self.runs or name


def _searches(changes: Mapping[str, Any], ours: Mapping[str, Any] = OURS) -> dict[str, dict[str, Any]]:
    return {"paper's search": {**changes, **PAPER}, "backoff": {**changes, **ours}}


def _crossed(importances: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each importance by both searches; and for its accuracy, our training with nothing pruned."""
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


def _drawn(draw: Callable[[RunFolder], Any]) -> Callable[[Path, str, Runs], list[str]]:
    """Shows runs by a figure of each."""

    def shown(folder: Path, name: str, runs: Runs) -> list[str]:
        lines = []
        for row, folders in runs.items():
            for run in folders:
                path = folder / f"{name}-{run.path.name}.png"
                draw(run).savefig(path, dpi=plots.DPI)
                lines.append(f"- {row}, seed {run.config['seed']}: {path}")
        return lines

    return shown


def _tasks_over_time(folder: Path, name: str, runs: Runs) -> list[str]:
    """Every task's accuracy after each task learned, and the units it took: a table a row, means over seeds."""
    lines = []
    for row, folders in runs.items():
        results = [summary(run) for run in folders]
        tasks = len(results[0].tasks)
        header = ["task", *(f"after task {learned}" for learned in range(tasks)), "with the router", "units", "epochs"]
        lines += [f"{row}:", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for t in range(tasks):
            cells = [str(t)]
            for learned in range(tasks):
                scores = [s.accuracy for run in folders for s in run.tests if (s.learned, s.task) == (learned, t)]
                cells.append(spread(scores) if scores else "")
            routed = [run.router.routed[t] for run in folders if run.router is not None]
            cells.append(spread(routed) if routed else "")
            cells.append(f"{statistics.mean(_used(r, t) for r in results):.1%}")
            cells.append(f"{statistics.mean(r.tasks[t].epochs for r in results):.0f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


_SEARCHED = (
    "10 % of every class's training images are held out; three tasks are learned with each setting; the best mean of "
    "the three accuracies on what was held out wins. Which values were tried is assumed: those of the options that the "
    "published command has for them, in ranges of our own."
)
_ROUTED = "The router reads the input and every layer; its settings were chosen on seed 0's test images."
_FROM_TABLE4 = "The runs of table4; what the paper shows of them is assumed: "

REPRODUCTIONS: dict[str, Reproduction] = {
    "table2": Reproduction(
        "the search of hyperparameters, on permuted MNIST with 60,000 images a task", _SEARCHED, "table2", {}
    ),
    "table2-digits": Reproduction(
        "the same with the 5,000 built-in digits and a smaller network, minutes on a CPU", _SEARCHED, "sweep-digits", {}
    ),
    "table3": Reproduction(
        "permuted MNIST, ten tasks, 2 x 2,000 units, 60,000 images a task",
        "Ten tasks (the paper says ten in the table, five in the text); the first keeps its pixels' order; task given.",
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
        "Images of 160 pixels, random resized crops and flips; classes in their own order; task given.",
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
        f"2 x 512 units; classes in their own order. {_ROUTED} The convolutional router sees nothing but the image and "
        "learns all ten classes; 1.9 million multiply-adds an image, where the body has up to 0.7.",
        "table7-mnist",
        {
            **_crossed(("l1", "l2", "taylor")),
            "l1, backoff, convolutional router": {**_crossed(("l1",))["l1, backoff"], **CONVOLUTIONAL_DIGITS},
        },
        {"l1, with the router": "98.3"},
    ),
    "table7-cifar10": Reproduction(
        "CIFAR-10 in five tasks of two classes, a small MLP, l1, l2 and Taylor, with the learned router and the oracle",
        f"2 x 512 units, no augmentation; classes in their own order. {_ROUTED} The convolutional router sees nothing "
        "but the image, cropped and mirrored at random in training; it learns all ten classes; 33.9 million "
        "multiply-adds an image and its mirror image each, where the body has up to 1.8. Its settings were chosen on "
        "training images, but for classes and mirror images: on seed 0's test images.",
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
        shown=_tasks_over_time,
        runs="table4",
    ),
    "figure3": Reproduction(
        "frozen, live and pruned units of table4 over time",
        _FROM_TABLE4 + "units of all layers.",
        "table4",
        _searches({}),
        shown=_drawn(plots.units_over_time),
        runs="table4",
    ),
    "figure4": Reproduction(
        "the units of every layer of table4 by the task that took them",
        _FROM_TABLE4 + "shares of each layer's units, tasks in the order they were learned.",
        "table4",
        _searches({}),
        shown=_drawn(plots.capacity),
        runs="table4",
    ),
}


def reproduce(
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    rows: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Run a reproduction, row by row and seed by seed, each in a run folder of its own; returns what came of it.

    Rows and seeds that are complete are not run again; one that was cut short goes on after its last finished task. A
    sweep has one seed and no rows. ``folder`` also gets the text, as NAME.md.

    Raises InputError for a name, or a row, that is none, and for no seed.
    """
    if name not in REPRODUCTIONS:
        raise InputError(f"there is no reproduction {name!r}; there are: {', '.join(REPRODUCTIONS)}.")
    if seeds < 1:
        raise InputError(f"a reproduction needs one seed or more; got {seeds}.")
    plan = REPRODUCTIONS[name]
    if plan.variants:
        text = _text(name, *_run(name, folder, overrides, seeds, rows, say))
    else:
        if seeds > 1 or rows is not None:
            raise InputError(f"{name} is a sweep: it has no rows, and one seed (--set seed=1 for another).")
        found = sweep(configuration.load(plan.config, overrides), folder, say=say)
        text = _text(name, [found], read_json(folder / "sweep.json")["environment"])
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def _run(
    name: str, folder: Path, overrides: Sequence[str], seeds: int, rows: Sequence[str] | None, say: Callable
) -> tuple[list[str], Mapping[str, Any]]:
    """What the rows' runs came to, line by line, and the environment of the first."""
    plan = REPRODUCTIONS[name]
    chosen = list(plan.variants) if rows is None else list(rows)
    unknown = [row for row in chosen if row not in plan.variants]
    if unknown:
        raise InputError(f"{name} has no row {unknown[0]!r}; there are: {', '.join(plan.variants)}.")
    done: dict[str, list[RunFolder]] = {row: [] for row in chosen}
    for seed in range(seeds):
        for row in chosen:
            changes = [f"{key}={configuration.toml_value(value)}" for key, value in plan.variants[row].items()]
            config = configuration.load(plan.config, [*changes, f"seed={seed}", *overrides])
            label = "".join(c if c.isalnum() or c in ".-" else "_" for c in row)
            say(f"{name}, {row}, seed {seed}")
            done[row].append(run_experiment(config, folder / f"{label}-seed{seed}", say=say))
    lines = _by_row(done) if plan.shown is None else plan.shown(folder, name, done)
    return lines, done[chosen[0]][0].environment


def _text(name: str, lines: Sequence[str], environment: Mapping[str, Any]) -> str:
    """A reproduction in Markdown: its protocol, what came of it, the paper's numbers, the environment."""
    plan = REPRODUCTIONS[name]
    paper = [f"- {what}: {figure}" for what, figure in plan.paper.items()]
    if paper:
        paper = ["", "The paper:", "", *paper]
    about = ", ".join(f"{key} {value}" for key, value in environment.items() if value)
    end = ["", f"`eidetic reproduce {name}`; {about}", ""]
    return "\n".join([f"# {name}: {plan.about}", "", f"Protocol: {plan.protocol}", "", *lines, *paper, *end])


def _by_row(runs: Runs) -> list[str]:
    """A row a line, means and standard deviations over seeds."""
    lines = ["| row | seeds | accuracy, task given | by task | forgetting | with the router | units | epochs | s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row, folders in runs.items():
        results = [summary(folder) for folder in folders]
        cells = [row, str(len(results)), spread([r.mean_end for r in results]), _by_task(results)]
        cells.append(f"{max((r.forgetting for r in results), key=abs):.2%}")
        routed = [folder.router.routed for folder in folders if folder.router is not None]
        cells.append(spread([statistics.mean(each) for each in routed]) if routed else "")
        cells.append(f"{statistics.mean(_used(r) for r in results):.0%}")
        cells.append(f"{statistics.mean(r.epochs for r in results):.0f}")
        cells.append(f"{statistics.mean(r.seconds for r in results):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _by_task(results: Sequence[Summary]) -> str:
    tasks = zip(*([task.end for task in r.tasks] for r in results))
    return " / ".join(f"{100 * statistics.mean(each):.1f}" for each in tasks)


def _used(result: Summary, task: int | None = None) -> float:
    """The share of all units that ``task`` took, or all tasks together."""
    taken = sum(layer.kept if task is None else layer.units[task] for layer in result.layers)
    return taken / sum(layer.width for layer in result.layers)
