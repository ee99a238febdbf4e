"""Branches that are joined, added, stacked or cut out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .registry import Images, classifier, conv, pooled, topology


@topology("dense concatenations")
class Dense(Images):
    def middle(self):
        self.layers = nn.ModuleList(conv(16 + 8 * n, 8) for n in range(4))

    def out(self):
        return 48

    def run(self, x):
        found = [x]
        for layer in self.layers:
            found.append(F.relu(layer(torch.cat(found, 1))))
        return torch.cat(found, dim=1)


@topology("four kinds of branches")
class FourBranches(Images):
    def middle(self):
        self.a, self.b, self.c = conv(16, 6, 1), nn.Sequential(conv(16, 4, 1), nn.ReLU(), conv(4, 8)), conv(16, 6, 5)
        self.d, self.after = conv(16, 4, 1), conv(24, 16, 3, stride=(1, 2))

    def run(self, x):
        joined = [self.a(x), self.b(x), self.c(x), self.d(F.avg_pool2d(x, 3, 1, 1))]
        return F.relu(self.after(F.relu(torch.cat(joined, 1))))


@topology("a hierarchy of splits")
class Hierarchy(Images):
    def middle(self):
        self.before, self.after = conv(16, 24, 1), conv(24, 16, 1)
        self.parts = nn.ModuleList(conv(6, 6) for _ in range(3))

    def run(self, x):
        first, *others = torch.split(F.relu(self.before(x)), 6, 1)
        made = [first]
        for part, given in zip(self.parts, others):
            made.append(F.relu(part(given if len(made) == 1 else given + made[-1])))
        return F.relu(x + self.after(torch.cat(made, 1)))


@topology("half of the units passes by")
class PassingBy(Images):
    def middle(self):
        self.a, self.b, self.after = conv(8, 8), conv(8, 8), conv(16, 16, 1)

    def run(self, x):
        passed, y = x.chunk(2, dim=1)
        y = y + F.relu(self.b(F.relu(self.a(y))))
        return F.relu(self.after(torch.cat((y, passed), 1)))


@topology("halves shuffled")
class HalvesShuffled(Images):
    def middle(self):
        self.inner, self.depthwise, self.last = conv(8, 8, 1), conv(8, 8, groups=8), conv(8, 8, 1)

    def run(self, x):
        passed, y = x[:, :8], x[:, 8:]
        y = F.relu(self.last(self.depthwise(F.relu(self.inner(y)))))
        return F.channel_shuffle(torch.cat([passed, y], 1), 2)


@topology("a U with skips")
class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16), conv(16, 24)
        self.up_b, self.up_a, self.head = conv(40, 16), conv(24, 8), classifier(8)

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        c = F.relu(self.c(F.max_pool2d(b, 2)))
        c = F.interpolate(c, scale_factor=2, mode="nearest")
        b = F.relu(self.up_b(torch.cat([b, c], 1)))
        b = F.interpolate(b, size=a.shape[2:], mode="bilinear", align_corners=False)
        return self.head(pooled(F.relu(self.up_a(torch.cat([a, b], 1)))))


@topology("a pyramid of features")
class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 8, stride=2), conv(8, 12, stride=2), conv(12, 16, stride=2)])
        self.laterals = nn.ModuleList(nn.Conv2d(width, 10, 1) for width in (8, 12, 16))
        self.smooth, self.head = conv(10, 10), classifier(30)

    def forward(self, x):
        found = []
        for stage, lateral in zip(self.stages, self.laterals):
            x = F.relu(stage(x))
            found.append(lateral(x))
        for n in (1, 0):
            found[n] = found[n] + F.interpolate(found[n + 1], size=found[n].shape[-2:], mode="nearest")
        return self.head(torch.cat([pooled(F.relu(self.smooth(each))) for each in found], 1))


@topology("selected among stacked branches")
class Selected(Images):
    def middle(self):
        self.small, self.large = conv(16, 16), conv(16, 16, dilation=2, padding=2)
        self.reduce, self.choose = nn.Linear(16, 8), nn.Linear(8, 32)

    def run(self, x):
        branches = torch.stack([F.relu(self.small(x)), F.relu(self.large(x))], 1)
        means = branches.sum(1).mean((2, 3))
        weights = self.choose(F.relu(self.reduce(means))).view(-1, 2, 16).softmax(1)
        return (branches * weights[..., None, None]).sum(1)


@topology("largest of several pieces")
class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.pieces, self.head = conv(3, 12), nn.Linear(12, 60), classifier(20)

    def forward(self, x):
        x = self.pieces(pooled(F.relu(self.stem(x))))
        return self.head(x.view(len(x), 20, 3).amax(2))


@topology("positive and negative parts joined")
class BothSigns(Images):
    def middle(self):
        self.next = conv(32, 16)

    def run(self, x):
        return F.relu(self.next(torch.cat([x - 0.5, 0.5 - x], 1).clamp_min(0)))


@topology("crops and corners")
class Crops(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = conv(3, 12), conv(12, 12, padding=0), classifier(24)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = F.relu(self.inner(x)) + x[:, :, 1:-1, 1:-1]
        return self.head(torch.cat([pooled(y), y[:, :, 0, 0]], 1))


@topology("mixture of experts")
class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.head = conv(3, 16), nn.Linear(16, 3), classifier(20)
        self.experts = nn.ModuleList(nn.Linear(16, 20) for _ in range(3))

    def forward(self, x):
        x = pooled(F.relu(self.stem(x)))
        chosen = self.gate(x).softmax(-1)
        made = torch.stack([F.gelu(expert(x)) for expert in self.experts], -1)
        return self.head((made * chosen[:, None]).sum(-1))


@topology("wide and deep", (24,), None)
class WideAndDeep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(24, 32), nn.BatchNorm1d(32), nn.Linear(32, 16)
        self.wide, self.last, self.head = nn.Linear(24, 12), nn.Linear(28, 20), classifier(20)

    def forward(self, x):
        deep = F.elu(self.b(F.relu(self.norm(self.a(x)))))
        return self.head(F.relu(self.last(torch.cat([self.wide(x), deep], -1))))
