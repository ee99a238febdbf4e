"""Devices by name, for configurations."""

from __future__ import annotations

import torch

from eidetic_kernels.errors import InputError


def find_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the GPU where there is one. Raises InputError when it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'device {name!r} is unknown or cannot be used here ({error}): give "auto" or "cpu".'
        ) from error
    return device
