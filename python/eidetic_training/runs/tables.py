"""Small files that survive a killed process: typed CSV tables that grow, and JSON files that are replaced whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_type_hints

from eidetic_kernels.errors import InputError
from eidetic_kernels.files import naming, replacing

Row = TypeVar("Row", bound=tuple[Any, ...])  # a NamedTuple


class Table(Generic[Row]):
    """A CSV file whose columns are the fields of a NamedTuple of int, float and str.

    Floats read back as the same bits. A float that is None is written empty and reads back as NaN. Every append
    reaches the operating system before it returns. A killed process may leave a last line without its end: reading
    ignores it, and the next append removes it.

    Args:
        problem: says what is wrong with a row that was read, of a table of so many rows; None where nothing is.
        named_by: that many columns, the first ones, tell rows apart: no two rows have the same there. 0: rows may be
            alike.
    """

    def __init__(
        self,
        path: Path,
        row_type: type[Row],
        problem: Callable[[Row, int], str | None] = lambda row, rows: None,
        named_by: int = 0,
    ):
        self.path = path
        self.row_type, self.problem, self.named_by = row_type, problem, named_by
        self._columns: list[str] = list(cast(Any, row_type)._fields)  # which every NamedTuple has
        self._types = get_type_hints(row_type)

    def append(self, row: Row) -> None:
        """Add one row, and the header before the first."""
        keep = _complete_bytes(self.path)
        with naming(self.path), open(self.path, "r+b" if keep else "wb") as file:
            file.truncate(keep)
            file.seek(keep)
            file.write(self._lines([row], header=keep == 0))

    def read(self) -> list[Row]:
        """All complete rows; none if the file does not exist yet. Raises InputError, which names a damaged line."""
        return [row for row, _ in self._read()]

    def replace(self, rows: Iterable[Row]) -> None:
        """Write ``rows`` in place of all others; the file is the old one or the new one, never a part of either."""
        write_bytes(self.path, self._lines(rows, header=True))

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Drop every row that is not ``wanted``; the others stay as they are written.

        The file is the old one or the new one, never a part of either.
        """
        found = self._read()
        kept = [line for row, line in found if wanted(row)]
        if len(kept) < len(found):
            write_bytes(self.path, self._lines([], header=True) + b"".join(kept))

    def _read(self) -> list[tuple[Row, bytes]]:
        """All complete rows, each with its line in the file."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[: _complete_bytes(self.path)].splitlines(keepends=True)
        if not lines:
            return []
        header = self._cells(lines[0], 1)
        if header != self._columns:
            given, expected = ",".join(header), ",".join(self._columns)
            raise InputError(f"{self.path} has the columns {given[:200]}; expected {expected}. Restore it from a copy.")

        rows: list[tuple[Row, bytes]] = []
        numbers: dict[tuple[Any, ...], int] = {}
        for number, line in enumerate(lines[1:], start=2):
            row = self._parse(line, number)
            problem = self.problem(row, len(lines) - 1)
            if self.named_by and (first := numbers.setdefault(row[: self.named_by], number)) != number:
                problem = f"line {first} has the same {' and '.join(self._columns[: self.named_by])}"
            if problem is not None:
                raise self._damaged(line, number, problem)
            rows.append((row, line))
        return rows

    def _cells(self, line: bytes, number: int) -> list[str]:
        try:
            (cells,) = csv.reader([line.decode()], strict=True)
        except (ValueError, csv.Error) as error:
            raise self._damaged(line, number, error) from error
        return cells

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            values = {
                name: float(cell or "nan") if kind is float else kind(cell)
                for (name, kind), cell in zip(self._types.items(), self._cells(line, number), strict=True)
            }
        except ValueError as error:
            raise self._damaged(line, number, error) from error
        return self.row_type(**values)

    def _damaged(self, line: bytes, number: int, problem: object) -> InputError:
        shown = line.decode(errors="backslashreplace").strip()[:200]
        return InputError(
            f"{self.path}, line {number} is damaged ({shown}): {problem}. Restore it from a copy, or delete that line."
        )

    def _lines(self, rows: Iterable[Row], header: bool) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if header:
            writer.writerow(self._columns)
        for row in rows:
            writer.writerow("" if value is None else kind(value) for kind, value in zip(self._types.values(), row))
        return text.getvalue().encode()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}. Restore it from a copy.") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; the file is the old one or the new one, never a part of either."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file; it is the old one or the new one, never a part of either."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _complete_bytes(path: Path) -> int:
    """How many bytes of the file are complete lines."""
    if not path.exists():
        return 0
    return path.read_bytes().rfind(b"\n") + 1
