"""A linear search, step by step, beside backoff, everything else equal: capacity, accuracy, epochs, time; three seeds.

    python bench/searches.py --runs FOLDER [--set table7-mnist data.folder=...] [--only demo ...] [--seeds 3]

Ten tasks of permuted MNIST on the 5,000 built-in digits (`demo`), and MNIST and CIFAR-10 in five tasks of two classes
(`table7-mnist`, `table7-cifar10`: given where their images are). Both searches train alike, as the configuration says.
In the demo that is our way, not the paper's: l2, patience 3, threshold 1 %, at most 4 epochs of recovery, AdamW at
0.001, even shares, the same floor of units a task keeps and the same epochs at a falling rate. `linear` removes 5 % of
a layer's width at a time, as the paper counts; `backoff` half of the live units, and half as many where that was too
many. A run that was cut short continues. Accuracies are of test images. On which images the demo's settings were
chosen is not recorded.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from machine import described
from networks import SMOKE

from eidetic_training.experiments import config
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.experiments.reproduce import row_overrides
from eidetic_training.experiments.reproductions import OURS, Row
from eidetic_training.runs import report

# Our training, also where the configuration has the paper's.
SMALL_MLP = Row({**OURS, "data.batch_size": 128, "model.dropout": 0.2, "task.max_epochs": 20})
CONFIGS = {"demo": Row(), "table7-mnist": SMALL_MLP, "table7-cifar10": SMALL_MLP}
SEARCHES = {"linear": ["task.search=linear", "task.of=width"], "backoff": ["task.search=backoff"]}
SMALL = ["model.width=20", "data.tasks=2", "task.max_epochs=1", "task.polish_epochs=1", "task.max_recovery_epochs=1"]


def measure(name: str, search: str, seeds: int, overrides: list[str], folder: Path) -> str:
    """One row of the table, over ``seeds`` runs."""
    runs, about = [], None
    for seed in range(seeds):
        changes = [
            *row_overrides(CONFIGS[name]),
            *SEARCHES[search],
            *overrides,
            *(SMALL if SMOKE else []),
            f"seed={seed}",
            "router.train=false",
        ]
        run = run_experiment(config.load(name, changes), folder / f"{name}-{search}-seed{seed}", say=lambda text: None)
        runs.append(report.summary(run))
        about = about or run.environment["commit"]
        print(name, search, seed, f"{runs[-1].mean_end:.2%}", flush=True)

    used = [sum(layer.kept for layer in r.layers) / sum(layer.width for layer in r.layers) for r in runs]
    cells = [
        name,
        search,
        str(seeds),
        _spread([100 * u for u in used], 1),
        _spread([100 * r.mean_end for r in runs], 2),
        f"{max(r.forgetting for r in runs):.2%}",
        _spread([r.epochs for r in runs], 0),
        _spread([r.seconds for r in runs], 0),
        str(about)[:12],
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--only", nargs="*", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("CONFIG", "KEY=VALUE"), dest="sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "searches.md")
    given = parser.parse_args(arguments)
    machine = described()
    rows = []
    for name in given.only:
        overrides = [change for config_name, change in given.sets if config_name == name]
        rows += [measure(name, search, given.seeds, overrides, given.runs) for search in SEARCHES]

    lines = ["# A linear search and backoff", "", "`python bench/searches.py`, " + machine + ".", ""]
    lines += [*__doc__.split("\n\n")[2].splitlines(), ""]
    lines += ["Means and standard deviations over the seeds from 0 on; seconds are upper bounds on a busy machine.", ""]
    titles = ["tasks", "search", "seeds", "units used, %", "mean test accuracy, %", "most forgotten", "epochs"]
    lines += ["| " + " | ".join([*titles, "seconds", "commit"]) + " |", "|---|---|--:|--:|--:|--:|--:|--:|---|", *rows]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
