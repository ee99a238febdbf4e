"""The state of the global random generators, torch's, Python's and NumPy's: read, and put back."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy
import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators on the CPU and on ``device``, of Python's and of NumPy's, as plain values."""
    name, keys, *rest = cast("tuple[Any, ...]", numpy.random.get_state(legacy=True))
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype("int64")), *rest),
    }


def put_random_state_back(state: dict[str, Any], device: torch.device) -> None:
    """Let the generators go on from ``state``."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
