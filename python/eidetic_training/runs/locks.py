"""A lock between processes that a killed process releases, and folders that one process at a time writes to."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eidetic_kernels.errors import InputError

LOCK, HOLDER = ".lock", ".holder"


class Lock:
    """A file that one process at a time holds. The operating system releases it when the process ends, however it ends.

    It is SQLite's lock on an empty database, which works between processes on every system that Python runs on.
    """

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def acquire(self, wait: float = 3600.0) -> bool:
        """Take the lock, waiting at most ``wait`` seconds for it. Returns whether it was taken.

        Raises InputError if the file cannot be opened or locked.
        """
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=wait, isolation_level=None)
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            if "locked" in str(error):
                return False
            raise InputError(
                f"{self.path} cannot be locked ({error}). Choose a folder that can be written, on a file system with "
                "locks."
            ) from error
        self._connection = connection
        return True

    def release(self) -> None:
        """Release the lock; nothing happens if it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Lock:
        """Take the lock. Raises TimeoutError if another process holds it for an hour."""
        if not self.acquire():
            raise TimeoutError(f"{self.path} has been held for an hour by another process.")
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Inside, no other process is in here for the same folder, which is made if need be.

    The lock is the file ``.lock`` in the folder, which stays there. While it is held, ``.holder`` says by whom.

    Raises InputError, which says who that is, if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = Lock(folder / LOCK), folder / HOLDER
    if not lock.acquire(wait=0):
        who = "another process"
        with suppress(OSError, ValueError):
            who = holder.read_text(encoding="utf-8").strip() or who
        raise InputError(f"{folder} is in use by {who}. Wait until it has ended, or choose another folder (--run).")

    try:
        with suppress(OSError):  # it only makes a message better
            holder.write_text(f"{_this_process()}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _this_process() -> str:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()} ({command[:200]}), since {since}"
