"""A training step of the paper's MLP beside the same step of the dense network it replaces.

    make bench

States are (frozen, live) percentages of each layer's width, the frozen units spread over five finished tasks. Both
networks use Adam on its fused kernel. `dense` has no state: compare each row with it.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eidetic_kernels import default_optimizer
from eidetic_training import models

BATCH, INPUTS, WIDTH, CLASSES, SEGMENTS = 256, 784, 2000, 10, 5
STATES = [(0, 100), (50, 50), (50, 10), (90, 10)]


def dense() -> nn.Module:
    layers = []
    for columns in (INPUTS, WIDTH):
        layers += [nn.Linear(columns, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(WIDTH, CLASSES))


def eidetic(frozen: int, live: int) -> nn.Module:
    net = models.MLP(INPUTS, WIDTH)
    task = 0
    if frozen:
        net.input_shape = (INPUTS,)
        for task in range(SEGMENTS):
            net.prepare_for_task(task, CLASSES, max_units=frozen / 100 / SEGMENTS)
            net.finish_task()
        task += 1
    net.prepare_for_task(task, CLASSES, max_units=live / 100)
    return net.train()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("state", ["dense", *STATES], ids=lambda s: s if isinstance(s, str) else f"{s[0]}-{s[1]}")
def test_mlp_training_step(benchmark, state):
    torch.manual_seed(0)
    net = dense() if state == "dense" else eidetic(*state)
    optimizer = default_optimizer(net.parameters())
    x, y = torch.randn(BATCH, INPUTS), torch.randint(0, CLASSES, (BATCH,))
    before = [p.detach().clone() for p in net.parameters()]
    benchmark.pedantic(step, (net, optimizer, x, y), warmup_rounds=3, rounds=20)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters())), "the step trains nothing"
