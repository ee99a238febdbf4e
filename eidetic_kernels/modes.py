"""A network in another mode, or the random numbers of a seed, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put ``network`` in evaluation mode; on leaving, every module is back in the mode it was in.

    Nothing is written where all modules evaluate already, so any number of threads may be inside. Raises BusyError for
    an EideticNetwork that another thread trains.
    """
    training = [module for module in network.modules() if module.training]
    if training:
        check = getattr(network, "check_mode_may_change", None)
        if check is not None:
            check()
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of ``seed``; on leaving, the generators of the CPU and of ``device`` are where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every device's
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


def compiled_modules(network: nn.Module) -> list[str]:
    """Paths of the modules of ``network`` that torch.compile compiled; "" is the network itself."""
    named = network.named_modules()
    return [path for path, module in named if module._compiled_call_impl is not None or hasattr(module, "_orig_mod")]


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Let modules inside ``network`` run as Python where they were compiled by themselves.

    Others do so meanwhile, too, in any thread. Where the network is compiled as a whole nothing needs to be done: it
    recalls finished tasks as Python.
    """
    if any(path for path in compiled_modules(network)):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


@contextmanager
def outside_inference() -> Iterator[None]:
    """Leave ``torch.inference_mode()`` for a while: what is made inside of that can never be trained."""
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        yield


FROZEN_MARK = "eidetic_frozen"  # the attribute of modules that ek.frozen froze for good


def is_frozen(module: nn.Module) -> bool:
    """Whether ``module`` itself was given to ``ek.frozen``."""
    return bool(getattr(module, FROZEN_MARK, False))
