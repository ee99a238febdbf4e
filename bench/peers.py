"""The other ways to train the same network: dense, dense with masks, compiled, and the published implementation."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from networks import CLASSES, SEGMENTS, Subject, dense, eidetic
from torch import Tensor, nn
from torch.nn.utils import prune

from eidetic_kernels.layers import StaircaseLayer


def step_of(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer | None,
    around: Callable[[], AbstractContextManager] = nullcontext,
) -> Callable[[], None]:
    """One training step as a function without arguments; its forward pass runs inside ``around()``."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with around():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()

    return step


def masked(subject: Subject, frozen: int, live: int) -> nn.Module:
    """The dense network at full width, with the eidetic network's structure as masks (torch.nn.utils.prune).

    Units that are neither frozen nor live are masked. Frozen rows are trained like the others, since a mask cannot
    prevent that: this peer pays for masks only, not for freezing.
    """
    plain, net = dense(subject), eidetic(subject, frozen, live)
    modules = dict(plain.body.named_modules())
    for path, layer in net.named_modules():
        if not isinstance(layer, StaircaseLayer) or path.startswith("heads"):
            continue
        present = layer.mask()
        mask = torch.zeros_like(modules[path].weight)
        mask[: present.shape[0], : present.shape[1]] = present.view(*present.shape, *[1] * (mask.dim() - 2))
        prune.custom_from_mask(modules[path], "weight", mask)
    return plain


class Published(nn.Module):
    """The published MLP after ``SEGMENTS`` pruned tasks, in training; it returns its current task's logits.

    ``checkout`` is a folder with the package ``eideticnet_training``. That package logs to a service, which is replaced
    by a stub here: its times do not include logging.
    """

    def __init__(self, checkout: Path, subject: Subject, frozen: int, live: int):
        super().__init__()
        networks = published_package(checkout)
        torch.manual_seed(0)
        tasks = SEGMENTS if frozen else 0
        width = subject.width or 2000
        self.net = networks.MLP(subject.shape[0], [CLASSES] * (tasks + 1), num_layers=1, width=width)
        for task in range(tasks):
            self.net.prepare_for_task(task)
            self._leave(frozen / 100 * (task + 1) / SEGMENTS)
        self.net.prepare_for_task(tasks)
        self._leave((frozen + live) / 100)
        self.net.train()

    def _leave(self, share: float) -> None:
        """Prune until the fraction ``share`` of each layer's units is left."""
        if share < 1:
            self.net._bridge_prune(1 - share, pruning_type=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[self.net.phase]


def published_package(checkout: Path) -> types.ModuleType:
    """The published ``eideticnet_training.networks``; what it logs and draws with is replaced by stubs."""
    if not (checkout / "eideticnet_training").is_dir():
        raise SystemExit(f"{checkout} is no checkout of the published implementation: it has no eideticnet_training/.")
    sys.path.insert(0, str(checkout))
    for name in ("wandb", "torchmetrics", "datasets"):
        sys.modules.setdefault(name, _Nothing(name))
    # The package's own __init__ imports its data sets and all their dependencies; only its networks are needed.
    package = types.ModuleType("eideticnet_training")
    package.__path__ = [str(checkout / "eideticnet_training")]
    sys.modules.setdefault("eideticnet_training", package)
    return importlib.import_module("eideticnet_training.networks")


class _Nothing(types.ModuleType):
    """A module in which every name is a function that takes anything and returns None."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None
