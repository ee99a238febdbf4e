"""chunk, split, slices and channel shuffles: the same bits, tasks kept apart, and each slice of units a group."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conversions import assert_teaches, lived_in, take_through
from life import poison
from plain_modules import Plain, conv, pooled
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.layers import Shared, Split
from eidetic_kernels.tasks.importance import taylor_scores

FLAT, IMAGE = (6,), (3, 8, 8)


def shuffled_by_views(x, groups=2):
    n, c, h, w = x.size()
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def shuffled_by_permutation(x, groups=2):
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2)


SHUFFLES = {
    "views": shuffled_by_views,
    "permutation": shuffled_by_permutation,
    "function": lambda x: torch.channel_shuffle(x, 2),
    "module": nn.ChannelShuffle(2),
}


def shufflenet(shuffle="views", width=5):
    """Like ShuffleNetV2, with an odd number of units: halves hold 3 of one layer's units and 2 of another's."""
    both = 2 * width

    def run(net, x):
        shuffle = net.shuffle
        x = F.relu(net.stem(x))
        x = shuffle(torch.cat((F.relu(net.b1(net.d1(x))), F.relu(net.b2(net.d2(F.relu(net.a2(x)))))), 1))
        for a, d, b in ((net.a3, net.d3, net.b3), (net.a4, net.d4, net.b4)):
            x1, x2 = x.chunk(2, dim=1)
            x = shuffle(torch.cat((x1, F.relu(b(d(F.relu(a(x2)))))), dim=1))
        x = F.relu(net.b5(net.d5(x)))  # a depthwise convolution of shuffled units
        return net.fc(F.relu(net.last(x)).mean([2, 3]))

    layers = {}
    for n in (3, 4):
        layers |= {f"a{n}": conv(width, width, 1, bias=False), f"d{n}": conv(width, width, groups=width, bias=False)}
        layers[f"b{n}"] = conv(width, width, 1, bias=False)
    shuffle = SHUFFLES[shuffle]
    layers["shuffle"] = shuffle if isinstance(shuffle, nn.Module) else Plain(lambda net, x: shuffle(x))
    return Plain(
        run,
        stem=conv(3, 4),
        d1=conv(4, 4, groups=4, stride=2),
        b1=conv(4, width, 1),
        a2=conv(4, width, 1),
        d2=conv(width, width, groups=width, stride=2),
        b2=conv(width, width, 1),
        **layers,
        d5=conv(both, both, groups=both),
        b5=conv(both, both, 1),
        last=conv(both, 6, 1),
        fc=nn.Linear(6, 4),
    )


def gated():
    """Halves of one layer's units multiplied with each other: both belong to one group."""

    def run(net, x):
        a, b = net.norm(net.a(x)).chunk(2, 1)
        return net.fc(pooled(F.relu(net.b(a * torch.sigmoid(b)))))

    return Plain(run, a=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), b=conv(4, 5), fc=nn.Linear(5, 4))


def slices():
    def run(net, x):
        x = F.relu(net.a(x))
        half = x.shape[1] // 2
        y = torch.cat([net.b(x[:, half:]), x[:, :3], net.c(x[:, 2:5, :, :])], 1)
        return net.fc(pooled(y[:, -7:]))

    return Plain(run, a=conv(3, 8), b=conv(4, 3), c=conv(3, 4, 1), fc=nn.Linear(7, 4))


def flat_split():
    def run(net, x):
        a, b, c = torch.split(F.relu(net.norm(net.a(x))), [2, 3, 4], dim=-1)
        d = torch.cat(net.b(torch.cat([c, a], 1)).tensor_split(3, 1), 1)
        return net.fc(torch.cat([d, net.drop(b)], 1))

    return Plain(
        run, a=nn.Linear(6, 9), norm=nn.BatchNorm1d(9), b=nn.Linear(6, 6), drop=nn.Dropout(0.2), fc=nn.Linear(9, 4)
    )


def residual_then_halves():
    """Tied layers are cut alike, before and after the cut."""

    def run(net, x):
        y = F.relu(net.a(x))
        z = y + net.b(y)
        first, second = z.chunk(2, 1)
        late = F.relu(z + net.c(y))
        return net.fc(pooled(net.d(late) + F.relu(net.e(second) - first)))

    return Plain(
        run,
        a=conv(3, 6),
        b=conv(6, 6, bias=False),
        c=conv(6, 6),
        d=conv(6, 3),
        e=conv(3, 3, groups=3),
        fc=nn.Linear(3, 4),
    )


def another_cut():
    """Units of concatenations of other sizes are combined: each slice of them is a group of its own."""
    return Plain(
        lambda s, x: s.e(F.relu(torch.cat([s.a(x), s.b(x)], 1) + torch.cat([s.c(x), s.d(x)], 1))),
        a=nn.Linear(6, 4),
        b=nn.Linear(6, 3),
        c=nn.Linear(6, 2),
        d=nn.Linear(6, 5),
        e=nn.Linear(7, 4),
    )


def shuffled_and_flattened():
    """A linear layer reads the pixels of shuffled units."""

    def run(net, x):
        x = net.pool(net.shuffle(F.relu(net.a(x))))
        return net.fc(F.relu(net.b(net.norm(x).flatten(1))))

    return Plain(
        run,
        a=nn.Conv2d(3, 6, 3),
        shuffle=nn.ChannelShuffle(3),
        pool=nn.AdaptiveAvgPool2d(2),
        norm=nn.BatchNorm2d(6),
        b=nn.Linear(24, 5),
        fc=nn.Linear(5, 4),
    )


def input_in_pieces():
    """What belongs to no task is cut and shuffled as torch does it."""

    def run(net, x):
        x = torch.cat([x, x[:, :1]], 1)
        a, b = net.shuffle(x).split(2, 1)
        return net.fc(pooled(F.relu(net.a(a) + net.b(b))))

    return Plain(run, a=conv(2, 5), b=conv(2, 5), shuffle=nn.ChannelShuffle(2), fc=nn.Linear(5, 4))


TABLE = {
    shufflenet: IMAGE,
    gated: IMAGE,
    slices: IMAGE,
    flat_split: FLAT,
    residual_then_halves: IMAGE,
    another_cut: FLAT,
    shuffled_and_flattened: IMAGE,
    input_in_pieces: IMAGE,
}


@pytest.mark.parametrize("make", TABLE, ids=lambda make: make.__name__)
def test_every_promise(make):
    """Same bits, same training step, original untouched, P1 and P3 after AdamW and pruning."""
    take_through(lived_in(make()), torch.randn(8, *TABLE[make]))


@pytest.mark.parametrize("name", SHUFFLES)
def test_ways_to_shuffle(name):
    plain, x = lived_in(shufflenet(name)).eval(), torch.randn(4, *IMAGE)
    net = ek.convert(plain, x[:1])
    assert torch.equal(net(x), plain(x))
    net.finish_task()
    torch.testing.assert_close(net(x, task=0), plain(x), rtol=1e-5, atol=1e-6)


def groups_of(plain, shape):
    net = ek.convert(plain, torch.randn(1, *shape))
    return [(group.name.removeprefix("body."), group.segments.width) for group in net.groups]


def test_each_share_of_a_layers_units_is_a_group():
    assert groups_of(gated(), IMAGE) == [("a.0 (+1 tied)", 4), ("b.0", 5)]
    assert groups_of(slices(), IMAGE)[:4] == [("a.0.0", 2), ("a.0.1", 1), ("a.0.2", 1), ("a.0.3", 1)]
    assert groups_of(another_cut(), FLAT) == [("a.0 (+1 tied)", 2), ("a.1 (+1 tied)", 2), ("b (+1 tied)", 3)]
    names = [name for name, _ in groups_of(shufflenet(), IMAGE)]
    assert names[:3] == ["stem.0", "b1.0.0", "b1.0.1"] and len(names) == len(set(names))


def test_a_cut_between_layers_cuts_none_of_them():
    def run(net, x):
        a, b = torch.cat([net.a(x), net.b(x)], 1).split([4, 3], 1)
        return net.fc(F.relu(a) * net.c(b))

    plain = Plain(run, a=nn.Linear(6, 4), b=nn.Linear(6, 3), c=nn.Linear(3, 4), fc=nn.Linear(4, 4))
    assert groups_of(plain, FLAT) == [("a (+1 tied)", 4), ("b", 3)]
    net = take_through(plain, torch.randn(8, *FLAT))
    assert not any(isinstance(module, Shared) for module in net.modules())


def test_shuffled_units_are_saved_restored_and_routed(tmp_path):
    plain, x = lived_in(shufflenet()), torch.randn(8, *IMAGE)
    net = ek.convert(plain, x)
    before = net.snapshot()
    for importance in ("l2", "taylor"):
        net.prune(0.5, importance, data=[(x, torch.arange(8) % 4)])
        net.restore(before)
        assert torch.equal(net.eval()(x), copy.deepcopy(plain).eval()(x)), "a pruning that was undone"

    net.prune(0.4)
    net.prepare_for_task(1, 3, forward_transfer=False)
    net.prune(0.3)
    net.finish_task()
    net.train_router([[(x, torch.zeros(8).long())], [(x + 1, torch.zeros(8).long())]])

    net.save(tmp_path / "net")
    again = ek.EideticNetwork.load(tmp_path / "net", ek.convert(shufflenet(), x)).eval()
    net.eval()
    for task in range(2):
        assert torch.equal(again(x, task=task), net(x, task=task))
    assert torch.equal(again.predict(x).logits, net.predict(x).logits) and again.certify().ok

    again.prepare_for_task(2, 3)
    poison(again)
    for task in range(2):
        assert torch.equal(again(x, task=task), net(x, task=task))


def test_taylor_scores_reach_the_parts_of_a_divided_layer():
    x = torch.randn(8, *IMAGE)
    net = ek.convert(gated(), x)
    untouched = taylor_scores(net, net.groups, [(x, torch.arange(8) % 4)], F.cross_entropy)
    net.body.a[0].built = None  # as if something had been pruned: each part by itself
    touched = taylor_scores(net, net.groups, [(x, torch.arange(8) % 4)], F.cross_entropy)
    for name, scores in untouched.items():
        assert (scores > 0).all()
        torch.testing.assert_close(scores, touched[name])


# ---- alone


def test_a_split_alone_is_torchs():
    x = torch.randn(2, 6, 3, 3)
    assert all(torch.equal(*pair) for pair in zip(Split([1, 2, 3])(x), x.split([1, 2, 3], 1), strict=True))


def test_a_reordered_layer_gives_the_same_bits_until_it_is_pruned():
    for layer, x in (
        (ek.EideticLinear(9, 5), torch.randn(4, 9)),
        (ek.EideticConv2d(9, 5, 3, padding="same", dilation=2), torch.randn(4, 9, 6, 6)),
    ):
        expected, order = layer(x), torch.randperm(9)
        layer.reorder(order)
        moved = torch.empty_like(x)
        moved[:, order] = x
        assert torch.equal(layer(moved), expected)
        layer.prune([0, 2])
        torch.testing.assert_close(layer(moved), expected[:, [0, 2]])
        layer.freeze()
        torch.testing.assert_close(layer(moved), expected[:, [0, 2]])


# ---- refused


def between(operation, width=4, **layers):
    return Plain(lambda s, x: s.b(operation(s, s.a(x)).mean((2, 3))), a=conv(3, width), b=nn.Linear(width, 4), **layers)


FOLLOWED = {
    "shuffled features": lambda: Plain(lambda s, x: pooled(s.s(s.a(x))), a=conv(3, 4), s=nn.ChannelShuffle(2)),
}


@pytest.mark.filterwarnings("ignore:no layer has a free unit")
@pytest.mark.parametrize("name", FOLLOWED)
def test_what_only_the_capture_can_follow(name):
    take_through(FOLLOWED[name](), torch.randn(8, *IMAGE))


REFUSED = {
    "combined after other shuffles": (
        lambda: between(lambda s, x: s.s(x) + x, s=nn.ChannelShuffle(2)),
        "units are tied in a way that pruning could not follow",
    ),
    "shuffled groups convolved": (
        lambda: between(lambda s, x: s.g(s.s(x)), width=16, s=nn.ChannelShuffle(2), g=nn.Conv2d(16, 16, 1, groups=2)),
        "put together by a shuffle",
    ),
    "a grain cut apart": (
        lambda: between(lambda s, x: torch.cat(s.g(x).split([1, 3], 1), 1), g=nn.Conv2d(4, 4, 1, groups=2)),
        "it cuts through a group",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, text = REFUSED[name]
    with pytest.raises(ek.ConversionError, match=f"(?s){text}") as raised:
        ek.convert(make(), torch.randn(1, *IMAGE))
    if str(raised.value).startswith("node"):
        assert_teaches(str(raised.value))


def test_a_network_of_ones_own_is_told_of_convert():
    """Its forward is run as it stands, so a fixed cut cannot follow pruning."""

    class Halves(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.a, self.b = ek.EideticLinear(6, 8), ek.EideticLinear(4, 4)

        def forward(self, x):
            return self.b(self.a(x).chunk(2, 1)[0])

    with pytest.raises(ek.ConversionError, match=r"which pruning would move(.|\n)*ek.convert understands it"):
        Halves().groups  # noqa: B018
