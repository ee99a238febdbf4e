"""Run folders with a damaged file: every command ends with a status that means what it says, without a traceback."""

import contextlib
import copy
import io
import json
import shutil

import pytest
import torch
from fuzzing import damaged, run_cases
from tiny_runs import make_config, run, write_data

from eidetic_training.cli import main
from eidetic_training.experiments import config as configuration
from eidetic_training.runs import RunFolder

COMMANDS = (
    ("report",),
    ("report", "--classes"),
    ("certify",),
    ("certify", "--no-data"),
    ("predict",),
    ("routing",),
    ("train",),  # which draws the figures, too
)
VALUES = ("null", "[]", "{}", "3", '"x"', '{"0": "aa"}', "[[1]]", "-1", "1e400", "true")
# What stands in for a value of a JSON file, and for a cell of a table: the file's syntax stays.
JSON_VALUES = (None, True, -1, 0, 1, 3, 2**70, 1e308, float("nan"), -0.5, "", "x", "\ud800", "a" * 10_000)
JSON_VALUES += ([], {}, [[]], [1, 2, 3], {"a": 1})
CELLS = ("", "nan", "inf", "-1", "0", "0.5", "1", "2", "7", "1e400", "99999", "9" * 20, "x", '"a,b"', " 1", "\u0663")


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


def edited(name, content, rng):
    """What somebody leaves who edits a JSON file or a table and keeps its syntax."""
    if name.endswith(".json"):
        return _edited_json(json.loads(content), rng)
    return _edited_table(content.decode().splitlines(), rng)


def _edited_json(value, rng):
    places = [*_places(value)]
    for _ in range(rng.choice((1, 1, 2))):
        inside, key = rng.choice(places)
        if isinstance(inside, list) and key >= len(inside) or isinstance(inside, dict) and key not in inside:
            continue  # the edit before this one removed it
        how = rng.randrange(4)
        if how == 0:
            del inside[key]
        elif how == 1 and isinstance(inside, list):
            inside.insert(key, inside[key])
        elif how == 2:
            there, name = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):  # the edit before this one removed it
                inside[key] = copy.deepcopy(there[name])  # a piece of the same file
        else:
            inside[key] = rng.choice(JSON_VALUES)
    return json.dumps(value).encode()


def _places(value):
    """Where a JSON value holds other values: (the list or table, the index or key)."""
    for key, held in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(held, (dict, list)):
            yield from _places(held)


def _edited_table(lines, rng):
    rows = [line.split(",") for line in lines]
    for _ in range(rng.choice((1, 1, 2))):
        at, other, how = rng.randrange(1, len(rows)), rng.randrange(1, len(rows)), rng.randrange(6)
        if how <= 2:
            rows[at][rng.randrange(len(rows[at]))] = rng.choice(CELLS)
        elif how == 3:
            rows.insert(other, [*rows[at]])
        elif how == 4 and len(rows) > 2:
            del rows[at]
        else:
            rows[at], rows[other] = rows[other], rows[at]
    return "".join(",".join(row) + "\n" for row in rows).encode()


def test_every_command_on_a_damaged_run_folder_says_what_is_wrong(whole, tmp_path):
    folder, files = whole

    def case(rng):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(folder / "run", tmp_path / "run")
        by_hand, command = rng.random() < 0.6, rng.choice(COMMANDS)
        name = rng.choice([name for name in sorted(files) if not by_hand or name.endswith((".json", ".csv"))])
        content = edited(name, files[name], rng) if by_hand else changed(files[name], list(files.values()), rng)
        (tmp_path / "run" / name).unlink()
        if content is not None:
            (tmp_path / "run" / name).write_bytes(content)

        arguments = [command[0], str(tmp_path / "run"), *command[1:]]
        if command[0] == "train":
            arguments = ["train", str(folder / "tiny.toml"), "--run", str(tmp_path / "run")]
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main(arguments)

        assert "Traceback" not in said.getvalue(), f"{command}, {name}: {said.getvalue()[-300:]}"
        assert status in (0, 2) or (status == 1 and name == "digests.json"), f"{command}, {name}: status {status}"
        if (command, status) == (("certify",), 0):
            assert set(RunFolder(tmp_path / "run").digests) == {0, 1}, f"{name}: a task is missing, and nobody says so"
        return f"status {status}"

    ends = run_cases("run folders", 15, case, weight=50)
    assert ends["status 0"] and ends["status 2"] or sum(ends.values()) < 100
