"""The one tolerance table, and comparisons that say where and by how much two tensors differ."""

from __future__ import annotations

import torch

# Relative to the largest expected value. Everything else is compared bit by bit. Half precision is that of the
# inputs and outputs: sums are float32.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def assert_close(
    name: str, given: torch.Tensor, expected: torch.Tensor, condition: float = 1.0, least: float = 1e-30
) -> None:
    """``given`` equals ``expected`` up to its dtype's tolerance; NaN must stand where NaN is expected.

    ``condition`` widens it for ill-conditioned inputs: the factor by which they magnify a rounding error. ``least`` is
    the smallest scale: a sum may cancel to less than its terms, whose size its error has.
    """
    assert given is not None, f"{name} is missing"
    assert given.shape == expected.shape, f"{name} has shape {list(given.shape)}, expected {list(expected.shape)}"
    if not given.numel():
        return
    wide = given.detach().to("cpu", torch.float64), expected.detach().to("cpu", torch.float64)
    scale = wide[1].nan_to_num(0, 0, 0).abs().max().clamp_min(least)
    error = (wide[0] - wide[1]).abs() / scale
    error[wide[0].isnan() & wide[1].isnan()] = 0
    error[wide[0] == wide[1]] = 0  # infinities
    tolerance = TOLERANCE[given.dtype] * condition
    _report(name, wide, ~(error <= tolerance), f"beyond {tolerance:g} of {scale:g}")


def assert_same_bits(name: str, given: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal as bit patterns, so that NaN equals NaN and 0 differs from -0."""
    assert given.shape == expected.shape, f"{name} has shape {list(given.shape)}, expected {list(expected.shape)}"
    assert given.dtype == expected.dtype, f"{name} is {given.dtype}, expected {expected.dtype}"
    pattern = {8: torch.int64, 4: torch.int32, 2: torch.int16}[given.element_size()]
    bits = given.detach().contiguous().view(pattern), expected.detach().contiguous().view(pattern)
    _report(name, (given.detach(), expected.detach()), bits[0] != bits[1], "not the same bits")


def _report(name, tensors, wrong, reason):
    if not wrong.any():
        return
    where = wrong.nonzero()[:5].tolist()
    lines = [f"  {at}: {tensors[0][tuple(at)]:.17g}, expected {tensors[1][tuple(at)]:.17g}" for at in where]
    raise AssertionError(f"{name}: {int(wrong.sum())} of {wrong.numel()} are {reason}\n" + "\n".join(lines))
