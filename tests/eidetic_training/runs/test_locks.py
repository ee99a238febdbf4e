"""Locks between processes: one holder at a time, and none left behind by a process that was killed."""

import multiprocessing
import os
import signal

import pytest

from eidetic_training.runs.locks import Lock


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
    with pytest.raises(Exception, match="unable to open"):
        Lock(tmp_path / "missing" / "lock").acquire(wait=0)
