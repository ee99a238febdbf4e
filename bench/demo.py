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

    text = "\n".join(
        [
            "# The demo",
            "",
            f"`python bench/demo.py` (what `make demo` runs); {about}",
            "",
            f"Wall time {seconds:.0f} s, with data loading, evaluation after every task, router and final check.",
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
