"""Checks that the figures on our pages are those that were measured: README.md, docs/*.md and bench/results/*.md.

    python bench/check_claims.py

A figure is a decimal number or a percentage. A comment behind it, which readers do not see, says where it comes from:

    **98.30 %** with 50 %<!--table3.md: backoff, seed 0 > mean of ten tasks + units-->, 98.31 %<!--paper: table3-->

Such a marker speaks for every figure since the marker before it, or since the paragraph, list item or table row began,
and for an integer right before it. It names a file of bench/results (or another one, by its path in the repository) and
the way to the numbers there: a heading, a cell of a row or words of a line, then columns (`a + b`), with ` > ` between
them; the keys of a .json file likewise. `@column` stands for the title of the figure's own column. `paper: NAME` leads
to the paper's own numbers, in eidetic_training's REPRODUCTIONS. A figure has to be one of the numbers found, rounded to
the digits that the page prints.

`<!--setting-->` marks a number that no run measured. Where figures are claimed (CLAIMS), each needs a marker.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results"
PAGES = ("README.md", "docs/*.md", f"{RESULTS}/*.md")

# The sections in which each figure needs a marker: titles of level 2, "" for what stands before them, "*" for all.
CLAIMS = {"README.md": ("", "Results"), "docs/benchmarks.md": ("*",), "docs/index.md": ("*",)}

NUMBER = re.compile(r"(?<![\w.])(?<!\w-)(?P<number>-?\d+(?:,\d{3})*(?P<decimals>\.\d+)?)(?!\w|\.\d)(?P<percent>\s?%)?")
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
MARKER = re.compile(r"(?P<file>paper|[\w./-]+\.(?:md|json)): (?P<path>.+)|setting")
NO_TEXT = re.compile(r"^```.*?^```|`[^`\n]+`|(?<=\])\([^()\s]*\)|https?://\S+", re.MULTILINE | re.DOTALL)  # code, URLs
BLOCK = re.compile(
    r"^(?=[ \t]*(?:\n|\||[-*] |\d+\. |#))", re.MULTILINE
)  # where a paragraph, item, row or heading begins
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
RULE = re.compile(r"\|[\s:|-]+\|")  # the line between a table's titles and its rows


class ClaimError(Exception):
    """A marker that leads nowhere."""


@dataclass(frozen=True)
class Figure:
    """A number as a page prints it, and where: its line, and in a table the title of its column."""

    text: str
    value: float
    decimals: int
    percent: bool
    line: int
    column: str

    def agrees_with(self, number: float) -> bool:
        """Whether ``number`` rounds to this figure; halves may go either way."""
        return abs(number - self.value) <= 0.5 * 10**-self.decimals + 1e-9


class Marked(NamedTuple):
    """The figures that one marker speaks for. ``marker`` is what the comment says, None where there is none."""

    figures: list[Figure]
    marker: str | None
    line: int
    section: str


@dataclass(frozen=True)
class Line:
    """A line of a results file: the headings above it, and in a table its cells and their titles."""

    text: str
    headings: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the figures of all pages, a line for each; empty if nothing is."""
    found = []
    for page in (page for pattern in PAGES for page in sorted(root.glob(pattern))):
        name = page.relative_to(root).as_posix()
        text = page.read_text(encoding="utf-8")
        found += [f"{name}:{line}: {what}" for line, what in _of_page(text, CLAIMS.get(name, ()), root)]
    return found


def _of_page(text: str, claimed: Sequence[str], root: Path) -> Iterator[tuple[int, str]]:
    """Problems of one page, by line. ``claimed``: the sections in which every figure needs a marker."""
    for section in claimed:
        if section not in ("", "*") and f"\n## {section}\n" not in text:
            yield 1, f'there is no section "{section}", where figures are claimed'
    for match in re.finditer(r"^[ \t]*<!--", text, re.MULTILINE):
        yield _line(text, match.start()), "a comment begins the line: Markdown takes it for a block of its own"

    for figures, marker, line, section in marked(text):
        if marker is None:
            if "*" in claimed or section in claimed:
                yield from ((each.line, f"{each.text} has no marker: <!--FILE: ROW > COLUMN-->") for each in figures)
        elif not (match := MARKER.fullmatch(marker)):
            yield line, f"<!--{marker}--> is no marker: <!--FILE: ROW > COLUMN--> or <!--setting-->"
        elif not figures:
            yield line, f"<!--{marker}--> stands behind no figure"
        elif match["file"]:
            yield from _differences(figures, match["file"], match["path"], root)


def _differences(figures: list[Figure], file: str, path: str, root: Path) -> Iterator[tuple[int, str]]:
    """The figures that are not among the numbers that ``file`` has at ``path``."""
    for figure in figures:
        way = path.replace("@column", figure.column)
        try:
            numbers = numbers_at(file, way.split(" > "), root, percent=figure.percent)
        except ClaimError as error:
            yield figure.line, f"{figure.text}: {error}"
            continue

        if not any(figure.agrees_with(number) for number in numbers):
            nearest = sorted(numbers, key=lambda number: abs(number - figure.value))[:8]
            has = ", ".join(f"{number:.10g}" for number in nearest)
            yield figure.line, f"{figure.text} is not in {file}: {way} (there: {has})"


# ---- the pages


def marked(text: str) -> Iterator[Marked]:
    """All figures of a page, by the marker that speaks for them."""
    rows = _rows(COMMENT.sub(_blank, text))
    text = NO_TEXT.sub(_blank, text)
    plain = COMMENT.sub(_blank, text)
    stops = [(match.start(), None) for match in BLOCK.finditer(plain)] + [(len(plain), None)]
    stops += [(match.start(), match) for match in COMMENT.finditer(text)]
    begin = 0

    for end, comment in sorted(stops, key=lambda stop: stop[0]):
        figures = list(_figures(plain, begin, end, rows, marked=comment is not None))
        if comment:
            yield Marked(figures, comment[1].strip(), _line(plain, end), _section(plain, end))
        elif figures:
            yield Marked(figures, None, _line(plain, begin), _section(plain, begin))
        begin = comment.end() if comment else end


def _figures(text: str, begin: int, end: int, rows: Mapping[int, Line], marked: bool) -> Iterator[Figure]:
    """The decimal numbers and percentages from ``begin`` to ``end``; ``marked``: an integer at the end, too."""
    for match in NUMBER.finditer(text, begin, end):
        at_the_end = marked and not text[match.end() : end].strip(" *_)]~")
        if match["decimals"] or match["percent"] or at_the_end:
            line = _line(text, match.start())
            column = text.count("|", text.rfind("\n", 0, match.start()) + 1, match.start()) - 1
            titles = rows[line].titles if line in rows else ()
            yield Figure(
                text=match[0],
                value=_value(match),
                decimals=len(match["decimals"] or ".") - 1,
                percent=bool(match["percent"]),
                line=line,
                column=dict(enumerate(titles)).get(column, ""),
            )


def _blank(match: re.Match[str]) -> str:
    """As many characters that are no text, in as many lines."""
    return re.sub(r"[^\n]", "~", match[0])


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _section(text: str, place: int) -> str:
    titles = [title for level, title in HEADING.findall(text, 0, place) if level == "##"]
    return titles[-1] if titles else ""


def _value(match: re.Match[str]) -> float:
    return float(match["number"].replace(",", ""))


# ---- what their figures are compared with


def numbers_at(file: str, path: Sequence[str], root: Path, percent: bool = False) -> list[float]:
    """All numbers that a file of results has at the end of ``path``. ``percent``: of .json files, times 100, too.

    Raises ClaimError if there is no such file, or the path leads nowhere.
    """
    if file == "paper":
        return _numbers(_entry(printed_by_the_paper(), path))

    source = root / (file if "/" in file else f"{RESULTS}/{file}")
    if not source.is_file():
        raise ClaimError(f"there is no file {source.relative_to(root)}")
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".json":
        numbers = _numbers(_entry(json.loads(text), path))
        return [*numbers, *(100 * number for number in numbers if percent)]

    numbers = [number for line in _narrowed(_lines(text), path, file) for number in _numbers(line.text)]
    if not numbers:
        raise ClaimError(f"{file} has no number at {' > '.join(path)}")
    return numbers


def printed_by_the_paper() -> Mapping[str, Mapping[str, str]]:
    """The paper's own numbers: what each reproduction is compared with, by its name and what they measure."""
    from eidetic_training.experiments.reproductions import REPRODUCTIONS  # imports torch

    return {name: reproduction.paper for name, reproduction in REPRODUCTIONS.items()}


def _entry(tree: Any, path: Sequence[str]) -> Any:
    for part in path:
        try:
            tree = tree[int(part)] if isinstance(tree, list) else tree[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ClaimError(f"there is no entry {part!r} of {' > '.join(path)}") from None
    return tree


def _numbers(tree: Any) -> list[float]:
    """The numbers in a text, or in all texts and numbers of a tree."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for each in tree for number in _numbers(each)]
    return [float(tree)] if isinstance(tree, float) else [_value(match) for match in NUMBER.finditer(str(tree))]


def _narrowed(lines: list[Line], path: Sequence[str], file: str) -> list[Line]:
    """The lines that ``path`` leads to, of which columns leave nothing but their cells."""
    for part in path:
        columns = set(part.split(" + "))
        if found := [line for line in lines if part in line.headings or part in line.cells]:
            lines = found
        elif found := [line for line in lines if columns <= set(line.titles)]:
            lines = [replace(line, text=_cells_of(line, columns)) for line in found]
        elif found := [line for line in lines if part in line.text]:
            lines = found
        else:
            raise ClaimError(f"{file} has no heading, row, line or column {part!r} there")
    return lines


def _cells_of(line: Line, columns: set[str]) -> str:
    return " ; ".join(cell for title, cell in zip(line.titles, line.cells) if title in columns)


def _lines(text: str) -> list[Line]:
    """The lines of a Markdown file, but for headings and the titles of tables."""
    text = COMMENT.sub(_blank, text)
    rows, lines = _rows(text), []
    headings: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if heading := HEADING.fullmatch(line):
            level = len(heading[1])
            headings = {above: title for above, title in headings.items() if above < level} | {level: heading[2]}
        elif number in rows or not line.startswith("|"):
            lines.append(replace(rows.get(number, Line(line)), headings=tuple(headings.values())))
    return lines


def _rows(text: str) -> dict[int, Line]:
    """The rows of all tables of a Markdown file, by the number of their line."""
    rows: dict[int, Line] = {}
    titles: tuple[str, ...] = ()
    before = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("|"):
            titles = ()
        elif RULE.fullmatch(line):
            titles = _cells(before)
        elif titles:
            rows[number] = Line(line, cells=_cells(line), titles=titles)
        before = line
    return rows


def _cells(row: str) -> tuple[str, ...]:
    return tuple(cell.strip(" *`~") for cell in row.strip().removeprefix("|").removesuffix("|").split("|"))


def main() -> None:
    found = problems()
    print("\n".join(found) or "Every figure is what its marker says.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
