"""The lines of all models, what each comes to, and counts of them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]

STOPPED = ("timeout", "memory")


def recorded(path: Path) -> dict[tuple[str, str], Line]:
    """The lines so far by (family, model); of several lines for a model, the last one counts."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(line["family"], line["model"]): line for line in lines if "steps" in line}


def outcome(line: Line) -> str:
    """The worst that was found of a model: WRONG, fails, timeout, memory, refused, rounding or passes.

    "not built" is a model that its package does not make, and "refused" one that is not converted, or that a later step
    refuses. Another size that is refused counts for itself.
    """
    if "unbuilt" in line:
        return "not built"
    found = {result for step, result in line["steps"].items() if (step, result) != ("size", "refused")}
    for each in ("WRONG", "fails", *STOPPED, "refused"):
        if each in found:
            return each
    return "rounding" if "rounding" in found else "passes"


def converts(line: Line) -> bool:
    return line["steps"].get("convert") == "ok"


def summary(lines: Iterable[Line], total: int) -> str:
    """One line of counts for the models of a family."""
    lines = list(lines)
    bits = Counter(line["steps"].get("bits") for line in lines)
    found = Counter(map(outcome, lines))
    sizes = Counter(line["steps"].get("size") for line in lines)
    refused = Counter(step for line in lines for step, result in line["steps"].items() if result == "refused")
    places = f" ({', '.join(f'{count} {step}' for step, count in refused.items() if step != 'size')})"
    others = ", ".join(f"{found[each]} {each}" for each in ("fails", *STOPPED, "not built") if found[each])
    return (
        f"{len(lines)} of {total} taken: {sum(map(converts, lines))} convert, {bits['ok']} with the same bits, "
        f"{bits['rounding']} rounding only; {found['passes'] + found['rounding']} pass everything, "
        f"{found['refused']} refused{places if found['refused'] else ''}, {found['WRONG']} WRONG"
        + (f", {others}" if others else "")
        + f"; another size: "
        f"{sizes['ok'] + sizes['rounding']} the same, {sizes['refused']} refused, {sizes['not taken']} not taken"
    )


def troubles(lines: Iterable[Line]) -> dict[tuple[str, str, str], list[tuple[str, str]]]:
    """(step, result, kind) of whatever went not well, with (model, message) of each; the most frequent first."""
    found: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for line in lines:
        for step, result in {**({"build": "not built"} if "unbuilt" in line else {}), **line["steps"]}.items():
            if result in ("ok", "not taken", "skipped"):
                continue
            why = line.get("unbuilt", "") if step == "build" and "unbuilt" in line else line["why"].get(step, "")
            found.setdefault((step, result, kind_of(why)), []).append((line["model"], why))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def kind_of(why: str) -> str:
    """A message without what belongs to one model: names, places and numbers."""
    operation = re.match(r"node '[^']*' \[\w+ ([\w.]+)\]", why)
    kind = re.sub(r"^(node|module) '[^']*'( \[[^]]*\])?( of '[^']*')?( \(File .*\))?: ", "", why)
    kind = re.sub(r"^\w+(?=\.forward|'s forward)", "the module", kind)
    kind = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", kind)
    kind = re.sub(r"\d[\d.e+-]*", "N", kind)
    return (f"[{operation[1]}] " if operation else "") + kind[:160]
