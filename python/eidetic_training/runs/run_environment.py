"""The environment of a run, for its record: versions, threads, GPU and commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch

import eidetic_kernels
from eidetic_kernels.version import __version__


def environment() -> dict[str, Any]:
    """What results depend on apart from the configuration: versions, threads, GPU, and the commit if it is known."""
    return {
        "eidetic_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None if it is installed, or without git."""
    root = Path(eidetic_kernels.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
