"""What killed processes leave: temporary files go, the first traces of a run are no stranger's, everything else is."""

import os
import signal

import pytest

from eidetic_kernels.errors import InputError
from eidetic_kernels.files import replacing
from eidetic_training.runs.folder import RunFolder
from eidetic_training.runs.leftovers import check_unused, remove_temporaries
from eidetic_training.runs.locks import HOLDER, LOCK
from eidetic_training.runs.tables import write_json


def killed_writing(path):
    """Leave what a process leaves that is killed as it writes ``path``."""
    child = os.fork()
    if not child:
        with replacing(path) as temporary:
            temporary.write_text("half of it")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def test_what_was_being_written_is_removed_and_nothing_else(tmp_path):
    for name in ("config.json", "network.safetensors"):
        killed_writing(tmp_path / name)
    kept = [tmp_path / name for name in (".lock", ".hidden.txt", "config.json", ".vimrc.12.swp", "a.12.0123abcd")]
    for path in kept:
        path.write_text("mine")
    (tmp_path / ".folder.12.0123abcd").mkdir()
    assert len(list(tmp_path.iterdir())) == len(kept) + 3
    remove_temporaries([tmp_path, tmp_path / "missing"])
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / ".folder.12.0123abcd"])


@pytest.mark.parametrize("traces", [(), (LOCK,), (LOCK, HOLDER, f"{LOCK}-journal", ".config.json.12.0123abcd")])
def test_the_first_traces_of_a_run_that_was_killed_are_in_nobody_s_way(tmp_path, traces):
    for name in traces:
        (tmp_path / name).write_text("")
    check_unused(tmp_path, "a run folder")
    with RunFolder.writing(tmp_path, {"seed": 0}) as run:
        assert run.config == {"seed": 0}
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, "config.json"}


def test_version_0_1_0_left_an_empty_folder_of_checkpoints(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert RunFolder.create(tmp_path / "run", {"seed": 0}).config == {"seed": 0}


@pytest.mark.parametrize("name", ["thesis.txt", "checkpoints/thesis.safetensors", ".git/config", "lock"])
def test_anything_else_is_left_alone(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("all of it")
    for begin in (lambda: RunFolder.create(tmp_path / "run", {}), lambda: enter(tmp_path / "run")):
        with pytest.raises(InputError, match="exists and is not a run folder. Choose a folder that is new or empty"):
            begin()
    assert [each for each in (tmp_path / "run").rglob("*") if each.is_file()] == [path]


def enter(path):
    with RunFolder.writing(path, {}):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="exists and is not a run folder"):
        enter(tmp_path / "run")


def test_a_killed_start_is_continued(tmp_path):
    """Wherever it is cut off between making the folder and config.json."""
    (tmp_path / "run").mkdir()
    killed_writing(tmp_path / "run" / "config.json")
    enter(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK, "config.json"}
    write_json(tmp_path / "run" / "config.json", {"config": {"seed": 1}, "environment": {}})
    with pytest.raises(InputError, match="another configuration"):
        enter(tmp_path / "run")
