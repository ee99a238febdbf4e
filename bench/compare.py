"""Compares two result files of the same benchmarks: what became faster or slower, and by how much.

    python bench/compare.py BEFORE.json AFTER.json [--fail-above 1.1]

Reads pytest-benchmark's JSON (make bench ARGS=--benchmark-json=FILE) and the JSON of bench/training_step.py. With
``--fail-above 1.1`` the exit status is 1 if anything took more than 1.1 times its former time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def times(path: Path) -> dict[str, float]:
    """Seconds by benchmark name, from either kind of file."""
    found = json.loads(path.read_text())
    if "benchmarks" in found:
        return {bench["fullname"]: bench["stats"]["median"] for bench in found["benchmarks"]}
    if "rows" in found:
        return {
            f"{row['model']} ({row['frozen']}, {row['live']}) {name}": ms / 1e3
            for row in found["rows"]
            for name, ms in row["ms"].items()
        }
    raise SystemExit(f"{path} holds neither pytest-benchmark's results nor bench/training_step.py's.")


def compared(before: dict[str, float], after: dict[str, float]) -> list[tuple[str, float, float, float]]:
    """(name, before, after, after / before) of every benchmark in both, the greatest slowdown first."""
    rows = [(name, before[name], after[name], after[name] / before[name]) for name in before if name in after]
    return sorted(rows, key=lambda row: -row[3])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--fail-above", type=float)
    given = parser.parse_args(arguments)
    before, after = times(given.before), times(given.after)
    rows = compared(before, after)
    if not rows:
        raise SystemExit("the two files have no benchmark in common.")
    for name, old, new, ratio in rows:
        print(f"{ratio:6.2f}  {1e3 * old:10.3f} ms -> {1e3 * new:10.3f} ms  {name}")
    for name in sorted(set(before) ^ set(after)):
        print(f"  only in {'BEFORE' if name in before else 'AFTER'}: {name}")
    if given.fail_above is not None and rows[0][3] > given.fail_above:
        sys.exit(1)


if __name__ == "__main__":
    main()
