"""Those who listen to training: the recorder's clock, the bar with and without a terminal, TensorBoard."""

import builtins
import io
import sys
import types

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training import Event
from eidetic_training.runs.callbacks import Progress, Recorder, TensorBoard
from eidetic_training.runs.folder import RunFolder

EVENT = Event(1.5, 2, "train", 4, 1, 0.25, 0.875, live_units=1000, frozen_units=234, width=4000)


def event(seconds, task=0, phase="train", **changes):
    return Event(**{**vars(EVENT), "seconds": seconds, "task": task, "phase": phase, **changes})


class Terminal(io.StringIO):
    def isatty(self):
        return True


# ---- the recorder


def test_an_event_becomes_a_row(new_run):
    Recorder(new_run)(EVENT)
    for phase in ("features", "graphs"):  # neither an epoch nor a change of units
        Recorder(new_run)(event(1.0, phase=phase, note="why not"))
    (row,) = new_run.metrics
    assert {**row._asdict(), "note": None} == {**vars(EVENT), "seconds": row.seconds}


def test_an_event_without_loss_becomes_a_row_too(new_run):
    Recorder(new_run)(event(1.0, phase="prune", loss=None, train_accuracy=None))
    assert new_run.metrics[0].loss != new_run.metrics[0].loss


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("eidetic_training.runs.callbacks.time.perf_counter", lambda: now[0])
    return now


def test_the_clock_is_the_run_s_and_counts_what_lies_between_tasks(new_run, clock):
    recorder = Recorder(new_run)
    for now, task in ((101.0, 0), (102.5, 0), (110.0, 1)):
        clock[0] = now
        recorder(event(0.5, task))
    assert [row.seconds for row in new_run.metrics] == [1.0, 2.5, 10.0]


def test_a_continued_run_s_clock_goes_on_from_the_last_row(new_run, clock):
    first = Recorder(new_run, started=98.0)
    clock[0] = 102.0
    first(event(4.0))
    clock[0] = 500.0
    again = Recorder(RunFolder(new_run.path))
    clock[0] = 501.0
    again(event(1.0, 1))
    assert [row.seconds for row in new_run.metrics] == [4.0, 5.0]


def test_seconds_are_written_to_the_millisecond(new_run, clock):
    recorder = Recorder(new_run)
    clock[0] = 101.23456789
    recorder(event(1.0))
    assert new_run.metrics[0].seconds == 1.235


# ---- the bar


def test_without_a_terminal_there_is_a_line_a_task_and_nothing_else():
    file = io.StringIO()
    bar = Progress(2, file=file)
    bar(EVENT)
    bar.task_done("task 0: done")
    bar(event(1.0, phase="router"))
    bar.say("continuing")
    bar.close()
    assert file.getvalue() == "task 0: done\ncontinuing\n"


def test_a_note_is_said_once():
    file = io.StringIO()
    bar = Progress(2, file=file)
    for note in ("one", "one", "two", "one"):
        bar(event(1.0, phase="features", note=note))
    bar.close()
    assert file.getvalue() == "one\ntwo\n"


def test_on_a_terminal_the_bar_shows_task_phase_epoch_accuracy_and_units():
    file = Terminal()
    bar = Progress(10, done=2, file=file)
    bar(EVENT)
    bar.bar.refresh()
    shown = file.getvalue().split("\r")[-1]
    for part in ("task 2 train", "2/10 tasks", "epoch 4", "train 87.50%", "1,234/4,000 units", "left"):
        assert part in shown
    bar.close()


def test_on_a_terminal_a_pruning_event_shows_no_accuracy_and_the_router_no_task():
    file = Terminal()
    bar = Progress(10, file=file)
    bar(event(1.0, phase="prune", loss=None, train_accuracy=None))
    bar.bar.refresh()
    shown = file.getvalue().split("\r")[-1]
    assert "task 2 prune" not in shown and "task 0 prune" in shown
    assert "None" not in shown and "%" not in shown
    bar(event(1.0, phase="router"))
    bar.bar.refresh()
    assert file.getvalue().split("\r")[-1].startswith("router |")
    bar.close()


def test_on_a_terminal_a_finished_task_leaves_its_line_and_moves_the_bar():
    file = Terminal()
    bar = Progress(3, file=file)
    bar.task_done("task 0: done")
    assert "task 0: done\n" in file.getvalue()
    bar.bar.refresh()
    assert "1/3 tasks" in file.getvalue().split("\r")[-1]
    bar.close()


def test_the_bar_goes_to_standard_error(capsys):
    bar = Progress(1)
    bar.task_done("a line")
    bar.close()
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a line\n")


# ---- TensorBoard


class Writer:
    """Stands for torch's SummaryWriter, which needs a package that tests do without."""

    def __init__(self, folder):
        self.folder, self.scalars, self.flushed = folder, [], 0
        Writer.last = self

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def flush(self):
        self.flushed += 1


def test_tensorboard_gets_scalars_on_one_axis(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    board = TensorBoard(tmp_path)
    board(EVENT)
    board(event(2.0, phase="prune", loss=None, train_accuracy=None))
    assert Writer.last.folder == str(tmp_path)
    assert Writer.last.scalars == [
        ("train/loss", 0.25, 1),
        ("train/accuracy", 0.875, 1),
        ("units/live", 1000, 1),
        ("units/frozen", 234, 1),
        ("units/live", 1000, 2),
        ("units/frozen", 234, 2),
    ]
    assert Writer.last.flushed == 2


def test_without_tensorboard_the_error_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith(("torch.utils.tensorboard", "tensorboard")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r'TensorBoard is not installed: pip install "eidetic-kernels\[tensorboard\]"'):
        TensorBoard(tmp_path)
