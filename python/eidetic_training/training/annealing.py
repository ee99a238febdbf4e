"""The learning rate at the end of a task: half a cosine down to zero."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch


def annealed(optimizer: torch.optim.Optimizer, epochs: int) -> Iterator[int]:
    """Counts ``epochs`` from 0, in which the learning rates fall from what they are to zero along half a cosine, a
    value an epoch (Loshchilov and Hutter, 2017). They are left there."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for done in range(epochs):
        share = (1 + math.cos(math.pi * (done + 0.5) / epochs)) / 2
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * share
        yield done
