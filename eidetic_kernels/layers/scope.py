"""Which part of the network a forward pass runs. One object, shared by all layers of a network."""

from __future__ import annotations

from contextlib import contextmanager


class Scope:
    """``task`` None: everything present (training); k: the prefix of finished task k (recall); LIVE: live units alone.

    ``full_input_grad``: the network's input asks for a gradient, so backward owes all of it, frozen paths included.
    ``live_only``: passes of the task in training run LIVE, since somebody knows what they read of frozen units.
    """

    def __init__(self):
        self.task: int | None = None
        self.full_input_grad = False
        self.live_only = False

    @contextmanager
    def running(self, task: int | None, full_input_grad: bool):
        before = self.task, self.full_input_grad
        self.task, self.full_input_grad = task, full_input_grad
        try:
            yield
        finally:
            self.task, self.full_input_grad = before

    @contextmanager
    def running_live(self):
        self.live_only = True
        try:
            yield
        finally:
            self.live_only = False
