"""How a command ends: its exit status, and one line about what went wrong."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from eidetic_kernels.errors import EideticError, ForgettingError

OK, FORGOTTEN, ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# How torch says that memory ran out, where it raises a plain RuntimeError.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "can't allocate memory", "Cannot allocate memory")


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would raise KeyboardInterrupt."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`, unless it is ignored.

    Signals are the main thread's: in another thread nothing changes.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def status_of(command: Callable[[], None], name: str, stopped: str | None) -> int:
    """Run ``command`` and return its exit status; what went wrong is said on standard error.

    0: it did what was asked. 1: something was forgotten, and nothing else. 130: Ctrl-C. 143: SIGTERM. 2: any other
    error. What is not expected to happen, a bug, prints its traceback.

    Args:
        name: how messages call the command.
        stopped: what is said after Ctrl-C and SIGTERM; None says nothing.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream in streams:  # a terminal that lacks a character is no reason to stop
        stream.reconfigure(errors="backslashreplace")

    try:
        with terminable():
            command()
            print(end="", flush=True)  # an error of writing is raised here, and not when Python ends
        return OK
    except KeyboardInterrupt as error:
        if stopped is not None:
            _say(f"\n{stopped}")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except ForgettingError as error:
        _say(f"{name}: {error}")
        return FORGOTTEN
    except BrokenPipeError:  # the reader closed the pipe, as ``head`` does
        return ERROR
    except Exception as error:
        line = _one_line(error)
        if line is None:
            traceback.print_exc()
            line = f"this is a bug ({type(error).__name__}); please report it with the lines above."
        _say(f"{name}: {line}")
        return ERROR
    finally:
        for stream in streams:
            _settle(stream)


def _one_line(error: Exception) -> str | None:
    """What is said of an error that is to be expected of a machine, a file or an argument; None of a bug."""
    if isinstance(error, EideticError):
        return str(error)
    if isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename is not None else ""
        return f"{named}{error.strerror or str(error) or type(error).__name__}."
    said = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in said for t in _OUT_OF_MEMORY)):
        first = f" ({said.splitlines()[0]})" if said else ""
        return f"there is not enough memory{first}. Give a smaller batch_size, model or data set."
    return None


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # without a standard error, the status has to do
        print(text, file=sys.stderr, flush=True)


def _settle(stream: io.TextIOWrapper) -> None:
    """Write out what is buffered or, if that fails, let it go nowhere: Python would end with a status of its own."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
