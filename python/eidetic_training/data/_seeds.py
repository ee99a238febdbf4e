"""One way to turn (seed, epoch, purpose) into an independent random stream."""

from __future__ import annotations

import hashlib

import torch


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device` whose stream depends on every one of `parts` and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)
