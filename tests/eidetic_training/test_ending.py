"""How a command ends: the exit status means what it says, and what went wrong is one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eidetic_kernels.errors import CheckpointError, ForgettingError, InputError
from eidetic_training.ending import Terminated, status_of, terminable

PATHS = os.pathsep.join(str(Path(__file__).parents[2] / part) for part in (".", "python"))


def ending(error, capsys):
    """(status, standard error) of a command that raises ``error``."""

    def command():
        raise error

    return status_of(command, "eidetic try", "stopped."), capsys.readouterr().err


def test_a_command_that_does_what_was_asked_ends_with_0(capsys):
    assert status_of(lambda: print("done"), "eidetic try", "stopped.") == 0
    assert capsys.readouterr() == ("done\n", "")


def test_1_is_forgetting_and_nothing_else(capsys):
    assert ending(ForgettingError("task 0 is not what it was"), capsys) == (
        1,
        "eidetic try: task 0 is not what it was\n",
    )


@pytest.mark.parametrize(
    "error, line",
    [
        (InputError("that is no name."), "that is no name."),
        (CheckpointError("it is damaged."), "it is damaged."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device."),
        (PermissionError(errno.EACCES, "Permission denied", "/somewhere/x"), "/somewhere/x: Permission denied."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory."),
        (TimeoutError("held for an hour"), "held for an hour."),
        (OSError(), "OSError."),
        (MemoryError(), "there is not enough memory. Give a smaller batch_size, model or data set."),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...\nmore"),
            "there is not enough memory (DefaultCPUAllocator: can't allocate memory: you tried ...). Give",
        ),
    ],
)
def test_what_is_to_be_expected_is_one_line_and_2(error, line, capsys):
    status, said = ending(error, capsys)
    assert status == 2 and said.startswith(f"eidetic try: {line}") and len(said.splitlines()) == 1


@pytest.mark.parametrize("error", [KeyError("config"), RuntimeError("shapes"), AssertionError(), RecursionError()])
def test_a_bug_has_its_traceback_and_ends_with_2_too(error, capsys):
    status, said = ending(error, capsys)
    assert status == 2 and "Traceback" in said
    assert said.splitlines()[-1].startswith(f"eidetic try: this is a bug ({type(error).__name__}); please report")


def test_ctrl_c_and_sigterm_end_alike_with_their_own_statuses(capsys):
    assert ending(KeyboardInterrupt(), capsys) == (130, "\nstopped.\n")
    assert ending(Terminated(), capsys) == (143, "\nstopped.\n")
    assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM), "eidetic try", "stopped.") == 143
    assert status_of(lambda: os.kill(os.getpid(), signal.SIGTERM), "eidetic try", None) == 143
    assert capsys.readouterr().err == "\nstopped.\n"


def test_signals_are_handled_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminable():  # whoever started this process wants it so
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- what is printed, in a process of its own


def process(script, *, stdout=subprocess.PIPE, **environment):
    command = (
        "import sys\nfrom eidetic_training.ending import status_of\n"
        f"def command():\n    {script}\nsys.exit(status_of(command, 'eidetic try', 'stopped.'))"
    )
    return subprocess.run(
        [sys.executable, "-c", command],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS, "PYTHONUNBUFFERED": "", **environment},
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_does_not_change_the_status():
    with open("/dev/full", "w") as full:
        done = process("print('x'); raise KeyboardInterrupt", stdout=full)
        assert (done.returncode, done.stderr) == (130, "\nstopped.\n")


def test_a_reader_that_has_enough_is_no_error_to_speak_of():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = process("print('x' * 100_000)", stdout=closed)
    assert (done.returncode, done.stderr) == (2, "")


def test_a_terminal_without_a_character_gets_another():
    done = process("print('98.31 \\u00b1 0.09')", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "98.31 \\xb1 0.09\n")
