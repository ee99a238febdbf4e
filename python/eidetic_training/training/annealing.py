"""Cosine annealing of the learning rate at the end of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def annealed(optimizer: torch.optim.Optimizer, epochs: int) -> Iterator[int]:
    """Count ``epochs`` from 0 while the learning rates fall to zero along half a cosine (Loshchilov and Hutter, 2017).

    They start from what they are, change once an epoch, and stay at the last value.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for done in range(epochs):
        anneal(optimizer, rates, done, epochs)
        yield done


def anneal(optimizer: torch.optim.Optimizer, rates: Sequence[float | Tensor], done: int, epochs: int) -> None:
    """Set the learning rates for the epoch after ``done`` of ``epochs``; they fall from ``rates``, one a group."""
    factor = (1 + math.cos(math.pi * (done + 0.5) / epochs)) / 2
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate * factor
