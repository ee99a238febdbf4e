"""Which part of the network a forward pass runs. One object, shared by all layers of a network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Scope(threading.local):
    """What the pass in the calling thread runs; passes in other threads have their own.

    ``task`` None: everything present (training); k: the prefix of finished task k (recall); LIVE: live units alone.
    ``full_input_grad``: the network's input asks for a gradient, so backward owes all of it, frozen paths included.
    ``live_only``: passes of the task in training run LIVE, since what they read of frozen units is cached.
    """

    def __init__(self) -> None:  # once in every thread
        self.task: int | None = None
        self.full_input_grad = False
        self.live_only = False

    def __deepcopy__(self, memo: dict[int, object]) -> Scope:
        return Scope()

    def __reduce__(self) -> tuple[type[Scope], tuple[()]]:
        return Scope, ()

    @contextmanager
    def running(self, task: int | None, full_input_grad: bool) -> Iterator[None]:
        """Passes inside run ``task``."""
        before = self.task, self.full_input_grad
        self.task, self.full_input_grad = task, full_input_grad
        try:
            yield
        finally:
            self.task, self.full_input_grad = before

    @contextmanager
    def running_live(self) -> Iterator[None]:
        """Passes of the task in training run live units alone."""
        self.live_only = True
        try:
            yield
        finally:
            self.live_only = False
