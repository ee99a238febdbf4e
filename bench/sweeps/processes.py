"""Runs models in processes of their own, within limits of time and memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

WORKER = Path(__file__).with_name("worker.py")
ENDING = threading.Event()  # the sweep is interrupted: no process may outlive it


class Limits(NamedTuple):
    """What a model may take: seconds, and bytes of memory (watched where there is /proc)."""

    seconds: float
    memory: float


def examined(family: str, name: str, limits: Limits) -> dict[str, Any]:
    """The line of one model. Where its process was stopped, the step that it was in says why."""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "line.json", Path(folder) / "log.txt"
        start = time.perf_counter()
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), family, name, str(file)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stopped = watched(process, limits)
        line = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"family": family, "model": name}
        line.setdefault("steps", {})
        line.setdefault("why", {})
        step = line.pop("now", None if "unbuilt" in line or process.returncode == 0 else "build")
        if step is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            line["steps"][step] = stopped or "fails"
            line["why"][step] = (
                f"stopped: {stopped}" if stopped else f"exit {process.returncode}: {''.join(last)}"[:300]
            )
    line["total_seconds"] = round(time.perf_counter() - start, 1)
    return line


def watched(process: subprocess.Popen, limits: Limits) -> str | None:
    """Wait for a process; kill it, with its children, where it takes more than it may. What it took, if so."""
    start, stopped = time.perf_counter(), None
    try:
        while process.poll() is None:
            if time.perf_counter() - start > limits.seconds:
                stopped = "timeout"
            elif memory_of(process.pid) > limits.memory:
                stopped = "memory"
            elif ENDING.is_set():
                stopped = "interrupted"
            if stopped:
                break
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return stopped


def memory_of(pid: int) -> int:
    """Bytes that a process holds; 0 where that cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
