"""Locks between processes: one holder at a time, and none left behind by a process that was killed."""

import multiprocessing
import os
import signal

import pytest

from eidetic_kernels.errors import InputError
from eidetic_training.runs.locks import HOLDER, LOCK, Lock, only_writer


def hold(path, connection):
    lock = Lock(path)
    connection.send(lock.acquire(wait=0))
    connection.recv()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock, and its end of a pipe."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path / "lock", there))
    process.start()
    there.close()  # its own end stays open: if it dies, recv() raises
    assert here.recv() is True
    yield process
    process.kill()
    process.join()


def test_another_process_s_lock_is_free_once_that_is_killed(holder, tmp_path):
    lock = Lock(tmp_path / "lock")
    assert not lock.acquire(wait=0)
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert lock.acquire(wait=0)
    lock.release()


def test_one_holder_at_a_time_within_a_process_too(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    with first:
        assert not second.acquire(wait=0)
    assert second.acquire(wait=0)
    assert not first.acquire(wait=0.01)
    second.release()
    second.release()
    assert first.acquire(wait=0)
    first.release()


def test_a_lock_that_cannot_be_made_is_no_lock_that_is_held(tmp_path):
    with pytest.raises(InputError, match=r"cannot be locked \(unable to open"):
        Lock(tmp_path / "missing" / "lock").acquire(wait=0)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be locked"):
        Lock(tmp_path / "folder").acquire(wait=0)


# ---- folders


def write(folder, connection):
    with only_writer(folder):
        connection.send("inside")
        connection.recv()


@pytest.fixture
def writer(tmp_path):
    """A process that writes to a folder, and its end of a pipe."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=write, args=(tmp_path / "run", there))
    process.start()
    there.close()
    assert here.recv() == "inside"
    yield process
    process.kill()
    process.join()


def test_a_folder_has_one_writer_and_the_second_is_told_who_it_is(writer, tmp_path):
    with pytest.raises(InputError, match=rf"run is in use by process {writer.pid} on .* since .*\. Wait until"):
        with only_writer(tmp_path / "run"):
            pass
    (tmp_path / "run" / HOLDER).unlink()
    with pytest.raises(InputError, match="run is in use by another process. Wait until it has ended"):
        with only_writer(tmp_path / "run"):
            pass
    writer.kill()
    writer.join()
    with only_writer(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / HOLDER).read_text()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_folder_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), only_writer(tmp_path / "run"):
            raise KeyError
    with only_writer(tmp_path / "run"):
        pass
