"""Independent random streams from a seed, an epoch and a purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device``. Its stream depends on all ``parts``, by their ``repr``, and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)
