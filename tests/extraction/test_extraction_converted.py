"""net.extract of what ek.convert makes: norms and means over units, convolutions of every kind, computed weights."""

import copy
import pickle

import pytest
import torch
from conversions import extracted_alike, take_through, train
from plain_modules import Plain, conv
from slow import slow
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.layers import EideticGroupNorm, EideticLayerNorm
from eidetic_kernels.layers.prefix import EideticPrefix

pytestmark = [
    pytest.mark.filterwarnings("ignore:no layer has a free unit"),
    pytest.mark.filterwarnings("ignore:the converted network's outputs are the module's but for rounding"),
]
HOW = ("mixed", "disjoint", *slow("nested"))
SEQUENCE, IMAGE, VOLUME, TOKENS = (3, 9), (3, 8, 8), (2, 4, 4, 4), (6, 5)


def classified(run, **layers):
    """The units [N, C, *] that ``run`` makes, averaged over positions and classified."""
    return Plain(lambda s, x: s.head(run(s, x).flatten(2).mean(2)), **layers, head=nn.LazyLinear(4))


def sizes_of(net):
    return [group.segments.frozen for group in net.groups]


def learned(module, x, how="nested", gone=()):
    """``module`` converted, and three tasks learned on the batch ``x``, of whose units 40% go or more.

    ``how``: what a later task reads of earlier ones, all, nothing, or some layers this and some that. ``gone``: the
    numbers of the groups of which task 1 gets no unit.
    """
    module(x)
    net = ek.convert(module, x)
    for task in range(3):
        if task:
            layers = [path for path, layer in net.segmented_layers() if hasattr(layer, "forward_transfer")]
            choices = {path: (number + task) % 2 == 0 for number, path in enumerate([*layers, "head"])}
            net.prepare_for_task(task, 4, choices if how == "mixed" else how == "nested", max_units=0.5)
        optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
        train(net, optimizer, x, torch.arange(len(x)) % 4)
        net.prune(0.4 if task else 0.6, optimizer=optimizer)
        train(net, optimizer, x, torch.arange(len(x)) % 4)
        if task == 1 and gone:
            groups = net.plan_pruning(1.0).groups
            net.apply_plan(ek.PruningPlan("gone", tuple(groups[number] for number in gone)))
        net.finish_task()
    return net


class Patches(nn.Module):
    """Tokens that lie as their image does, normalised."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 20, 2, stride=2), nn.RMSNorm(20)
        self.b, self.head = nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(F.relu(self.b(self.norm(self.a(x).flatten(2).transpose(1, 2)))).mean(1))


class Normed(nn.Module):
    """A norm between two layers of units [N, *, C]."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Linear(5, 12), norm, nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.a(x)
        return self.head((x + F.relu(self.b(self.norm(x)))).mean(1))


class MeanOfUnits(nn.Module):
    """LayerNorm over channels, spelled out: reductions over units, with the units in a dimension of choice."""

    def __init__(self, dim):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 8, 3), nn.Linear(8, 4)
        self.dim = dim

    def forward(self, x):
        x = self.a(x)
        x = x.movedim(1, -1) if self.dim == -1 else x
        x = (x - x.mean(self.dim, keepdim=True)) / x.square().mean(self.dim, keepdim=True).add(0.1).sqrt()
        x = x / x.norm(dim=self.dim, keepdim=True)
        x = x.movedim(-1, 1) if self.dim == -1 else x
        return self.head(F.relu(self.b(x)).mean((2, 3)))


class Words(nn.Module):
    """Embeddings, one of which is tied to the units of a layer."""

    def __init__(self):
        super().__init__()
        self.words, self.gates = nn.Embedding(11, 10, padding_idx=0), nn.Embedding(11, 6)
        self.a, self.head = nn.Linear(10, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(F.relu(self.a(self.words(x)) * self.gates(x)).mean(1))


def sequences(dims=(12, 12), **options):
    first, second = dims
    return classified(
        lambda s, x: F.relu(s.b(F.relu(s.a(x)))),
        a=nn.Conv1d(3, first, 3, padding="same", **options),
        b=nn.Conv1d(first, second, 2, stride=2, bias=False),
    )


def grouped(kind, makes=2, **options):
    """A grouped convolution with ``makes`` rows for each two channels of its input, and another behind it."""
    rows = 6 * makes
    return classified(
        lambda s, x: s.c(F.relu(s.d(s.b(F.relu(s.a(x)))))),
        a=kind(IMAGE[0] if kind is not nn.Conv3d else VOLUME[0], 12, 1),
        b=kind(12, rows, 3, groups=6, **options),
        d=kind(rows, rows, 1, groups=rows),
        c=kind(rows, 7, 1),
    )


def transposed(kind, columns, **options):
    return classified(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=kind(columns, 9, 3, stride=2, padding=1, output_padding=1),
        b=kind(9, 8, 2, **options),
        c=kind(8, 6, 1),
    )


def moved():
    """Convolutions of sequences that lie with their channels last."""
    return classified(
        lambda s, x: F.gelu(s.b(s.norm(F.relu(s.a(x.transpose(1, 2))).transpose(1, 2)).transpose(1, 2))),
        a=nn.Conv1d(5, 12, 3),
        norm=nn.LayerNorm(12),
        b=nn.Conv1d(12, 12, 3, groups=4),
    )


class Standardised(nn.Conv2d):
    """A convolution whose rows have mean 0 and variance 1."""

    def forward(self, x):
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (spread + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def computed():
    norm = nn.utils.parametrizations.weight_norm
    return classified(
        lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))),
        a=Standardised(3, 8, 3),
        b=norm(nn.Conv2d(8, 8, 3, groups=4)),
        c=norm(nn.Conv2d(8, 9, 1)),
    )


def norms_of_images(*norms):
    return classified(
        lambda s, x: F.relu(s.b(s.second(F.relu(s.first(s.a(x)))))),
        a=nn.Conv2d(3, 12, 3),
        first=norms[0],
        second=norms[1],
        b=nn.Conv2d(12, 8, 2),
    )


def norms_of_volumes():
    return classified(
        lambda s, x: F.relu(s.c(s.second(s.b(s.first(s.a(x)))))),
        a=nn.Conv3d(2, 8, 2),
        first=nn.GroupNorm(4, 8),
        b=nn.Conv3d(8, 6, 1),
        second=nn.GroupNorm(1, 6),
        c=nn.Conv3d(6, 6, 2),
    )


def volumes_moved():
    """Volumes that lie with their channels last, and norms of them."""
    return classified(
        lambda s, x: s.b(s.norm(F.relu(s.a(x.movedim(-1, 1))).movedim(1, -1)).movedim(-1, 1)),
        a=nn.Conv3d(5, 12, 2),
        norm=nn.LayerNorm(12),
        b=nn.Conv3d(12, 9, 2),
    )


def norms_of_branches():
    """Groups of channels of two layers side by side: a part of the norm for each."""
    return classified(
        lambda s, x: s.b(F.relu(s.norm(torch.cat([s.a(x), s.c(x)], 1)))),
        a=conv(3, 8),
        c=conv(3, 4),
        norm=nn.GroupNorm(6, 12),
        b=nn.Conv2d(12, 6, 2),
    )


def pixels_cut():
    """Halves of flattened images are cut between channels, each of four pixels."""
    return Plain(
        lambda s, x: s.head(F.relu(s.b(torch.cat(s.a(x).flatten(1).chunk(2, 1), 1)))),
        a=nn.Conv2d(3, 6, 7),
        b=nn.Linear(24, 8),
        head=nn.Linear(8, 4),
    )


def shuffled():
    """More rows than columns of each group, whose neighbours lie apart afterwards."""
    return classified(
        lambda s, x: s.c(s.b(s.a(x)).unflatten(1, (6, 2)).mean(2)),
        a=nn.Conv2d(3, 6, 3),
        b=nn.Conv2d(6, 12, 3, groups=6),
        c=nn.Conv2d(6, 5, 1),
    )


CASES = {
    "rms norm": (lambda: Normed(nn.RMSNorm(12)), TOKENS),
    "rms norm without scale": (lambda: Normed(nn.RMSNorm(12, 0.1, elementwise_affine=False)), TOKENS),
    "rms norm of patches": (Patches, IMAGE),
    "means of channels": (lambda: MeanOfUnits(1), IMAGE),
    "means of the last dimension": (lambda: MeanOfUnits(-1), IMAGE),
    "group norms": (lambda: norms_of_images(nn.GroupNorm(4, 12), nn.GroupNorm(1, 12)), IMAGE),
    "group norms of volumes": (norms_of_volumes, VOLUME),
    "a group norm of two layers": (norms_of_branches, IMAGE),
    "sequences": (sequences, SEQUENCE),
    "padded sequences": (lambda: sequences(padding_mode="reflect", dilation=2), SEQUENCE),
    "sequences with channels last": (moved, TOKENS),
    "grouped sequences": (lambda: grouped(nn.Conv1d, 3, bias=False), SEQUENCE),
    "grouped images": (lambda: grouped(nn.Conv2d, 1, padding="same", padding_mode="circular"), IMAGE),
    "grouped volumes": (lambda: grouped(nn.Conv3d, 4, stride=2), VOLUME),
    "volumes with channels last": (volumes_moved, (4, 4, 4, 5)),
    "transposed sequences": (lambda: transposed(nn.ConvTranspose1d, 3, bias=False), SEQUENCE),
    "transposed images": (lambda: transposed(nn.ConvTranspose2d, 3, dilation=2), IMAGE),
    "transposed volumes": (lambda: transposed(nn.ConvTranspose3d, 2), VOLUME),
    "computed weights": (computed, IMAGE),
    "pixels cut": (pixels_cut, IMAGE),
    "words": (Words, None),
}


def made(name, samples=8):
    torch.manual_seed(0)
    make, shape = CASES[name]
    x = torch.randint(0, 11, (samples, 6)) if shape is None else torch.randn(samples, *shape)
    module = make()
    module(x)
    return module, x


@pytest.mark.filterwarnings(
    "ignore:no layer has a free unit", "ignore:the converted network's outputs are the module's"
)
@pytest.mark.parametrize("name", CASES)
def test_every_promise(name):
    """The weights of transposed convolutions are transposed, so a training step cannot be compared by name."""
    module, x = made(name)
    transposed = "transposed" in name
    take_through(module, x, double=x.is_floating_point() and not transposed, rounded=transposed or "group norm" in name)


@pytest.mark.filterwarnings(
    "ignore:no layer has a free unit", "ignore:the converted network's outputs are the module's"
)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", CASES)
def test_every_tasks_logits(name, how):
    """In float64 to 1e-10, so that a statistic over the wrong units shows; and by what needs the package no more."""
    module, x = made(name)
    x = x.double() if x.is_floating_point() else x
    net = learned(module.double(), x, how)
    for task in range(3):
        plain = extracted_alike(net, task, x)
        again = pickle.loads(pickle.dumps(copy.deepcopy(plain)))
        assert torch.equal(again(x), plain(x))


@pytest.mark.filterwarnings(
    "ignore:no layer has a free unit", "ignore:the converted network's outputs are the module's"
)
@pytest.mark.parametrize("gone", ["all", "first", *slow("each")])
@pytest.mark.parametrize("name", CASES)
def test_a_task_without_units_of_a_group(name, gone):
    """Of all groups, of the first, and of each in turn."""
    module, x = made(name, 3)
    groups = range(len(ek.convert(module, x).groups))
    for numbers in {"all": [groups], "first": [[0]], "each": [[number] for number in groups]}[gone]:
        net = learned(copy.deepcopy(module), x, "mixed" if gone == "all" else "disjoint", numbers)
        assert all(sizes_of(net)[number][1] == 0 for number in numbers)
        for task in range(3):
            extracted_alike(net, task, x)


@pytest.mark.parametrize("name", CASES)
def test_a_first_task_without_units(name):
    """Nothing is there to look back at: of the first group, and of all."""
    module, x = made(name, 3)
    for some in (slice(1), slice(None)):
        net = ek.convert(module, x)
        train(net, torch.optim.SGD(net.parameters(), 0.1), x, torch.arange(3))
        net.apply_plan(ek.PruningPlan("gone", net.plan_pruning(1.0).groups[some]))
        net.finish_task()
        assert sizes_of(net)[0] == (0,)
        extracted_alike(net, 0, x)


NORMS = (EideticLayerNorm, EideticGroupNorm, EideticPrefix)


@pytest.mark.parametrize(
    ("name", "path", "kept"),
    [
        ("rms norm", "a", ["task0", "task1"]),
        ("means of channels", "a", ["task0", "task1"]),
        ("group norms", "a", ["task0", "task1"]),
        ("a group norm of two layers", "a.0", []),
    ],
)
def test_statistics_look_back_where_nothing_else_does(name, path, kept):
    """So earlier units are kept for them alone; groups of channels by themselves need none of another task's."""
    module, x = made(name)
    net = ek.convert(module.double(), x.double())
    for task in range(2):
        if task:
            layers = {path: layer for path, layer in net.segmented_layers() if hasattr(layer, "forward_transfer")}
            choices = {path: isinstance(layer, NORMS) for path, layer in layers.items()}
            net.prepare_for_task(1, 4, choices | {"head": False})
        train(net, torch.optim.SGD(net.parameters(), 0.1), x.double(), torch.arange(len(x)) % 4)
        net.prune(0.5)
        net.finish_task()
    plain = extracted_alike(net, 1, x.double())
    assert [name for name, _ in plain.get_submodule(path).named_children()] == kept


def test_an_embedding_keeps_its_padding():
    module, x = made("words")
    plain = learned(module, x).extract(2)
    assert plain.words.padding_idx == 0 and plain.gates.padding_idx is None
