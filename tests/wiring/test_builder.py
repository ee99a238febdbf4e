"""Unit groups: what tracing finds in each topology, that what was found keeps tasks apart, and every refusal."""

import operator
import re

import pytest
import torch
import torch.nn.functional as F
from staircases import assert_same_bits
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.errors import ConversionError
from eidetic_kernels.layers import EideticDropout
from eidetic_kernels.layout import Fixed, Segments

L, C, N1, N2 = ek.EideticLinear, ek.EideticConv2d, ek.EideticBatchNorm1d, ek.EideticBatchNorm2d


class Net(ek.EideticNetwork):
    """``body(net, x)`` is the forward; the layers are given by name."""

    def __init__(self, body, by_hand=None, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body, self.by_hand = body, by_hand

    def forward(self, x):
        return self.body(self, x)

    def connections(self):
        return self.by_hand


def groups(net):
    """Each group's producers and normalisations, in order."""
    return [(*group.producers, *group.norms) for group in net.groups]


def reads(net):
    """What each layer reads: the index of a group (or "input") and the block."""
    segments = [group.segments for group in net.groups]
    return {
        path: ("input" if isinstance(source.group, Fixed) else segments.index(source.group), source.block)
        for path, (source,) in net.wiring.sources.items()
    }


def features(net):
    (source,) = net.wiring.features
    return [group.segments for group in net.groups].index(source.group), source.block


def chain():
    body = nn.Sequential(L(6, 8), N1(8), nn.ReLU(), nn.Dropout(0.5), L(8, 7), nn.Tanh(), L(7, 5, bias=False), N1(5))
    return Net(lambda s, x: s.body_of(x.flatten(1)), body_of=body)


def image_to_flat():
    return Net(
        lambda s, x: s.fc2(F.relu(s.n2(s.fc1(torch.flatten(s.pool(F.relu(s.n1(s.conv1(x)))), 1))))),
        conv1=C(3, 4, 3), n1=N2(4), pool=nn.MaxPool2d(2), fc1=L(4 * 9, 6), n2=N1(6), fc2=L(6, 5),
    )  # fmt: skip


def two_convolutions(dropout=nn.Dropout):
    return Net(
        lambda s, x: s.pool(s.drop(s.conv2(s.act(s.conv1(x))))).flatten(1),
        conv1=C(3, 4, 3), act=nn.LeakyReLU(0.1), conv2=C(4, 5, 3, padding=1), drop=dropout(0.5),
        pool=nn.AdaptiveAvgPool2d((2, 1)),
    )  # fmt: skip


def averaged():
    return Net(lambda s, x: s.fc(s.conv(x).mean((2, 3))), conv=C(3, 4, 3), fc=L(4, 5))


def identity_residual():
    return Net(
        lambda s, x: s.fc(F.relu(s.n2(s.c2(F.relu(s.n1(s.c1(s.stem(x)))))) + s.stem_again(x)).mean([-1, -2])),
        stem=C(3, 4, 3, padding=1), c1=C(4, 6, 3, padding=1), n1=N2(6), c2=C(6, 4, 3, padding=1), n2=N2(4),
        stem_again=C(3, 4, 3, padding=1), fc=L(4, 5),
    )  # fmt: skip


def blocks(net, x):
    x = net.stem(x)
    x = F.relu(x + net.b(F.relu(net.a(x))))
    x = x + net.d(F.relu(net.c(x)))
    return net.last(x)


def tied_transitively():
    return Net(blocks, stem=L(6, 5), a=L(5, 3), b=L(3, 5), c=L(5, 4), d=L(4, 5), last=L(5, 6))


def projection():
    def forward(net, x):
        x = F.relu(net.n0(net.stem(x)))
        y = net.n2(net.c2(F.relu(net.n1(net.c1(x)))))
        return F.relu(y + net.np(net.project(x))).mean((2, 3))

    return Net(
        forward, stem=C(3, 4, 3, padding=1), n0=N2(4), c1=C(4, 6, 3, 2, 1), n1=N2(6), c2=C(6, 6, 3, 1, 1), n2=N2(6),
        project=C(4, 6, 1, 2), np=N2(6),
    )  # fmt: skip


def several_products():
    return Net(
        lambda s, x: torch.maximum(s.a(x) * torch.sigmoid(s.b(x)), s.c(x)) - s.d(x) / 3,
        a=L(6, 5), b=L(6, 5), c=L(6, 5), d=L(6, 5),
    )  # fmt: skip


def flattened_residual():
    """Tied images, flattened before a linear layer, with dropout between."""
    return Net(
        lambda s, x: s.fc(s.drop((s.a(x) + s.b(x)).view(x.size(0), -1))),
        a=C(3, 4, 3), b=C(3, 4, 3), drop=nn.Dropout(0.5), fc=L(4 * 36, 5),
    )  # fmt: skip


TABLE = {
    "chain": (
        chain, (6,), [("body_of.0", "body_of.1"), ("body_of.4",), ("body_of.6", "body_of.7")],
        {"body_of.0": ("input", 1), "body_of.4": (0, 1), "body_of.6": (1, 1)}, (2, 1),
    ),
    "image to flat": (
        image_to_flat, (3, 8, 8), [("conv1", "n1"), ("fc1", "n2"), ("fc2",)],
        {"conv1": ("input", 1), "fc1": (0, 9), "fc2": (1, 1)}, (2, 1),
    ),
    "two convolutions": (
        two_convolutions, (3, 8, 8), [("conv1",), ("conv2",)], {"conv1": ("input", 1), "conv2": (0, 1)}, (1, 2),
    ),
    "averaged": (averaged, (3, 8, 8), [("conv",), ("fc",)], {"conv": ("input", 1), "fc": (0, 1)}, (1, 1)),
    "identity residual": (
        identity_residual, (3, 8, 8), [("stem",), ("c1", "n1"), ("c2", "stem_again", "n2"), ("fc",)],
        {"stem": ("input", 1), "c1": (0, 1), "c2": (1, 1), "stem_again": ("input", 1), "fc": (2, 1)}, (3, 1),
    ),
    "tied transitively": (
        tied_transitively, (6,), [("stem", "b", "d"), ("a",), ("c",), ("last",)],
        {"stem": ("input", 1), "a": (0, 1), "b": (1, 1), "c": (0, 1), "d": (2, 1), "last": (0, 1)}, (3, 1),
    ),
    "projection": (
        projection, (3, 8, 8), [("stem", "n0"), ("c1", "n1"), ("c2", "project", "n2", "np")],
        {"stem": ("input", 1), "c1": (0, 1), "c2": (1, 1), "project": (0, 1)}, (2, 1),
    ),
    "several products": (
        several_products, (6,), [("a", "b", "c", "d")], dict.fromkeys("abcd", ("input", 1)), (0, 1),
    ),
    "flattened residual": (
        flattened_residual, (3, 8, 8), [("a", "b"), ("fc",)],
        {"a": ("input", 1), "b": ("input", 1), "fc": (0, 36)}, (1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_groups(name):
    make, _, expected_groups, expected_reads, expected_features = TABLE[name]
    net = make()
    assert groups(net) == expected_groups
    assert reads(net) == expected_reads
    assert features(net) == expected_features
    for group in net.groups:
        assert len({id(layer.segments) for layer in group.layers}) == 1, "a group's layers share their sizes"


def live_through(net, shape, tasks=3):
    """Learn ``tasks`` tasks of random data; returns each one's logits when it was finished, and the input."""
    x, logits = torch.randn(8, *shape), []
    generator = torch.Generator().manual_seed(4)
    for task in range(tasks):
        net.prepare_for_task(task, num_classes=3, forward_transfer=task != 1)
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(net(x), torch.arange(8) % 3).backward()
            optimizer.step()
        net.prune(0.6, "random", generator=generator)
        net.eval()
        in_training = net(x).detach()
        net.finish_task()
        logits.append(net(x, task=task).detach())
        torch.testing.assert_close(logits[-1], in_training)
    return x, logits


@pytest.mark.parametrize("name", TABLE)
def test_what_was_found_keeps_tasks_apart(name):
    """P1 and P3: after three tasks, and with NaN in everything live, each task answers as when it was finished."""
    make, shape, *_ = TABLE[name]
    net = make()
    x, logits = live_through(net, shape)
    net.prepare_for_task(3, num_classes=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))
        for group in net.groups:
            for norm in group.norms.values():
                norm.running_mean.fill_(float("nan"))
                norm.running_var.fill_(float("nan"))
    assert net(x).isnan().all()
    for task, expected in enumerate(logits):
        assert_same_bits(f"task {task}", net(x, task=task), expected)


def test_dropout_learns_which_columns_are_frozen():
    net = chain()
    net.eval()
    assert groups(net)
    drop = net.body_of[3]
    assert type(drop) is EideticDropout and drop.p == 0.5 and not drop.channels and not drop.training
    assert drop.source.group is net.groups[0].segments and drop.source.block == 1

    net = flattened_residual()
    assert net.groups and net.drop.source.block == 36
    net = two_convolutions(nn.Dropout2d)
    assert net.groups and net.drop.channels and net.drop.training


@pytest.mark.parametrize("make", [chain, flattened_residual])
def test_frozen_units_are_the_same_in_training_with_dropout(make):
    """P5: under dropout 0.5 a frozen unit gives what it gives in evaluation."""
    net = make()
    shape = (6,) if make is chain else (3, 8, 8)
    x, _ = live_through(net, shape, tasks=2)
    net.prepare_for_task(2, num_classes=3)
    frozen = net.groups[-1].segments.frozen_total
    assert frozen
    given = [getattr(net, mode)().compute_features(x)[:, :frozen].detach() for mode in ("eval", "train")]
    assert_same_bits("frozen features", *given)


# ---- what passes units through unchanged


MODULES = [
    nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.GELU(), nn.SiLU(),
    nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(), nn.Softsign(),
    nn.Tanhshrink(), nn.LogSigmoid(), EideticDropout(0.5), nn.Dropout(0.5),
    nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d((2, None)), nn.ZeroPad2d(1),
    nn.Upsample(scale_factor=2), nn.Dropout2d(0.5), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
]  # fmt: skip
FUNCTIONS = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu,
    "softplus": F.softplus, "hardtanh": F.hardtanh, "logsigmoid": F.logsigmoid, "torch.relu": torch.relu,
    "torch.sigmoid": torch.sigmoid, "torch.tanh": torch.tanh, "torch.abs": torch.abs, "torch.exp": torch.exp,
    "torch.clamp": lambda x: torch.clamp(x, 0, 1), "torch.square": torch.square, "negation": operator.neg,
    "max_pool2d": lambda x: F.max_pool2d(x, 2), "avg_pool2d": lambda x: F.avg_pool2d(x, 3, stride=1),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, output_size=2),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2), "mean, kept": lambda x: x.mean((2, 3), keepdim=True),
    ".relu()": lambda x: x.relu(), ".clamp()": lambda x: x.clamp(0), ".contiguous()": lambda x: x.contiguous(),
    ".float()": lambda x: x.float(), ".to()": lambda x: x.to(torch.float32),
    "x + 1": lambda x: x + 1, "1 - x": lambda x: 1 - x, "2 * x / 3": lambda x: 2 * x / 3, ".mul(2)": lambda x: x.mul(2),
    "x / size": lambda x: x / x.size(2), "x / shape": lambda x: x / x.shape[-1] ** 2, "x += x": lambda x: x + x,
}  # fmt: skip


def two_images(middle, **layers):
    return Net(lambda s, x: s.b(middle(s, s.a(x))).mean((2, 3)), a=C(3, 4, 3), b=C(4, 5, 1), **layers)


def _same_as_plain(net, x):
    """The wired network computes what its layers compute one after the other."""
    expected = net.eval().forward(x)
    assert groups(net) == [("a",), ("b",)]
    net.prepare_for_task(0, num_classes=2)
    assert_same_bits("features", net.eval().compute_features(x), expected)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_modules_that_keep_units_apart(module):
    _same_as_plain(two_images(lambda s, x: s.between(x), between=module), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_keep_units_apart(name):
    _same_as_plain(two_images(lambda s, x: FUNCTIONS[name](x)), torch.randn(2, 3, 8, 8))


FLATTENINGS = {
    "flatten": lambda s, x: x.flatten(1),
    "torch.flatten": lambda s, x: torch.flatten(x, start_dim=1),
    "nn.Flatten": lambda s, x: s.fold(x),
    "view with size": lambda s, x: x.view(x.size(0), -1),
    "view with shape": lambda s, x: x.view(x.shape[0], -1),
    "reshape": lambda s, x: x.reshape(x.size(0), -1),
    "reshape of a tuple": lambda s, x: x.reshape((x.size(0), -1)),
}


@pytest.mark.parametrize("name", FLATTENINGS)
def test_ways_to_flatten(name):
    fold = {"fold": nn.Flatten()} if name == "nn.Flatten" else {}
    net = Net(lambda s, x: s.fc(FLATTENINGS[name](s, s.conv(x))), conv=C(3, 4, 3), fc=L(4 * 36, 5), **fold)
    assert reads(net) == {"conv": ("input", 1), "fc": (0, 36)}


TYING = {
    "+=": lambda a, b: operator.iadd(a, b), "-": operator.sub, "*=": lambda a, b: operator.imul(a, b),
    "/": operator.truediv, ".add_": lambda a, b: a.add_(b), ".mul": lambda a, b: a.mul(b),
    ".div": lambda a, b: a.div(b),
    "torch.add with alpha": lambda a, b: torch.add(a, b, alpha=2), "minimum": torch.minimum,
}  # fmt: skip


@pytest.mark.parametrize("name", TYING)
def test_arithmetic_ties_units(name):
    net = Net(lambda s, x: s.c(TYING[name](s.a(x), s.b(x))), a=L(6, 4), b=L(6, 4), c=L(4, 5))
    assert groups(net) == [("a", "b"), ("c",)]


def test_flattening_flat_units_changes_nothing():
    net = Net(lambda s, x: s.b(s.a(x).flatten(1)), a=L(6, 5), b=L(5, 4))
    assert reads(net)["b"] == (0, 1)


def test_anything_may_be_done_to_the_input():
    net = Net(lambda s, x: s.fc((x.transpose(1, 2) * 2 + x.mean()).softmax(1)[:, :2].flatten(1) - 1), fc=L(8, 5))
    assert reads(net) == {"fc": ("input", 1)}


def test_a_scalar_buffer_may_scale_units():
    net = Net(lambda s, x: s.b(s.a(x) * s.factor), a=L(6, 5), b=L(5, 4))
    net.register_buffer("factor", torch.tensor(2.0))
    assert reads(net)["b"] == (0, 1)


def test_names_and_widths_of_groups():
    net = tied_transitively()
    assert [group.name for group in net.groups] == ["stem (+2 tied)", "a", "c", "last"]
    assert [group.built_width for group in net.groups] == [5, 3, 4, 6]
    assert all(isinstance(group.segments, Segments) for group in net.groups)


# ---- by hand


def test_by_hand_equals_traced():
    hands = {
        "tied transitively": {
            "stem": "input", "a": "stem", "b": "a", "c": ("stem", "b"), "d": "c", "last": ("stem", "b", "d"),
            "output": "last",
        },
        "several products": {**dict.fromkeys("abcd", "input"), "output": ("a", "b", "c", "d")},
        "chain": {
            "body_of.0": "input", "body_of.1": "body_of.0", "body_of.3": "body_of.1", "body_of.4": "body_of.3",
            "body_of.6": "body_of.4", "body_of.7": "body_of.6", "output": "body_of.7",
        },
    }  # fmt: skip
    for name, connections in hands.items():
        traced, by_hand = TABLE[name][0](), TABLE[name][0]()
        by_hand.by_hand = connections
        assert groups(by_hand) == groups(traced)
        assert reads(by_hand) == reads(traced)
        assert features(by_hand) == features(traced)
        assert set(by_hand.wiring.dropouts) == set(traced.wiring.dropouts)


def test_by_hand_a_network_that_cannot_be_traced_learns():
    net = Net(
        lambda s, x: s.b(s.a(x) if x.sum() > 0 else s.a(x)),
        {"a": "input", "b": "a", "output": "b"}, a=L(6, 8), b=L(8, 7),
    )  # fmt: skip
    x, logits = live_through(net, (6,))
    for task, expected in enumerate(logits):
        assert_same_bits(f"task {task}", net(x, task=task), expected)


BY_HAND_ERRORS = {
    "'b' reads 'c', which is not defined before it. Known so far: input, a": {"a": "input", "b": "c", "output": "b"},
    "the network has no module 'z'": {"z": "input", "output": "z"},
    "connections() must say which layer's output are the features": {"a": "input", "b": "a"},
    "units are combined with the network's input": {"a": "input", "b": ("a", "input"), "output": "b"},
    "forward must return features that a layer of this package produced": {"output": "input"},
    "'b' is not on the way from the input to the features": {"a": "input", "output": "a"},
}


@pytest.mark.parametrize("text", BY_HAND_ERRORS)
def test_errors_by_hand(text):
    net = Net(None, BY_HAND_ERRORS[text], a=L(6, 6), b=L(6, 6))
    with pytest.raises(ConversionError, match=re.escape(text)):
        net.wiring  # noqa: B018


# ---- what cannot be wired


def two_flat(middle, **layers):
    return Net(lambda s, x: s.b(middle(s, s.a(x))), a=L(6, 4), b=L(4, 5), **layers)


REFUSED = {
    "plain linear": (
        lambda: two_flat(lambda s, x: s.plain(x), plain=nn.Linear(4, 4)),
        ["node 'plain' [call_module plain]", "a plain Linear would be trained by every task and forget: use"],
    ),
    "plain convolution": (
        lambda: two_images(lambda s, x: s.plain(x), plain=nn.Conv2d(4, 4, 1)), ["use ek.EideticConv2d"]
    ),
    "plain normalisation": (
        lambda: two_images(lambda s, x: s.plain(x), plain=nn.BatchNorm2d(4)), ["use ek.EideticBatchNorm2d"]
    ),
    "plain normalisation of flat units": (
        lambda: two_flat(lambda s, x: s.plain(x), plain=nn.BatchNorm1d(4)), ["use ek.EideticBatchNorm1d"]
    ),
    "plain linear on the input": (
        lambda: Net(lambda s, x: s.a(s.plain(x)), plain=nn.Linear(6, 6), a=L(6, 4)), ["use ek.EideticLinear"]
    ),
    "PReLU": (
        lambda: two_flat(lambda s, x: s.act(x), act=nn.PReLU()),
        ["node 'act'", "a plain PReLU would be trained by every task", "use ek.EideticPReLU", "declare the wiring by"],
    ),
    "GroupNorm": (
        lambda: two_flat(lambda s, x: s.norm(x), norm=nn.GroupNorm(2, 4)),
        ["GroupNorm has parameters that every task would train"],
    ),
    "LayerNorm": (lambda: two_flat(lambda s, x: s.norm(x), norm=nn.LayerNorm(4)), ["LayerNorm has parameters"]),
    "softmax module": (
        lambda: two_flat(lambda s, x: s.act(x), act=nn.Softmax(1)), ["Softmax is not known to keep units apart"]
    ),
    "softmax over units": (
        lambda: two_flat(lambda s, x: F.softmax(x, 1)), ["node 'softmax'", "it is not known to keep units apart"]
    ),
    "softmax method": (lambda: two_flat(lambda s, x: x.softmax(1)), ["[call_method softmax]", "not known to keep"]),
    "layer called twice": (
        lambda: Net(lambda s, x: s.b(s.b(s.a(x))), a=L(6, 4), b=L(4, 4)),
        ["node 'b_1'", "'b' is called twice", "give each place its own layer"],
    ),
    "normalisation called twice": (
        lambda: Net(lambda s, x: s.n(s.n(s.a(x))), a=L(6, 4), n=N1(4)), ["'n' is called twice"]
    ),
    "flattening from 0": (
        lambda: two_flat(lambda s, x: x.flatten()),
        ["node 'flatten'", "flattening dimensions 0 to -1 mixes samples or units: flatten from 1 to -1"],
    ),
    "flattening space only": (lambda: two_images(lambda s, x: torch.flatten(x, 2)), ["flattening dimensions 2 to -1"]),
    "flattening module": (
        lambda: two_flat(lambda s, x: s.fold(x), fold=nn.Flatten(0)), ["flattening dimensions 0 to -1"]
    ),
    "view of units": (
        lambda: two_images(lambda s, x: x.view(-1, 144)),
        ["only x.view(x.size(0), -1) is understood", "Use x.flatten(1)"],
    ),
    "mean over channels": (
        lambda: two_images(lambda s, x: x.mean(1)),
        ["a mean over dimensions [1] mixes units; only space may be averaged"],
    ),
    "mean over everything": (lambda: two_images(lambda s, x: torch.mean(x)), ["a mean over dimensions all mixes"]),
    "mean over one side": (lambda: two_images(lambda s, x: x.mean(3)), ["average over both"]),
    "functional dropout": (
        lambda: two_flat(lambda s, x: F.dropout(x, 0.5)),
        ["node 'dropout'", "F.dropout does not know which units are frozen: use a torch.nn.Dropout module"],
    ),
    "transposition": (lambda: two_images(lambda s, x: x.transpose(1, 2)), ["not known to keep units apart"]),
    "a slice of units": (lambda: two_flat(lambda s, x: x[:, :2]), ["node 'getitem'", "not known to keep units apart"]),
    "a product over units": (lambda: two_flat(lambda s, x: x @ x.t()), ["not known to keep units apart"]),
    "control flow": (
        lambda: two_flat(lambda s, x: x if x.sum() > 0 else -x),
        ["Net.forward cannot be traced by torch.fx", "Control flow that depends on tensor values", "connections()"],
    ),
    "unused layer": (
        lambda: two_flat(lambda s, x: x, spare=L(3, 3)),
        ["'spare' is not on the way from the input to the features", "use it in forward", "or remove it"],
    ),
    "normalised input": (
        lambda: Net(lambda s, x: s.a(s.n(x)), n=N1(6), a=L(6, 4)),
        ["'n' normalises the network's input", "Normalise the data instead"],
    ),
    "normalisation of another width": (
        lambda: two_flat(lambda s, x: s.n(x), n=N1(5)),
        ["'n' normalises 5 channels, but it is given the 4 units of 'a'"],
    ),
    "normalisation after flattening": (
        lambda: Net(lambda s, x: s.b(s.n(s.a(x).flatten(1))), a=C(3, 4, 3), n=N1(144), b=L(144, 5)),
        ["put the normalisation before the flattening"],
    ),
    "input tied with units": (
        lambda: Net(lambda s, x: s.a(x) + x, a=L(6, 6)),
        ["node 'add'", "units are combined with the network's input", "Put a layer (a 1x1 convolution, say)"],
    ),
    "widths that do not fit an addition": (
        lambda: Net(lambda s, x: s.a(x) + s.b(x), a=L(6, 4), b=L(6, 5)),
        ["4 units are combined with 5; both sides must be as wide and of the same form"],
    ),
    "an image and flat units": (
        lambda: Net(lambda s, x: s.a(x) + s.b(x.flatten(1)), a=C(3, 4, 3), b=L(192, 4)), ["of the same form"]
    ),
    "widths that do not fit a layer": (
        lambda: Net(lambda s, x: s.b(s.a(x)), a=L(6, 4), b=L(8, 5)),
        ["a layer with 8 input columns reads 4 units of 'a': the sizes do not fit"],
    ),
    "pixels that do not fit a layer": (
        lambda: Net(lambda s, x: s.b(s.a(x).flatten(1)), a=C(3, 4, 3), b=L(30, 5)),
        ["a layer with 30 input columns reads 4 units of 'a', flattened: the sizes do not fit"],
    ),
    "an image in a linear layer": (
        lambda: Net(lambda s, x: s.b(s.a(x)), a=C(3, 4, 3), b=L(4, 5)), ["'b' reads an image: flatten it first"]
    ),
    "flat units in a convolution": (
        lambda: Net(lambda s, x: s.b(s.a(x)), a=L(6, 4), b=C(4, 5, 1)), ["flat units; a convolution needs an image"]
    ),
    "the input returned": (lambda: Net(lambda s, x: x, a=L(6, 4)), ["It returned the input"]),
    "a tuple returned": (lambda: Net(lambda s, x: (s.a(x), x), a=L(6, 4)), ["It returned something else"]),
    "an image returned": (
        lambda: Net(lambda s, x: s.a(x), a=C(3, 4, 3)),
        ["the features are an image of 'a'", "AdaptiveAvgPool2d(1), flatten(1)"],
    ),
    "flattened features of unknown size": (
        lambda: Net(lambda s, x: s.a(x).flatten(1), a=C(3, 4, 3)), ["whose size is not known from the code"]
    ),
    "a parameter of one's own": (
        lambda: _with_parameter(two_flat(lambda s, x: x * s.gain)),
        ["node 'gain'", "a tensor of the network is used directly, so its units have no owner"],
    ),
    "a tensor made on the way": (lambda: two_flat(lambda s, x: x * torch.ones(4)), ["used directly"]),
}  # fmt: skip


def _with_parameter(net):
    net.gain = nn.Parameter(torch.ones(4))
    return net


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, texts = REFUSED[name]
    net = make()
    with pytest.raises(ConversionError) as error:
        net.wiring  # noqa: B018
    for text in texts:
        assert text in str(error.value)
    assert not any(layer.owned for layer in net.modules() if hasattr(layer, "owned")), "a refusal changes nothing"


def test_a_wired_network_is_wired_once():
    net = chain()
    assert net.wiring is net.wiring


def test_a_layer_without_units_is_refused():
    with pytest.raises(ek.ConversionError, match="'a' has no units at all; give it a width of 1 or more"):
        Net(lambda s, x: s.a(x), a=L(5, 0)).wiring  # noqa: B018
