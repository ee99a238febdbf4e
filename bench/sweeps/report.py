"""What was found of one model: a line of JSON that is written anew after every step, so that a kill loses none."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import eidetic_kernels as ek

STEPS = ("convert", "bits", "size", "prune", "tasks", "load", "poison", "extract", "step")
GOOD = ("ok", "rounding", "not taken")


class Found(NamedTuple):
    """A step's result: "ok", "rounding" (not the same bits), "refused" or "not taken"; and more about it."""

    result: str
    why: str = ""


class Wrong(AssertionError):
    """A number or a promise that is wrong; the worst that there is."""


class Report:
    """Runs steps and keeps what they found in ``line``; the file ``path`` holds it after each of them."""

    def __init__(self, path: Path, **line: Any):
        self.path, self.line = path, {**line, "steps": {}, "why": {}, "seconds": {}}
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.line), encoding="utf-8")
        os.replace(beside, self.path)

    def step(self, name: str, run: Callable[[], Found | None], needs: str | None = None) -> bool:
        """Run a step, unless the step that it ``needs`` did not go well. Returns whether it went well."""
        if needs is not None and self.line["steps"].get(needs) not in GOOD:
            self.line["steps"][name] = "skipped"
            self.write()
            return False
        self.line["now"] = name
        self.write()
        start = time.perf_counter()
        found = outcome_of(run)
        self.line["steps"][name] = found.result
        if found.why:
            self.line["why"][name] = found.why
        self.line["seconds"][name] = round(time.perf_counter() - start, 2)
        self.line.pop("now")
        self.write()
        return found.result in GOOD


def outcome_of(run: Callable[[], Found | None]) -> Found:
    """What a step found, its errors included: a refusal teaches, anything else is a failure."""
    try:
        return run() or Found("ok")
    except Wrong as error:
        return Found("WRONG", first_line(error))
    except ek.EideticError as error:
        return Found("refused", first_line(error))
    except MemoryError as error:
        return Found("memory", first_line(error))
    except Exception as error:  # reported; the sweep continues
        return Found("fails", f"{type(error).__name__}: {first_line(error)}{place(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without folders of this machine and addresses in memory."""
    line = next((each for each in str(error).splitlines() if each.strip()), type(error).__name__)
    line = re.sub(r" at 0x[0-9a-f]+", "", line)
    return re.sub(r'(File ")[^"]*?(site-packages/|bench/|tests/)', r"\1\2", line)[:400]


def place(error: BaseException) -> str:
    """Where in the package an error was raised, in brackets; nothing where it was elsewhere."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "eidetic_kernels" in file.parts:
            found = f" ({file.parent.name}/{file.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return found
