"""Kills at any file operation: a process that is killed at its n-th one, and the same work again in another process.

What is done in a folder is counted: opening for writing, each half of every write, renaming, removing, making folders,
changing modes, flushing to disk, and every SQL statement. A process that imported everything once forks for each kill,
so that a kill costs little more than the work itself. It must not have trained anything: torch's autograd does not
survive a fork.

    python tests/support/kills.py FOLDER [--seed N] WORK:EVERY:CHAINS:FULL ...

kills a WORK (train, sweep, compare) at every EVERY-th operation, then CHAINS times at several in a row, and lets the
disk be full at every FULL-th operation (0: never). It prints in JSON, by work, how many operations there are, how many
kills and full disks were recovered from, and what went wrong.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sqlite3.dbapi2
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests" / "support")]

import torch  # noqa: E402

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")


class Operations:
    """Counts the file operations of this process below ``folder``, and kills it at the one numbered ``at``, from 1.

    ``full``: the disk is full at that operation, and the process lives on.
    """

    def __init__(self, folder: Path, at: int | None, full: bool = False):
        self.folder, self.at, self.full, self.count = str(folder), at, full, 0

    def watch(self) -> None:
        """From here on, to the end of the process: audit hooks cannot be removed."""
        sys.addaudithook(self._audit)
        self._patch_open()
        self._patch_fsync()
        self._patch_sqlite()
        self._patch_safetensors()

    def tick(self) -> None:
        """An operation is about to be done."""
        self.count += 1
        if self.count == self.at and self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def inside(self, path) -> bool:
        return isinstance(path, (str, os.PathLike)) and str(os.path.abspath(path)).startswith(self.folder)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING and self.inside(arguments[0]):
            self.tick()
        elif event in AUDITED and self.inside(arguments[0]):
            self.tick()

    def _patch_open(self) -> None:
        real = io.open

        def opened(file, mode="r", *arguments, **options):
            handle = real(file, mode, *arguments, **options)
            return _Halving(handle, self.tick) if set(mode) & set("wax+") and self.inside(file) else handle

        builtins.open = io.open = opened

    def _patch_fsync(self) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self.tick()
            real(descriptor)

        os.fsync = fsync

    def _patch_sqlite(self) -> None:
        real = sqlite3.connect

        def connect(*arguments, **options):
            self.tick()
            connection = real(*arguments, **options)
            connection.set_trace_callback(lambda statement: self.tick())
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = connect

    def _patch_safetensors(self) -> None:
        """Written by another language: half a file, then all of it."""
        from eidetic_kernels import files

        def save_file(tensors, path, metadata=None):
            real(tensors, path, metadata=metadata)
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            self.tick()
            Path(path).write_bytes(content)

        real, files.save_file = files.save_file, save_file


class _Halving:
    """A file that is written half by half."""

    def __init__(self, file, tick: Callable[[], None]):
        self._file, self._tick = file, tick

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)

    def write(self, content):
        half = len(content) // 2
        self._tick()
        self._file.write(content[:half])
        self._file.flush()
        self._tick()
        return half + self._file.write(content[half:])

    def truncate(self, *size):
        self._tick()
        return self._file.truncate(*size)


# ---- what is killed


class Work:
    """Something that is done in a folder, and what must be left behind there."""

    def __init__(self, data: Path):
        self.data = data

    def do(self, folder: Path) -> None:
        raise NotImplementedError

    def left(self, folder: Path) -> object:
        raise NotImplementedError


class Train(Work):
    """A run of two tasks and a router."""

    def config(self):
        from tiny_runs import make_config

        task = {"max_epochs": 1, "max_recovery_epochs": 1, "polish_epochs": 1, "step": 0.5, "keep_at_least": 2}
        return make_config(
            self.data, data={"tasks": 2}, model={"width": 8, "dropout": 0.1}, task=task, router={"max_epochs": 2}
        )

    def do(self, folder: Path) -> None:
        from tiny_runs import run

        run(self.config(), folder)

    def left(self, folder: Path) -> object:
        from tiny_runs import left_behind

        texts = {
            name: (folder / name).read_text()
            for name in ("tests.csv", "classes.csv", "capacity.csv", "digests.json", "router.json", "inputs.json")
        }
        lines = (folder / "metrics.csv").read_text().splitlines()
        metrics = [line.partition(",")[2] for line in lines]  # but for the seconds
        return [left_behind(folder), texts, metrics, names_in(folder)]


class Sweep(Work):
    """Two trials of one task each."""

    def config(self):
        from small_sweeps import config_of

        return {**config_of(self.data, trials=2, tasks=1, prune=True), "seed": 3}

    def do(self, folder: Path) -> None:
        from small_sweeps import quietly

        quietly(self.config(), folder)

    def left(self, folder: Path) -> object:
        from small_sweeps import found

        names = {name for name in names_in(folder) if not name.startswith("trials")}
        kept = {Path(name).suffix for name in names_in(folder) if name.startswith("trials")}
        # A trial that is killed before its values are chosen leaves its number unused.
        best = re.sub(r"Trial \d+", "Trial", (folder / "best.toml").read_text())
        return [found(self.config(), folder), best, names, kept]


class Compare(Work):
    """Two methods."""

    def do(self, folder: Path) -> None:
        from functools import partial

        from tiny_runs import make_config

        from eidetic_training.experiments.comparison import compare
        from eidetic_training.experiments.tasks import make_tasks

        config = make_config(self.data, data={"tasks": 2}, model={"width": 8}, compare={"epochs": 1})
        tasks_of = partial(make_tasks, config["data"])
        compare(config, tasks_of, ["single", "sequential"], folder, say=lambda line: None)

    def left(self, folder: Path) -> object:
        kept = json.loads((folder / "comparison.json").read_text())
        results = [{name: value for name, value in r.items() if name != "seconds"} for r in kept["results"]]
        tables = [path.read_text() for path in sorted(folder.glob("*.csv"))]
        return [kept["conditions"], results, tables, names_in(folder)]


WORKS = {"train": Train, "sweep": Sweep, "compare": Compare}


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- killing


def apart(call: Callable[[], int | None], errors: Path) -> int:
    """Run ``call`` in a fork of this process. Returns its status, or the negative number of what killed it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            with open(errors, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            torch.set_num_threads(1)
            status = call() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Killer:
    """Does a work undisturbed, then again with kills, and compares what is left behind."""

    def __init__(self, work: Work, folder: Path):
        self.work, self.folder, self.errors = work, folder, folder / "errors.txt"
        self.kills, self.full, self.wrong = 0, 0, list[str]()
        folder.mkdir(parents=True, exist_ok=True)
        self.points = self._count()

    def _count(self) -> int:
        number = self.folder / "count"

        def counted() -> None:
            operations = Operations(self.folder / "whole", at=None)
            operations.watch()
            self.work.do(self.folder / "whole")
            number.write_text(str(operations.count))

        if apart(counted, self.errors):
            raise RuntimeError(f"the undisturbed work failed: {self.errors.read_text()}")
        self.whole = self.work.left(self.folder / "whole")
        return int(number.read_text())

    def kill(self, *points: int) -> None:
        """Kill at ``points``, one process after the other; then let one come to its end."""
        folder = self.folder / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        for at in points:

            def killed(at: int = at) -> None:
                operations = Operations(folder, at)
                operations.watch()
                self.work.do(folder)

            status = apart(killed, self.errors)
            if status == -signal.SIGKILL:
                self.kills += 1
            elif status:
                self.wrong.append(f"{points}: at {at}, {self.errors.read_text()[-600:]}")
                return
        self.recover(folder, str(points))

    def fill(self, at: int) -> None:
        """Let the disk be full at ``at``, which must end in one line and status 2, or not matter; then recover."""
        from eidetic_training.ending import status_of

        folder = self.folder / "full"
        shutil.rmtree(folder, ignore_errors=True)

        def filled() -> int:
            Operations(folder, at, full=True).watch()
            return status_of(lambda: self.work.do(folder), "eidetic", stopped=None)

        status, said = apart(filled, self.errors), self.errors.read_text()
        self.full += 1
        if status not in (0, 2) or "Traceback" in said or "this is a bug" in said:
            self.wrong.append(f"full at {at}: status {status}, {said[-600:]}")
        self.recover(folder, f"full at {at}")

    def recover(self, folder: Path, what: str) -> None:
        """Do the work to its end, and compare."""
        if apart(lambda: self.work.do(folder), self.errors):
            self.wrong.append(f"{what}: {self.errors.read_text()[-600:]}")
        elif self.work.left(folder) != self.whole:
            self.wrong.append(f"{what}: something else is left behind")


def warm_up() -> None:
    """Import and build once what each process would anew."""
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401
    from PIL import PngImagePlugin  # noqa: F401

    from eidetic_training import models
    from eidetic_training.experiments import comparison, sweep  # noqa: F401

    _ = models.build("mlp", (1, 6, 6), width=4).wiring
    with suppress(ImportError):  # the extra "sweep"
        import optuna  # noqa: F401


def tried(work: str, every: int, chains: int, full: int, folder: Path, random_: random.Random) -> dict[str, Any]:
    """What came of a work's kills and full disks."""
    from tiny_runs import write_data

    killer = Killer(WORKS[work](write_data(folder / "images", 24, 12)), folder)
    for at in range(1 + random_.randrange(every), killer.points + 1, every):
        killer.kill(at)
    for _ in range(chains):
        killer.kill(*(random_.randint(1, killer.points) for _ in range(random_.randint(2, 6))))
    if full:
        for at in range(1 + random_.randrange(full), killer.points + 1, full):
            killer.fill(at)
    return {name: getattr(killer, name) for name in ("points", "kills", "full", "wrong")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("works", nargs="+", metavar="WORK:EVERY:CHAINS:FULL")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    warm_up()
    found = {}
    for each in arguments.works:
        work, *numbers = each.split(":")
        random_ = random.Random(arguments.seed)
        found[work] = tried(work, *map(int, numbers), folder=arguments.folder / work, random_=random_)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
