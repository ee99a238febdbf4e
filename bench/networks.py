"""The networks that are timed, in every (frozen, live) state, and the dense networks that they replace.

A state is two percentages of each layer's width: frozen units, spread over ``SEGMENTS`` finished tasks, and live units.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_training import models
from eidetic_training.methods.networks import PlainNetwork

SEGMENTS = 5
STATES = ((0, 100), (50, 50), (50, 25), (50, 10), (90, 10))
CLASSES = 10


@dataclass(frozen=True)
class Subject:
    """A model by name, the shape of one sample, the batch and the model's width (None: its own)."""

    model: str
    shape: tuple[int, ...]
    batch: int
    width: int | None = None

    def build(self) -> EideticNetwork:
        width = {} if self.width is None else {"width": self.width}
        return models.build(self.model, self.shape, **width)

    def data(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """One batch: x [N, *shape] and labels [N]."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, *self.shape, generator=generator)
        y = torch.randint(0, CLASSES, (self.batch,), generator=generator)
        return x.to(device), y.to(device)


SUBJECTS = {
    "mlp": Subject("mlp", (784,), 256),
    "convnet": Subject("convnet", (3, 32, 32), 64),
    "resnet18": Subject("resnet18", (3, 32, 32), 64),
    "resnet50": Subject("resnet50", (3, 32, 32), 32),
}

# EIDETIC_BENCH_SMOKE=1 runs everything at tiny sizes, only to see that it still runs.
SMOKE = os.environ.get("EIDETIC_BENCH_SMOKE", "0") != "0"
if SMOKE:
    SUBJECTS = {
        name: replace(subject, batch=4, width=50 if name == "mlp" else 8, shape=(12,) if name == "mlp" else (3, 8, 8))
        for name, subject in SUBJECTS.items()
    }


def eidetic(subject: Subject, frozen: int, live: int, segments: int = SEGMENTS) -> EideticNetwork:
    """A network in training whose layers hold ``frozen`` percent of frozen and ``live`` percent of live units."""
    torch.manual_seed(0)
    net = subject.build()
    net.input_shape = subject.shape
    tasks = segments if frozen else 0
    for task in range(tasks):
        net.prepare_for_task(task, CLASSES, max_units=frozen / 100 / segments)
        net.finish_task()
    net.prepare_for_task(tasks, CLASSES, max_units=live / 100)
    return net.train()


def dense(subject: Subject) -> PlainNetwork:
    """The plain torch.nn network that the eidetic one replaces: the same forward, the same weights, and a linear head.

    Its layers have the eidetic network's names, in ``body``.
    """
    torch.manual_seed(0)
    plain = PlainNetwork(subject.build())
    plain.add_head(CLASSES)
    return plain.train()


def state_bytes(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that training holds between steps, by kind: parameters, buffers, gradients, optimizer state."""
    parameters = list(net.parameters())
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    kinds = {
        "parameters": parameters,
        "buffers": list(net.buffers()),
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "optimizer": held,
    }
    return {kind: sum(t.numel() * t.element_size() for t in tensors) for kind, tensors in kinds.items()}
