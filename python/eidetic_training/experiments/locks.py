"""A lock between processes that none can leave behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path


class Lock:
    """A file that one process at a time holds; the system lets go of it when its process ends, however it ends.

    The lock is SQLite's on an empty database: it works between processes on every system Python runs on.
    """

    def __init__(self, path: Path):
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def acquire(self, wait: float = 3600.0) -> bool:
        """Take the lock, waiting at most so many seconds for it; whether it is taken."""
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
        """Let go of it; nothing happens when it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Lock:
        if not self.acquire():
            raise TimeoutError(f"{self.path} has been held for an hour by another process.")
        return self

    def __exit__(self, *error) -> None:
        self.release()
