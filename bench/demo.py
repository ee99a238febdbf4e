"""Run the demo in an empty folder and write its report and the machine to bench/results/demo.md.

python bench/demo.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from machine import described

from eidetic_training.experiments import config
from eidetic_training.experiments.experiment import run_experiment
from eidetic_training.runs import report


def main() -> None:
    about = described()  # the commit, before this very script changes a tracked file
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        said = []
        run = run_experiment(config.load("demo"), Path(folder) / "run", say=said.append)
        seconds = time.perf_counter() - started
        table = report.table(run)

        layers = report.summary(run).layers
        used = sum(layer.kept for layer in layers) / sum(layer.width for layer in layers)

    text = "\n".join(
        [
            "# The demo",
            "",
            f"`python bench/demo.py` (what `make demo` runs); {about}",
            "",
            f"Wall time {seconds:.0f} s, data loading, evaluation after every task, router and proof included. "
            f"{used:.0%} of the units used.",
            "",
            "Seed 0. Accuracies are of 1,000 test images a task. The settings are the defaults, which runs of this",
            "demo decided; on which images is not recorded, but the floor of 50 units was chosen with [test",
            "accuracies](pruning.md) in view.",
            "",
            "```",
            table,
            "",
            *said,
            "```",
            "",
        ]
    )
    (Path(__file__).parent / "results" / "demo.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
