"""Writing whole files: what is no file is left alone, and a disk that is full is one error that names the file."""

import os
import resource
import stat

import pytest
import torch
from small_networks import MLP

from eidetic_kernels.errors import CheckpointError, InputError
from eidetic_kernels.files import naming, replacing, write_tensors


def pipe(path):
    os.mkfifo(path)
    return path


def link_to_pipe(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")
    return path


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(("make", "what"), [(pipe, "a pipe"), (link_to_pipe, "a pipe"), (folder, "a folder")])
def test_what_is_no_file_is_never_replaced(tmp_path, make, what):
    path = make(tmp_path / "target")
    before = {each.name: each.lstat().st_mode for each in tmp_path.iterdir()}
    with pytest.raises(InputError, match=f"target is {what}, .*Name a file"), replacing(path):
        pytest.fail("there is nothing to be written")
    with pytest.raises(InputError, match=f"target is {what}"):
        write_tensors(path, {"x": torch.zeros(3)})
    assert {each.name: each.lstat().st_mode for each in tmp_path.iterdir()} == before


def test_a_network_is_not_saved_in_place_of_a_pipe(tmp_path):
    path = pipe(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a pipe"):
        MLP().save(path)
    assert stat.S_ISFIFO(path.lstat().st_mode) and list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_file_still_points_there_and_what_it_points_to_keeps_its_mode(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.fixture
def full_disk():
    """No file can grow past 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_said_of_the_file_that_was_to_be_written(tmp_path, full_disk):
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="too large") as caught, replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(bytes(1000))
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(OSError, match="too large") as caught, naming(tmp_path / "table"):
        with open(tmp_path / "table", "wb") as file:
            file.write(bytes(1000))
    assert caught.value.filename == str(tmp_path / "table")
    with pytest.raises(CheckpointError, match="/file cannot be written .*too large"):
        write_tensors(tmp_path / "file", {"x": torch.zeros(100)})
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "table"]
