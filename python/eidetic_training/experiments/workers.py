"""Worker processes: each has a part of torch's threads, and ends with the process that started it."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

import torch

from ..ending import TERMINATED


class Leash:
    """What workers are held by. They end at once when it is let go, or when the process that holds it ends."""

    def __init__(self, context: SpawnContext):
        self.workers_end, self._end = context.Pipe(duplex=False)

    def let_go(self) -> None:
        """End all workers."""
        self._end.close()
        self.workers_end.close()


def begin_worker(threads: int, leash: Connection) -> None:
    """What a worker's process does first: take its threads, and leave Ctrl-C to the process that started it."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def threads_each(workers: int) -> int:
    """How many of this process's threads each of so many processes gets."""
    return max(1, torch.get_num_threads() // workers)


def _end_with(leash: Connection) -> None:
    try:
        leash.poll(None)  # nothing is ever sent: it returns when the other end is closed
    finally:
        os._exit(TERMINATED)
