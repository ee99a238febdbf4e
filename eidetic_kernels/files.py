"""Whole files or none: what is written replaces what was there at once, and survives a crash."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving, it takes the place of ``path``. On an error, ``path`` stays as it was.

    Readers see the old file or the new one, never a part of either, and after a crash of the machine too: the file and
    its folder are flushed to disk. A link is followed, so that it still points where it did; the mode of an existing
    file is kept. Folders on the way are created.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        # Some writers make files that only their owner may read: the mode is that of the old file, or of any new one.
        like = target if target.exists() else temporary
        mode = stat.S_IMODE(like.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
