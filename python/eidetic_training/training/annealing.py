"""Cosine annealing of the learning rate at the end of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch


def annealed(optimizer: torch.optim.Optimizer, epochs: int) -> Iterator[int]:
    """Count ``epochs`` from 0 while the learning rates fall to zero along half a cosine (Loshchilov and Hutter, 2017).

    They start from what they are, change once an epoch, and stay at the last value.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for done in range(epochs):
        factor = (1 + math.cos(math.pi * (done + 0.5) / epochs)) / 2
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor
        yield done
