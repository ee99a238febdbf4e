"""A network in another mode, or the random numbers of a seed, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put ``network`` in evaluation mode; on leaving, every module is back in the mode it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of ``seed``; on leaving, the generators of the CPU and of ``device`` are where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every device's
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Let ``network`` run as Python where it, or a module of it, was compiled (``net.compile()``)."""
    if any(module._compiled_call_impl is not None for module in network.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
