"""Small networks, one for each topology that the promises must hold for. Arguments are JSON, so all can be saved."""

import torch
from slow import slow
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek


class MLP(ek.EideticNetwork):
    """Hidden linear layers of the given widths, with BatchNorm and dropout between them on request."""

    example = (6,)

    def __init__(self, widths=(10, 8), norm=True, dropout=0.5):
        super().__init__()
        layers, columns = [], self.example[0]
        for width in widths:
            layers.append(ek.EideticLinear(columns, width, bias=not norm))
            if norm:
                layers.append(ek.EideticBatchNorm1d(width))
            layers += [nn.ReLU(), nn.Dropout(dropout)]
            columns = width
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


class ConvNet(ek.EideticNetwork):
    """Two convolutions (the second with stride 2), flattened into a linear layer."""

    example = (2, 4, 4)

    def __init__(self, widths=(6, 5, 7), norm=True, dropout=0.5):
        super().__init__()
        first, second, third = widths
        self.conv1 = ek.EideticConv2d(2, first, 3, padding=1, bias=not norm)
        self.bn1 = ek.EideticBatchNorm2d(first) if norm else nn.Identity()
        self.drop1 = nn.Dropout2d(dropout)
        self.conv2 = ek.EideticConv2d(first, second, 3, stride=2, padding=1)
        self.bn2 = ek.EideticBatchNorm2d(second) if norm else nn.Identity()
        self.drop2 = nn.Dropout(dropout)
        self.fc = ek.EideticLinear(second * 4, third)
        self.bn3 = ek.EideticBatchNorm1d(third) if norm else nn.Identity()

    def forward(self, x):
        x = self.drop1(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.fc(self.drop2(x.flatten(1)))))


class Residual(ek.EideticNetwork):
    """A stem and a block around which an identity skips: stem and the block's last layer share one unit group."""

    example = (2, 4, 4)

    def __init__(self, width=6, inner=5, norm=True, dropout=0.5):
        super().__init__()
        self.stem = ek.EideticConv2d(2, width, 3, padding=1, bias=not norm)
        self.conv1 = ek.EideticConv2d(width, inner, 3, padding=1)
        self.conv2 = ek.EideticConv2d(inner, width, 3, padding=1)
        self.bn0 = ek.EideticBatchNorm2d(width) if norm else nn.Identity()
        self.bn1 = ek.EideticBatchNorm2d(inner) if norm else nn.Identity()
        self.bn2 = ek.EideticBatchNorm2d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        y = self.drop(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(y)) + x)
        return self.pool(x).flatten(1)


class FlatResidual(ek.EideticNetwork):
    """The same with linear layers."""

    example = (6,)

    def __init__(self, width=8, inner=5, norm=True, dropout=0.5):
        super().__init__()
        self.stem = ek.EideticLinear(6, width)
        self.inner = ek.EideticLinear(width, inner)
        self.outer = ek.EideticLinear(inner, width)
        self.bn = ek.EideticBatchNorm1d(inner) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return F.relu(x + self.outer(self.drop(F.relu(self.bn(self.inner(x))))))


class Grouped(ek.EideticNetwork):
    """Grouped convolutions inside a residual block (two channels a group) and after it (three)."""

    example = (2, 4, 4)

    def __init__(self, width=24, inner=16, norm=True, dropout=0.5):
        super().__init__()
        self.stem = ek.EideticConv2d(2, width, 3, padding=1, bias=not norm)
        self.conv1 = ek.EideticConv2d(width, inner, 1)
        self.grouped1 = ek.EideticGroupedConv2d(inner, inner // 2, 3, padding=1, bias=not norm)
        self.bn1 = ek.EideticBatchNorm2d(inner) if norm else nn.Identity()
        self.conv2 = ek.EideticConv2d(inner, width, 1)
        self.grouped2 = ek.EideticGroupedConv2d(width, width // 3, 3, stride=2, padding=1)
        self.bn2 = ek.EideticBatchNorm2d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.conv2(self.drop(F.relu(self.bn1(self.grouped1(F.relu(self.conv1(x)))))))
        return self.pool(F.relu(self.bn2(self.grouped2(x)))).flatten(1)


class Joined(ek.EideticNetwork):
    """Two branches side by side, a LayerNorm over both, a tensor of the network's own, and slopes of PReLU."""

    example = (6,)

    def __init__(self, first=5, second=4, last=6, dropout=0.5):
        super().__init__()
        self.a, self.b = ek.EideticLinear(6, first), ek.EideticLinear(6, second)
        self.norm = ek.EideticLayerNorm(first + second)
        self.scale = ek.EideticParameter(torch.rand(first) + 0.5)
        self.slopes, self.slope = ek.EideticPReLU(second), ek.EideticPReLU()
        self.drop = nn.Dropout(dropout)
        self.c = ek.EideticLinear(first + second, last)

    def forward(self, x):
        a, b = self.a(x) * self.scale(), self.slopes(self.b(x))
        return self.slope(self.c(self.drop(self.norm(torch.cat([a, b], 1)))))


class Backboned(ek.EideticNetwork):
    """Wired by hand: a frozen backbone of plain layers, a tensor of the network's own, and a residual block."""

    example = (6,)

    def __init__(self, width=6, inner=5, dropout=0.5):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.backbone.requires_grad_(False)
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.stem, self.norm = ek.EideticLinear(8, width), ek.EideticBatchNorm1d(width)
        self.inner, self.outer = ek.EideticLinear(width, inner), ek.EideticLinear(inner, width)
        self.drop = ek.EideticDropout(dropout)

    def connections(self):
        block = {"inner": "norm", "drop": "inner", "outer": "drop"}
        return {"stem": "input", "norm": "stem", **block, "output": ("norm", "outer")}

    def forward(self, x):
        x = F.relu(self.norm(self.stem(self.backbone(x) * self.scale)))
        return x + self.outer(self.drop(F.relu(self.inner(x))))


NETWORKS = {
    "mlp": MLP,
    "mlp-without-norm": lambda: MLP(norm=False),
    "conv": ConvNet,
    "conv-without-norm": lambda: ConvNet(norm=False),
    "residual": Residual,
    "residual-without-norm": lambda: Residual(norm=False),
    "flat-residual": FlatResidual,
    "grouped": Grouped,
}

# Names to parametrise with: a kind without its norms is met in `make test-all` alone.
KINDS = [name for name in NETWORKS if "without" not in name]
KINDS += slow(*(name for name in NETWORKS if name not in KINDS))
