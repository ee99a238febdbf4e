"""Modules of no task in a network wired by hand: frozen when it is wired, and fingerprinted."""

import copy
import warnings

import pytest
import torch
from life import Memory, batch, train
from torch import nn
from torch.nn.utils import prune

import eidetic_kernels as ek
from eidetic_kernels.layers import EideticPositionNetwork
from eidetic_kernels.tasks.foreign import freeze_foreign


class Backbone(ek.EideticNetwork):
    """A plain backbone (with statistics and dropout), one eidetic layer, and a parameter of the network's own."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(8))
        self.layer = ek.EideticLinear(8, 12)

    def connections(self):
        return {"layer": "input", "output": "layer"}

    def forward(self, x):
        return self.layer(self.backbone(x) * self.scale).relu()


def prepared(freeze=False):
    net = Backbone()
    if freeze:
        net.backbone.requires_grad_(False)
        net.scale.requires_grad_(False)
        net.prepare_for_task(0, 3, max_units=0.4)
        return net
    with pytest.warns(UserWarning, match="'backbone', 'scale': 80 parameters belong to no task and are frozen"):
        net.prepare_for_task(0, 3, max_units=0.4)
    return net


def test_no_optimizer_sees_them_and_no_mode_wakes_them():
    net = prepared()
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"layer", "heads"}
    for each in (net.train(), copy.deepcopy(net).train(), net.eval().train()):
        assert each.training and each.layer.training and not any(m.training for m in each.backbone.modules())


def test_an_optimizer_made_before_they_were_frozen_moves_nothing_of_them():
    net = Backbone()
    optimizer = torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5)
    before = {name: value.clone() for name, value in net.state_dict().items() if name.startswith(("backbone", "scale"))}
    with pytest.warns(UserWarning, match="belong to no task"):
        net.prepare_for_task(0, 3, optimizer=optimizer)
    train(net, optimizer, 4)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_finished_tasks_keep_their_bits(tmp_path):
    net = prepared()
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    net.finish_task()
    memory = Memory(net)
    memory.note(net)
    net.prepare_for_task(1, 3)
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    memory.check(net, "training of the next task")
    assert net.certify().ok and not net.certify().notes
    net.save(tmp_path / "net")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = ek.EideticNetwork.load(tmp_path / "net")
    memory.check(again, "loading")
    assert again.certify().ok


@pytest.mark.parametrize("path", ["backbone.0.weight", "backbone.1.running_mean", "scale"])
def test_a_changed_one_is_found(path):
    net = prepared(freeze=True)
    net(batch(net)[0])
    net.finish_task()
    with torch.no_grad():
        net.state_dict()[path].add_(1e-3)
    assert any("belong to no task are not the ones that were recorded" in line for line in net.certify().problems)


def test_what_is_frozen_already_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(freeze=True)


class Gain(ek.EideticLinear):
    """A subclass with a parameter and statistics of its own, which no unit owns."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("offset", torch.zeros(1))

    def forward(self, x):
        return super().forward(x) * self.gain + self.get_buffer("offset")


class Helped(ek.EideticLinear):
    """A subclass with a plain module inside."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.extra = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))

    def forward(self, x):
        return super().forward(x) * self.extra(x[:, :1]).sigmoid()


class Block(nn.Module):
    """A module of the user's with a layer of ours and a parameter beside it."""

    def __init__(self, *sizes):
        super().__init__()
        self.layer = ek.EideticLinear(*sizes)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.layer(x) * self.gain


class Holding(ek.EideticNetwork):
    """A traced network of one such module and a layer; ``ByHand`` has it wired by hand."""

    example = (6,)

    def __init__(self, made):
        super().__init__()
        self.a, self.b = made(6, 12), ek.EideticLinear(12, 12, norm=ek.EideticBatchNorm1d(12))

    def forward(self, x):
        return self.b(self.a(x).relu()).relu()


class ByHand(Holding):
    def connections(self):
        inside = "a.layer" if isinstance(self.a, Block) else "a"
        return {inside: "input", "b": inside, "output": "b"}


HOLDING = [
    (Holding, Gain, ["a.gain", "a.offset"]),
    (ByHand, Gain, ["a.gain", "a.offset"]),
    (Holding, Helped, ["a.extra.0.weight", "a.extra.1.running_mean"]),
    (ByHand, Helped, ["a.extra.0.weight", "a.extra.1.running_mean"]),
    (ByHand, Block, ["a.gain"]),
]


def held_by(network, made):
    net = network(made)
    with pytest.warns(UserWarning, match=r"'a[a-z0-9.]*': \d+ parameters belong to no task and are frozen"):
        net.prepare_for_task(0, 3, max_units=0.4)
    return net


@pytest.mark.parametrize("network, made, paths", HOLDING)
def test_what_is_added_to_a_layer_belongs_to_no_task(network, made, paths, tmp_path):
    net = held_by(network, made)
    names = {name for name, _ in net.named_parameters()}
    assert not names.intersection(paths) and {"a.layer.weight", "a.weight"} & names and "b.norm.weight" in names
    assert net.train().b.training and (made is not Helped or not net.a.extra[1].training)
    everything = [p for module in net.modules() for p in module._parameters.values() if p is not None]
    train(net, torch.optim.AdamW([p for p in everything if p.requires_grad], 0.1, weight_decay=0.5))
    net.finish_task()

    memory = Memory(net)
    memory.note(net)
    net.prepare_for_task(1, 3)
    snapshot = net.snapshot()
    train(net, torch.optim.AdamW(net.parameters(), 0.1, weight_decay=0.5))
    net.prune(0.3)
    net.restore(snapshot)
    memory.check(net, "training of the next task")
    assert net.certify().ok and not net.certify().notes

    net.save(tmp_path / "net")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = type(net).load(tmp_path / "net", network=network(made))
    memory.check(again, "loading")
    for other in (again, copy.deepcopy(net)):
        assert {name for name, _ in other.named_parameters()}.isdisjoint(paths)
        assert other.certify().ok


@pytest.mark.parametrize("network, made, paths", HOLDING)
def test_a_change_of_what_was_added_is_found(network, made, paths):
    net = held_by(network, made)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.finish_task()
    for path in paths:
        changed = copy.deepcopy(net)
        with torch.no_grad():
            changed.state_dict()[path].add_(1e-3)
        problems = changed.certify().problems
        assert any("belong to no task are not the ones that were recorded" in line for line in problems)
    assert net.certify().ok


def test_a_parameter_that_is_added_to_an_attention_is_frozen():
    attention = ek.EideticMultiheadAttention(8, 2)
    attention.gain = nn.Parameter(torch.ones(1))
    with pytest.warns(UserWarning, match=r"'0\.gain': 1 parameters belong to no task"):
        foreign = freeze_foreign(nn.Sequential(attention), frozenset())
    assert [*foreign.parameters()] == [attention.gain] and attention.training
    assert [name for name, p in attention.named_parameters() if not p.requires_grad] == ["gain"]


def test_every_tensor_of_the_packages_own_layers_is_known():
    """What a layer holds is cut, frozen and renewed with its units, or found to belong to no task."""
    layers = [
        ek.EideticLinear(4, 4, norm=ek.EideticBatchNorm1d(4)),
        ek.EideticConv2d(4, 4, 3, norm=ek.EideticBatchNorm2d(4)),
        ek.EideticGroupedConv2d(4, 2, 3),
        ek.EideticDepthwiseConv2d(4, 3),
        ek.EideticLayerNorm(4),
        ek.EideticPReLU(4),
        ek.EideticParameter(torch.ones(1, 4)),
        *ek.EideticMultiheadAttention(4, 2).children(),
        EideticPositionNetwork(torch.ones(9, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), 2),
    ]
    for layer in layers:
        for part in layer.together():
            tensors = {*dict(part.named_parameters(recurse=False)), *dict(part.named_buffers(recurse=False))}
            assert tensors <= {*part.live_names, *part.frozen_names}, part


@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_weight_that_is_computed_is_refused(compute):
    net = Holding(ek.EideticLinear)
    compute(net.b)
    with pytest.raises(ek.ConversionError, match="'b' is a .*computed from other tensors.*remove_parametrizations"):
        net.prepare_for_task(0, 3)
    assert net.current_task is None


def test_a_backbone_without_sizes_is_refused():
    net = Backbone()
    net.backbone[0] = nn.LazyLinear(8)
    with pytest.raises(ek.ConversionError, match=r"'backbone\.0' is a LazyLinear.*no size yet.*Run it once"):
        net.prepare_for_task(0, 3)
    assert all(p.requires_grad for p in net.backbone[1].parameters()), "nothing was frozen"
    net.backbone(torch.ones(2, 6))
    with pytest.warns(UserWarning, match="belong to no task"):
        net.prepare_for_task(0, 3)
    train(net, torch.optim.SGD(net.parameters(), 0.1))


def test_a_module_without_sizes_is_not_converted():
    with pytest.raises(ek.ConversionError, match=r"'0' is a LazyLinear.*no size yet.*Run it once"):
        ek.convert(nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 6))
