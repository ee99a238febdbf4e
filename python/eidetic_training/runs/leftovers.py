"""What processes that were killed leave in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from eidetic_kernels.errors import InputError

from .locks import HOLDER, LOCK

# The names that ``eidetic_kernels.files.replacing`` gives to files that are being written: .NAME.PROCESS.RANDOM. SQLite
# keeps a journal beside a database.
_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}(-journal)?")


def remove_temporaries(folders: Iterable[Path]) -> None:
    """Remove what was being written when its process was killed. Nobody else may be writing there now."""
    for folder in folders:
        if folder.is_dir():
            for path in folder.iterdir():
                if _TEMPORARY.fullmatch(path.name) and path.is_file():
                    path.unlink(missing_ok=True)


def check_unused(folder: Path, what: str) -> None:
    """Raise InputError if ``folder`` is a file, or holds anything but the first traces of what was killed as it began.

    ``what`` is to be written there: "a run folder".
    """
    if not folder.exists():
        return
    if folder.is_dir() and all(map(_is_trace, folder.iterdir())):
        return
    raise InputError(f"{folder} exists and is not {what}. Choose a folder that is new or empty.")


def _is_trace(path: Path) -> bool:
    if path.is_dir():  # version 0.1.0 made the folder of checkpoints first
        return path.name == "checkpoints" and not any(path.iterdir())
    return path.name in (LOCK, f"{LOCK}-journal", HOLDER) or _TEMPORARY.fullmatch(path.name) is not None
