"""Small networks whose right values are worked out by hand, and pruning that names the units that stay."""

import torch
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.tasks.pruning import GroupPlan


class Two(ek.EideticNetwork):
    """Two layers of four units each, on three inputs."""

    example = (3,)

    def __init__(self, first=4, second=4):
        super().__init__()
        self.first, self.second = ek.EideticLinear(3, first), ek.EideticLinear(first, second)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))))


class One(ek.EideticNetwork):
    """One layer, followed by its BatchNorm on request."""

    example = (2,)

    def __init__(self, width=4, norm=False, bias=True):
        super().__init__()
        self.hidden = ek.EideticLinear(2, width, bias=bias)
        self.norm = ek.EideticBatchNorm1d(width) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.hidden(x))


def keep(net, *kept):
    """Prune by hand: of each unit group these live units stay, and nothing else."""
    parts = [GroupPlan(g.name, g.segments.live, torch.tensor(units)) for g, units in zip(net.groups, kept)]
    net.apply_plan(ek.PruningPlan("by hand", tuple(parts)))


def live_units(net):
    return [group.segments.live for group in net.groups]
