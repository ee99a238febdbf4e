"""The page of results."""

from __future__ import annotations

from collections.abc import Sequence

from .results import Line, outcome, summary, troubles

ABOUT = """Each model has random weights and 10 classes, and inputs smaller than its own where it takes them. Steps:
**convert**; **bits**, the outputs in evaluation are the original's bit for bit in batches of 1, 2 and 5; **size**,
also for inputs of another size, where the original takes them; **prune**, trained by AdamW with decay, 30 % pruned and
finished; **tasks**, a second task learned likewise and a third begun, both recalled bit for bit and certified;
**load**, saved and loaded into another conversion of the module; **poison**, recalled alike with NaN in everything
live; **extract**, plain modules with the same logits; **step**, a training step in float64 without dropout is the
original's, to 1e-9.
`passes` went through all steps. `refused` is an error of the package that says why, `rounding` the same numbers but for
the last bits. Of another size a model passes where it is refused, since it is built for one."""


def page(families: Sequence[tuple[str, Sequence[Line], int]], command: str, machine: str) -> str:
    """The text of the page: (source, lines, how many models there are) for each family."""
    text = ["# Models that convert", "", ABOUT, "", f"`{command}`; {machine}", ""]
    text += [f"- **{source}**: {summary(lines, total)}." for source, lines, total in families] + [""]
    found = troubles([line for _, lines, _ in families for line in lines])
    text += ["## What went not well", ""] if found else []
    for (step, result, kind), models in found.items():
        text.append(
            f"- **{step}: {result}**, {len(models)}: {_escaped(kind)} ({', '.join(name for name, _ in models)})"
        )
    text += [""] if found else []
    for source, lines, _ in families:
        text += [
            f"## {source}",
            "",
            "| model | input | parameters | groups | outcome | s | why |",
            "|---|---|--:|--:|---|--:|---|",
        ]
        text += [_row(line) for line in lines] + [""]
    return "\n".join(text).rstrip() + "\n"


def _row(line: Line) -> str:
    why = line.get("unbuilt") or "; ".join(f"{step}: {text}" for step, text in line["why"].items())
    cells = [
        line["model"],
        " x ".join(map(str, line.get("input", []))),
        f"{line['parameters'] / 1e6:.2f} M" if "parameters" in line else "",
        line.get("groups", ""),
        outcome(line),
        line.get("total_seconds", ""),
        _escaped(why),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
