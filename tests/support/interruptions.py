"""An exception at any line: every line of the package that a call runs is a place where the call may be cut off."""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch

import eidetic_kernels
import eidetic_training

PACKAGE = str(Path(eidetic_kernels.__file__).parent)
TRAINING = str(Path(eidetic_training.__file__).parent)


class Interruption(BaseException):
    """Raised where Ctrl-C, a lack of memory or a bug would be; no handler of the package expects it by name."""


class Lines:
    """Counts the lines of the package that run inside, and raises :class:`Interruption` at the one numbered ``at``."""

    def __init__(self, at=None, folder=PACKAGE):
        self.at, self.folder, self.count, self.place = at, folder, 0, None
        self.places = []

    def _trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(self.folder):
            return None
        return self._line

    def _line(self, frame, event, arg):
        if event == "line":
            self.places.append(f"{frame.f_code.co_filename.removeprefix(self.folder + '/')}:{frame.f_lineno}")
            if self.count == self.at:
                self.place = self.places[-1]
                self.count += 1
                sys.settrace(None)
                raise Interruption(self.place)
            self.count += 1
        return self._line

    @contextmanager
    def watching(self):
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield self
        finally:
            sys.settrace(before)


def points_of(call, folder=PACKAGE):
    """Where ``call()`` is worth cutting off: the first time and the last time that it runs each line, as numbers."""
    with Lines(folder=folder).watching() as lines:
        call()
    first = {place: number for number, place in reversed(list(enumerate(lines.places)))}
    last = {place: number for number, place in enumerate(lines.places)}
    return sorted({*first.values(), *last.values()})


def interrupted_at(call, at, folder=PACKAGE):
    """Run ``call()`` and cut it off at line ``at``; the place, or None where the call ended before.

    Cut off where ``with torch.no_grad()`` ends, gradients would stay off in this thread, as they do with torch's own
    code; they are put back.
    """
    lines, gradients = Lines(at, folder), torch.is_grad_enabled()
    try:
        with lines.watching():
            call()
    except Interruption:
        return lines.place
    finally:
        torch.set_grad_enabled(gradients)
    return lines.place and f"{lines.place} (swallowed)"
