"""Tiny networks whose layers own their norms, and training a task on any device, for tests of every backend."""

import torch
from life import batch
from torch.nn import functional as F

import eidetic_kernels as ek


class Small(ek.EideticNetwork):
    """A layer that owns its norm, and a layer beside a separate norm."""

    example = (4,)

    def __init__(self):
        super().__init__()
        self.first = ek.EideticLinear(4, 8, norm=ek.EideticBatchNorm1d(8, activation="silu"))
        self.second, self.norm = ek.EideticLinear(8, 7), ek.EideticBatchNorm1d(7, activation="relu")

    def forward(self, x):
        return self.norm(self.second(self.first(x)))


class Images(ek.EideticNetwork):
    """A convolution that owns its norm, and one that adds a residual."""

    example = (2, 3, 3)

    def __init__(self):
        super().__init__()
        self.stem = ek.EideticConv2d(2, 6, 3, padding=1, norm=ek.EideticBatchNorm2d(6, activation="gelu"))
        self.block = ek.EideticConv2d(6, 6, 3, padding=1, norm=ek.EideticBatchNorm2d(6, activation="relu6"))
        self.pool = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.stem(x)
        return self.pool(self.block(x, x)).flatten(1)


NETWORKS = {"layers": Small, "images": Images}


def on_device_learn(net, task, device, how="nested"):
    net.prepare_for_task(task, 3, how == "nested", max_units=0.4)
    step(net, device, task)
    net.prune(0.3)
    step(net, device, task)
    net.finish_task()


def step(net, device, seed):
    x, y = (t.to(device) for t in batch(net, 9, seed=seed))
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
