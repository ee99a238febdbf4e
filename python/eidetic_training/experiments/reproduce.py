"""The paper's tables and figures by one command: with its settings and with ours, beside the paper's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eidetic_kernels.checking import a_list, function, one_of, path, whole_number
from eidetic_kernels.errors import InputError

from ..runs.folder import RunFolder
from ..runs.tables import read_json, write_bytes
from . import config as configuration
from .experiment import build, run_experiment
from .reproduction_tables import by_row
from .reproductions import REPRODUCTIONS, Row
from .sweep import sweep
from .tasks import make_tasks


def reproduce(
    name: str,
    folder: Path,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    rows: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Run a reproduction, row by row and seed by seed, each in its own run folder. Returns the results in Markdown.

    Complete runs are not repeated, and an interrupted run continues after its last whole epoch. The text is also
    written to ``folder``, as NAME.md.

    Args:
        overrides: "key=value", for every row.
        seeds: number of seeds, from 0 on; a sweep has one.
        rows: labels of the rows to run; None is all. A sweep has none.
        say: called with a line about each run.

    Raises InputError for an unknown name or row, and for a number of seeds that is less than 1.
    """
    one_of("the reproduction", name, tuple(REPRODUCTIONS))
    folder = Path(path("folder", folder, "a folder"))
    overrides = a_list("overrides", overrides, 'a list of "key=value"')
    whole_number("seeds", seeds, least=1)
    function("say", say, "a function of a line")

    plan = REPRODUCTIONS[name]
    if plan.rows:
        text = _text(name, *_run(name, folder, overrides, seeds, rows, say))
    else:
        if seeds > 1 or rows is not None:
            raise InputError(f"{name} is a sweep: it has no rows and one seed; --set seed=1 chooses another seed.")
        found = sweep(configuration.load(plan.config, overrides), folder, say=say)
        text = _text(name, [found], read_json(folder / "sweep.json")["environment"])
    write_bytes(folder / f"{name}.md", text.encode())
    return text


def _run(
    name: str, folder: Path, overrides: Sequence[str], seeds: int, rows: Sequence[str] | None, say: Callable
) -> tuple[list[str], Mapping[str, Any]]:
    """Run all rows. Returns the lines of text about them, and the environment of the first run."""
    plan = REPRODUCTIONS[name]
    chosen = list(plan.rows) if rows is None else a_list("rows", rows, "a list of rows")
    for row in chosen:
        one_of(f"a row of {name}", row, tuple(plan.rows))

    def config_of(row: str, seed: int) -> dict[str, Any]:
        return configuration.load(plan.config, [*row_overrides(plan.rows[row]), f"seed={seed}", *overrides])

    _check([config_of(row, 0) for row in chosen])
    done: dict[str, list[RunFolder]] = {row: [] for row in chosen}
    for seed in range(seeds):
        for row in chosen:
            label = "".join(c if c.isalnum() or c in ".-" else "_" for c in row)
            say(f"{name}, {row}, seed {seed}")
            done[row].append(run_experiment(config_of(row, seed), folder / f"{label}-seed{seed}", say=say))
    lines = by_row(done) if plan.shown is None else plan.shown(folder, name, done)
    return lines, done[chosen[0]][0].environment


def _check(configs: Sequence[dict[str, Any]]) -> None:
    """Raise InputError for a configuration whose network or router cannot be, before hours go into the first one."""
    tasks, data = [], None
    for config in configs:
        if config["data"] != data:
            tasks, data = make_tasks(config["data"], config["seed"]), config["data"]
        build(config, tasks)


def row_overrides(row: Row) -> list[str]:
    """What a row overrides, as "key=value"."""
    return [f"{key}={configuration.toml_value(value)}" for key, value in row.changes.items()]


def _text(name: str, lines: Sequence[str], environment: Mapping[str, Any]) -> str:
    """A reproduction in Markdown: what it follows, its results, the paper's numbers, departures, the environment."""
    plan = REPRODUCTIONS[name]
    paper = [f"- {what}: {figure}" for what, figure in plan.paper.items()]
    if paper:
        paper = ["", "The paper:", "", *paper]
    about = ", ".join(f"{key} {value}" for key, value in environment.items() if value)
    end = ["", f"`eidetic reproduce {name}`; {about}", ""]
    departures = [f"- {label}: {row.departs or 'none, but for what is assumed'}." for label, row in plan.rows.items()]
    if departures:
        departures = ["", "Departures from the paper, by row:", "", *departures]
    head = [f"# {name}: {plan.about}", "", f"Follows: {plan.follows}.", "", f"Assumed: {plan.assumed}", ""]
    return "\n".join([*head, *lines, *paper, *departures, *end])
