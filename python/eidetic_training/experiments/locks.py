"""A lock between processes that a killed process releases."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class Lock:
    """A file that one process at a time holds. The operating system releases it when the process ends, however it ends.

    It is SQLite's lock on an empty database, which works between processes on every system that Python runs on.
    """

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def acquire(self, wait: float = 3600.0) -> bool:
        """Take the lock, waiting at most ``wait`` seconds for it. Returns whether it was taken.

        Raises sqlite3.OperationalError if the file cannot be opened.
        """
        connection = sqlite3.connect(self.path, timeout=wait, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" in str(error):
                return False
            raise
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
