"""The networks that are timed, in every (frozen, live) state, and the dense networks they replace.

A state is two percentages of each layer's width: frozen units, spread over ``SEGMENTS`` finished tasks, and live ones.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eidetic_kernels import EideticNetwork
from eidetic_kernels.layers import EideticBatchNorm1d, EideticBatchNorm2d, EideticConv2d, EideticLinear
from eidetic_training import models

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

# EIDETIC_BENCH_SMOKE=1 runs everything at sizes that prove nothing but that it still runs.
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


def dense(subject: Subject) -> nn.Module:
    """The plain torch.nn network that the eidetic one replaces: the same forward, the same weights."""
    torch.manual_seed(0)
    net = subject.build()
    features = net.wiring.features
    columns = sum(source.columns(None) for source in features)
    return Dense(net, columns).train()


class Dense(nn.Module):
    """``net``'s own forward over torch's layers, and a linear head."""

    def __init__(self, net: EideticNetwork, features: int):
        super().__init__()
        self.run = type(net).forward
        for name, child in net.named_children():
            if name != "heads":
                setattr(self, name, _plain(child))
        self.classifier = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.run(self, x))


def _plain(module: nn.Module) -> nn.Module:
    """``module`` with this package's layers replaced by torch's, weights kept."""
    if isinstance(module, EideticLinear):
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    elif isinstance(module, EideticConv2d):
        plain = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, *module.geometry, bias=module.bias is not None
        )
    elif isinstance(module, EideticBatchNorm1d):
        plain = nn.BatchNorm1d(module.num_features)
    elif isinstance(module, EideticBatchNorm2d):
        plain = nn.BatchNorm2d(module.num_features)
    else:
        for name, child in module.named_children():
            setattr(module, name, _plain(child))
        return module
    plain.load_state_dict(module.state_dict())
    return plain


def state_bytes(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of what training holds between steps: parameters, buffers, gradients, optimizer state."""
    parameters = list(net.parameters())
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    kinds = {
        "parameters": parameters,
        "buffers": list(net.buffers()),
        "gradients": [p.grad for p in parameters if p.grad is not None],
        "optimizer": held,
    }
    return {kind: sum(t.numel() * t.element_size() for t in tensors) for kind, tensors in kinds.items()}
