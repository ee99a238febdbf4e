"""Two processes in one folder, and processes that are told to stop: SIGTERM ends as Ctrl-C does, workers included."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import left_behind, make_config, write_data

from eidetic_training.cli import main
from eidetic_training.experiments import config as configuration
from eidetic_training.runs import callbacks

SOAK = bool(os.environ.get("EIDETIC_SOAK"))
ROOT = Path(__file__).parents[2]
CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The path of a configuration of two tasks, and of one whose tasks never end."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("settings")
    write_data(folder / "images")
    task = {"max_epochs": 2, "max_recovery_epochs": 1, "polish_epochs": 0, "step": 0.4}
    short = make_config(folder / "images", data={"tasks": 2}, model={"width": 24}, task=task, router={"max_epochs": 1})
    endless = {
        **short,
        "task": {**short["task"], "max_epochs": 10**9, "patience": 10**9, "tolerance": 0.0},
        "compare": {**short["compare"], "epochs": 10**9},
        "sweep": {"trials": 4, "space": {"optimizer": {"lr": [1e-9, 2e-9, 3e-9]}}},
    }
    for name, config in (("short", short), ("endless", endless)):
        (folder / f"{name}.toml").write_text(configuration.to_toml(config))
    return folder


def at_first_event(monkeypatch, call):
    """Let ``call`` be made once, in the middle of a run."""
    real, calls = callbacks.Recorder.__call__, []

    def called(self, event):
        if not calls:
            calls.append(event)
            call()
        real(self, event)

    monkeypatch.setattr(callbacks.Recorder, "__call__", called)


def test_a_second_train_on_a_folder_is_told_who_is_there(settings, tmp_path, monkeypatch, capsys):
    command = ["train", str(settings / "short.toml"), "--run", str(tmp_path / "run")]
    second = []
    at_first_event(monkeypatch, lambda: second.append((main(command), capsys.readouterr().err)))
    assert main(command) == 0
    ((status, said),) = second
    assert status == 2 and len(said.splitlines()) == 1
    assert f"eidetic train: {tmp_path / 'run'} is in use by process {os.getpid()} on " in said
    assert main(["train", str(settings / "short.toml"), "--run", str(tmp_path / "alone")]) == 0
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "alone")


def test_sigterm_ends_a_run_as_ctrl_c_does_and_it_goes_on(settings, tmp_path, monkeypatch, capsys):
    command = ["train", str(settings / "short.toml"), "--run", str(tmp_path / "run")]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            at_first_event(patch, lambda number=number: os.kill(os.getpid(), number))
            assert main(command) == status
        assert capsys.readouterr().err.endswith("\nstopped; the same command continues after the last whole epoch.\n")
    signal.signal(signal.SIGINT, handler)
    assert main(command) == 0


STOPS = [
    ("sweep", signal.SIGTERM, 143),
    ("compare", signal.SIGTERM, 143),
    ("sweep", signal.SIGINT, 130),
    ("compare", signal.SIGINT, 130),
    ("sweep", signal.SIGKILL, -9),
    ("compare", signal.SIGKILL, -9),
]


@pytest.mark.slow
@pytest.mark.skipif(not CHILDREN.exists(), reason="the system does not list a process's children")
@pytest.mark.parametrize("command, number, status", STOPS if SOAK else STOPS[1:2])
def test_workers_end_with_the_process_that_started_them(settings, tmp_path, command, number, status):
    """However it ends, also where it alone is told to."""
    if command == "sweep":
        pytest.importorskip("optuna", reason="the extra 'sweep' is not installed")

    # A shell's background jobs begin with Ctrl-C ignored.
    script = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += "from eidetic_training.cli import main; sys.exit(main())"
    arguments = [command, str(settings / "endless.toml"), "--run", str(tmp_path / "run"), "--workers", "2"]
    if command == "compare":
        arguments += ["--method", "single", "sequential"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}

    started = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        workers = wait_for(lambda: busy_children(started.pid, 1 if command == "sweep" else 2))
        if command == "sweep":  # both processes are inside a trial
            wait_for(lambda: len(list((tmp_path / "run" / "trials").glob("*/metrics.csv"))) == 2)
        os.kill(started.pid, number)
        _, said = started.communicate()
    finally:
        started.kill()
        started.wait()

    assert started.returncode == status, said
    assert "Traceback" not in said
    if number != signal.SIGKILL:
        assert said.count("stopped; the same command continues ") == 1
    wait_for(lambda: not any(map(alive, workers)))


def busy_children(pid, count):
    """The processes that ``pid`` started and that computed for a second, if there are so many."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        ticks = os.sysconf("SC_CLK_TCK")
        busy = [child for child in children if int(Path(f"/proc/{child}/stat").read_text().split()[13]) > ticks]
    except (OSError, IndexError):
        return None
    return busy if len(busy) == count else None


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait_for(found):
    """What ``found()`` gives once it is something; an error after ten minutes."""
    for _ in range(6000):
        if value := found():
            return value
        time.sleep(0.1)
    raise TimeoutError
