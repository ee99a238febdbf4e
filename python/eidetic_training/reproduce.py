"""The paper's tables from one command: the paper's search and ours, the paper's own figures beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eidetic_kernels.errors import InputError

from . import config as configuration
from .experiment import run_experiment
from .report import Summary, summary
from .runs import RunFolder

# The paper's procedure and nothing else (see TaskSettings).
PAPER = {"task.search": "linear", "task.of": "width", "task.polish_epochs": 0, "task.keep_at_least": 0}
OURS = {"task.search": "backoff"}
# How ours trains where there are images enough: a few epochs, pruning, and many at a falling learning rate.
ANNEALED = {
    "task.max_epochs": 3, "task.halve_learning_rate": False, "task.polish_epochs": 20, "task.label_smoothing": 0.1,
    "optimizer.weight_decay": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Reproduction:
    """One of the paper's tables.

    protocol: what was taken where the paper leaves a choice or contradicts itself.
    config: a built-in configuration. variants: by row label, what a row overrides in it.
    paper: the paper's own figures, as far as they are known here, by what they measure.
    """

    about: str
    protocol: str
    config: str
    variants: Mapping[str, Mapping[str, Any]]
    paper: Mapping[str, str] = field(default_factory=dict)


def _searches(changes: Mapping[str, Any], ours: Mapping[str, Any] = OURS) -> dict[str, dict[str, Any]]:
    return {"paper's search": {**changes, **PAPER}, "backoff": {**changes, **ours}}


def _crossed(importances: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each importance by both searches; and for its accuracy, our training with nothing pruned."""
    ours, rows = {**OURS, **ANNEALED, "task.keep_at_least": 0.1}, {}
    for importance in importances:
        for label, changes in _searches({"task.importance": importance}, ours).items():
            rows[f"{importance}, {label}"] = changes
    return {**rows, "no pruning": {"task.search": "none", **ANNEALED}}


def _sweep() -> dict[str, dict[str, Any]]:
    rows = {}
    for importance in ("l1", "l2", "taylor"):
        for step in (0.02, 0.05, 0.1):
            for tolerance in (0.01, 0.03, 0.05):
                changes = {"task.importance": importance, "task.step": step, "task.tolerance": tolerance}
                rows[f"{importance}, step {step:g}, threshold {tolerance:g}"] = {**changes, **PAPER}
    return rows


REPRODUCTIONS: dict[str, Reproduction] = {
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
        _sweep(),
    ),
    "table7-mnist": Reproduction(
        "MNIST in five tasks of two classes, a small MLP, l1, l2 and Taylor, with the learned router and the oracle",
        "2 x 512 units; classes in their own order.",
        "table7-mnist",
        _crossed(("l1", "l2", "taylor")),
        {"l1, with the router": "98.3"},
    ),
    "table7-cifar10": Reproduction(
        "CIFAR-10 in five tasks of two classes, a small MLP, l1, l2 and Taylor, with the learned router and the oracle",
        "2 x 512 units, no augmentation; classes in their own order.",
        "table7-cifar10",
        _crossed(("l1", "l2", "taylor")),
        {"l2, with the router": "53.6", "l2, with the oracle": "68.5"},
    ),
    "table4": Reproduction(
        "CIFAR-100 in five tasks of twenty classes, ResNet-50 (also Table 8, Figures 3 and 4)",
        "ResNet-50 (the paper also says ResNet-18) with the stem for small images; learning rate 0.002 (it also says "
        "2e-4); crops and flips.",
        "table4",
        _searches({}),
    ),
}


def reproduce(
    name: str, folder: Path, overrides: Sequence[str] = (), seeds: int = 1, rows: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> str:  # fmt: skip
    """Run a reproduction, row by row and seed by seed, each in a run folder of its own, and return its table.

    Rows and seeds that are complete are not run again; one that was cut short goes on after its last finished task.

    Raises InputError for a name, or a row, that is none, and for no seed.
    """
    if name not in REPRODUCTIONS:
        raise InputError(f"there is no reproduction {name!r}; there are: {', '.join(REPRODUCTIONS)}.")
    if seeds < 1:
        raise InputError(f"a reproduction needs one seed or more; got {seeds}.")
    plan = REPRODUCTIONS[name]
    chosen = list(plan.variants) if rows is None else list(rows)
    unknown = [row for row in chosen if row not in plan.variants]
    if unknown:
        raise InputError(f"{name} has no row {unknown[0]!r}; there are: {', '.join(plan.variants)}.")
    done: dict[str, list[RunFolder]] = {row: [] for row in chosen}
    for seed in range(seeds):
        for row in chosen:
            changes = [f"{key}={_toml(value)}" for key, value in plan.variants[row].items()]
            config = configuration.load(plan.config, [*changes, f"seed={seed}", *overrides])
            label = "".join(c if c.isalnum() or c in ".-" else "_" for c in row)
            say(f"{name}, {row}, seed {seed}")
            done[row].append(run_experiment(config, folder / f"{label}-seed{seed}", say=say))
    text = table(name, done)
    (folder / "table.md").write_text(text)
    return text


def table(name: str, runs: Mapping[str, Sequence[RunFolder]]) -> str:
    """The rows in Markdown, means and standard deviations over seeds, and the paper's figures."""
    plan = REPRODUCTIONS[name]
    lines = [f"# {name}: {plan.about}", "", f"Protocol: {plan.protocol}", ""]
    lines += ["| row | seeds | accuracy, task given | by task | forgetting | with the router | units | epochs | s |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row, folders in runs.items():
        results = [summary(folder) for folder in folders]
        cells = [row, str(len(results)), _spread([r.mean_end for r in results]), _by_task(results)]
        cells.append(f"{max((r.forgetting for r in results), key=abs):.2%}")
        routed = [folder.router.routed for folder in folders if folder.router is not None]
        cells.append(_spread([statistics.mean(each) for each in routed]) if routed else "")
        cells.append(f"{statistics.mean(_used(r) for r in results):.0%}")
        cells.append(f"{statistics.mean(r.epochs for r in results):.0f}")
        cells.append(f"{statistics.mean(r.seconds for r in results):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    if plan.paper:
        lines += ["", "The paper:", "", *(f"- {what}: {figure}" for what, figure in plan.paper.items())]
    environment = next(iter(runs.values()))[0].environment
    about = ", ".join(f"{key} {value}" for key, value in environment.items() if value)
    return "\n".join([*lines, "", f"`eidetic reproduce {name}`; {about}", ""])


def _by_task(results: Sequence[Summary]) -> str:
    tasks = zip(*([task.end for task in r.tasks] for r in results))
    return " / ".join(f"{100 * statistics.mean(each):.1f}" for each in tasks)


def _used(result: Summary) -> float:
    return sum(layer.kept for layer in result.layers) / sum(layer.width for layer in result.layers)


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _toml(value: Any) -> str:
    return json.dumps(value)  # the same for texts, numbers and truth values
