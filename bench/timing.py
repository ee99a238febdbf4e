"""Times that can be compared: the alternatives take turns in one process, and each one's median counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from networks import SMOKE

SIDE, NUMBERS = (64, 2**10) if SMOKE else (2048, 64 * 2**20)


def alternate(runs: Mapping[str, Callable[[], object]], rounds: int = 15, warmup: int = 2) -> dict[str, float]:
    """Median seconds of every run. The runs take turns, so that a slow spell of the machine meets them all.

    The clock is read once all CUDA work is done.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if turn >= warmup:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def product_rate(rounds: int = 10) -> float:
    """Multiply-adds a second of a large float32 product (2048 cubed): the machine's arithmetic limit, measured."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return SIDE**3 / alternate({"product": lambda: a @ b}, rounds)["product"]


def copy_rate(rounds: int = 10) -> float:
    """Bytes a second of copying 256 MiB, read and written bytes both counted: the machine's memory limit, measured."""
    a = torch.randn(NUMBERS)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / alternate({"copy": lambda: b.copy_(a)}, rounds)["copy"]
