"""The machine and versions of a measurement, to be written beside its numbers."""

from __future__ import annotations

import platform

import torch

from eidetic_training.runs import environment


def described() -> str:
    """One line: processor, cores and threads, GPU, versions, commit."""
    facts = environment()
    parts = [
        _processor(),
        f"{facts['threads']} threads",
        *([facts["gpu"]] if facts["gpu"] else []),
        f"Python {facts['python']}",
        f"torch {facts['torch']}",
        f"commit {facts['commit'] or 'unknown'}",
    ]
    return ", ".join(parts)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return f"{len(names)} x {names[0]} ({torch.backends.cpu.get_cpu_capability()})"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
