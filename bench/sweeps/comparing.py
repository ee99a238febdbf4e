"""Compares outputs: the same bits, the same but for rounding, or wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from .report import Found, Wrong


def difference(given: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected. 0 for equal bits alone."""
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise Wrong(f"{list(given.shape)} {given.dtype}, expected {list(expected.shape)} {expected.dtype}")
    if not expected.isfinite().all():
        raise RuntimeError("the original's outputs are not finite")
    if torch.equal(given, expected):
        return 0.0
    error = (given.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-30)
    return max(error.item(), 1e-30) if given.isfinite().all() else float("inf")


def judged(what: str, error: float, tolerance: float) -> Found:
    """Equal bits are ok, differences up to ``tolerance`` are rounding. Raises Wrong for others."""
    if error > tolerance:
        raise Wrong(f"{what} differs by {error:.1e} of the largest number")
    return Found("rounding", f"{what}: {error:.1e}") if error else Found("ok")


def worst(found: list[Found]) -> Found:
    """The first that is only rounding, or ok."""
    return next((each for each in found if each.result != "ok"), Found("ok"))
