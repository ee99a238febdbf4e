"""Run folders with a damaged file: every command ends with a status that means what it says, without a traceback."""

import contextlib
import io
import shutil

import pytest
import torch
from fuzzing import damaged, run_cases
from tiny_runs import make_config, run, write_data

from eidetic_training.cli import main
from eidetic_training.experiments import config as configuration
from eidetic_training.runs import RunFolder

COMMANDS = ("report", "certify", "predict", "routing", "train")
VALUES = ("null", "[]", "{}", "3", '"x"', '{"0": "aa"}', "[[1]]", "-1", "1e400", "true")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a complete run and its configuration, and the contents of the run's files."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    task = {"max_epochs": 1, "max_recovery_epochs": 1, "polish_epochs": 1, "step": 0.5, "keep_at_least": 2}
    tables = {"data": {"tasks": 2}, "model": {"width": 12}, "router": {"max_epochs": 1}, "capacity": {"share": "even"}}
    config = make_config(write_data(folder / "images", 24, 12), task=task, **tables)
    (folder / "tiny.toml").write_text(configuration.to_toml(config))
    path = run(config, folder / "run").path
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return folder, {name: content for name, content in files.items() if content}


def changed(content, others, rng):
    """What stands in a file's place; None removes it."""
    how = rng.randrange(8)
    if how == 0:
        return None
    if how == 1:
        return bytes(len(content))
    if how == 2:
        return rng.choice(VALUES).encode()
    if how == 3:  # a number of a text, or more of them
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = rng.choice((b"", b"99999999999", b"-1,-1,-1", b'"', b"nan", lines[at] + b"9", lines[at] * 2))
        return b"\n".join(lines)
    return damaged(content, others, rng)


def test_every_command_on_a_damaged_run_folder_says_what_is_wrong(whole, tmp_path):
    folder, files = whole

    def case(rng):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(folder / "run", tmp_path / "run")
        name, command = rng.choice(sorted(files)), rng.choice(COMMANDS)
        content = changed(files[name], list(files.values()), rng)
        (tmp_path / "run" / name).unlink()
        if content is not None:
            (tmp_path / "run" / name).write_bytes(content)

        arguments = [command, str(tmp_path / "run")]
        if command == "train":
            arguments = ["train", str(folder / "tiny.toml"), "--run", str(tmp_path / "run")]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main(arguments)

        assert "Traceback" not in said.getvalue(), f"{command}, {name}: {said.getvalue()[-300:]}"
        assert status in (0, 2) or (status == 1 and name == "digests.json"), f"{command}, {name}: status {status}"
        if (command, status) == ("certify", 0):
            assert set(RunFolder(tmp_path / "run").digests) == {0, 1}, f"{name}: a task is missing, and nobody says so"
        return f"status {status}"

    ends = run_cases("run folders", 15, case, weight=50)
    assert ends["status 0"] and ends["status 2"] or sum(ends.values()) < 100
