"""Modules of no task: plain layers inside a network that is wired by hand.

Their units have no owner, so training them for one task would change the answers of all others. They are frozen when
the network is wired: no optimizer sees their parameters, they stay in evaluation mode, and certificates fingerprint
them. A frozen backbone in front of eidetic layers is such a module.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from ..layers import SegmentedLayer


def freeze_foreign(network: nn.Module, skipped: frozenset[str]) -> tuple[nn.Module, ...]:
    """Freeze the modules of ``network`` that belong to no task, and parameters of its own; returns the modules.

    ``skipped`` names children that are the network's own. Warns of modules that would have been trained.
    """
    found = [each for name, child in network.named_children() if name not in skipped for each in _foreign(child, name)]
    own = [(name, p) for name, p in network._parameters.items() if p is not None]  # pyright: ignore[reportPrivateUsage]
    trainable = [(path, p) for path, module in found for p in module.parameters() if p.requires_grad]
    trainable += [(name, p) for name, p in own if p.requires_grad]
    for _, parameter in trainable:
        parameter.requires_grad_(False)
    for _, module in found:
        module.eval()
    if trainable:
        paths = ", ".join(repr(path) for path in dict.fromkeys(path for path, _ in trainable))
        warnings.warn(
            f"{paths}: {sum(p.numel() for _, p in trainable)} parameters belong to no task and are frozen from now on, "
            "since training them would change finished tasks. Use this package's layers for what is to learn; for a "
            "frozen backbone call requires_grad_(False) on it, and this warning does not come.",
            stacklevel=2,
        )
    return tuple(module for _, module in found)


def shared_tensors(network: nn.Module, skipped: frozenset[str]) -> Iterator[tuple[str, list[Tensor]]]:
    """(path, tensors) of every module below ``network`` whose parameters and buffers belong to no task."""
    for path, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules()):
        if path.split(".")[0] not in skipped and not isinstance(module, SegmentedLayer):
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if tensors and path:
                yield path, tensors


def _foreign(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules at or below ``module`` that hold parameters or statistics, and no layer whose units have
    owners."""
    if isinstance(module, SegmentedLayer):
        return
    if not any(isinstance(each, SegmentedLayer) for each in module.modules()):
        if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
            yield path, module
        return
    for name, child in module.named_children():
        yield from _foreign(child, f"{path}.{name}")
