"""Layers that own their norm compute what the layer and the norm do one after the other, and live one life."""

import copy
from functools import partial

import pytest
import torch
from life import Memory, batch, learn, loss_of, poison, recall, train
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.errors import InputError, TaskError


class Unfused(ek.EideticNetwork):
    """Two linear layers with norms of their own."""

    example = (6,)

    def __init__(self, activation="relu"):
        super().__init__()
        self.first = ek.EideticLinear(6, 12, bias=False)
        self.first_norm = ek.EideticBatchNorm1d(12, activation=activation)
        self.second = ek.EideticLinear(12, 9)
        self.second_norm = ek.EideticBatchNorm1d(9, activation=activation)

    def forward(self, x):
        return self.second_norm(self.second(self.first_norm(self.first(x))))


class Fused(ek.EideticNetwork):
    example = (6,)

    def __init__(self, activation="relu"):
        super().__init__()
        self.first = ek.EideticLinear(6, 12, bias=False, norm=ek.EideticBatchNorm1d(12, activation=activation))
        self.second = ek.EideticLinear(12, 9, norm=ek.EideticBatchNorm1d(9, activation=activation))

    def forward(self, x):
        return self.second(self.first(x))


class UnfusedImages(ek.EideticNetwork):
    """A stem and a residual block whose addition comes before its last activation."""

    example = (2, 4, 4)

    def __init__(self, activation="relu"):
        super().__init__()
        self.stem, self.stem_norm = ek.EideticConv2d(2, 7, 3, padding=1), ek.EideticBatchNorm2d(7)
        self.inner, self.inner_norm = ek.EideticConv2d(7, 5, 3, padding=1), ek.EideticBatchNorm2d(5)
        self.outer, self.outer_norm = ek.EideticConv2d(5, 7, 3, padding=1, bias=False), ek.EideticBatchNorm2d(7)
        self.act = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.act(self.stem_norm(self.stem(x)))
        y = self.act(self.inner_norm(self.inner(x)))
        return self.pool(self.act(self.outer_norm(self.outer(y)) + x)).flatten(1)


class FusedImages(ek.EideticNetwork):
    example = (2, 4, 4)

    def __init__(self, activation="relu"):
        super().__init__()

        def norm(width):
            return ek.EideticBatchNorm2d(width, activation=activation)

        self.stem = ek.EideticConv2d(2, 7, 3, padding=1, norm=norm(7))
        self.inner = ek.EideticConv2d(7, 5, 3, padding=1, norm=norm(5))
        self.outer = ek.EideticConv2d(5, 7, 3, padding=1, bias=False, norm=norm(7))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.stem(x)
        return self.pool(self.outer(self.inner(x), residual=x)).flatten(1)


PAIRS = {"linear": (Fused, Unfused), "images": (FusedImages, UnfusedImages)}


def renamed(state):
    return {name.replace("_norm.", ".norm."): tensor for name, tensor in state.items()}


def pair(name, activation="relu"):
    """A fused and an unfused network with the same weights."""
    fused, unfused = (make(activation) for make in PAIRS[name])
    fused.load_state_dict(renamed(unfused.state_dict()))
    return fused, unfused


def assert_same_networks(fused, unfused, event):
    ours, theirs = fused.state_dict(), renamed(unfused.state_dict())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert_same_bits(f"{name} after {event}", ours[name].float(), tensor.float())


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_bits_as_two_layers_in_training_and_recall_over_three_tasks(name):
    nets = pair(name)
    with backends.using("torch"):
        for task in range(3):
            answers = []
            for net in nets:
                torch.manual_seed(task)
                net.prepare_for_task(task, 3)
                optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
                train(net, optimizer, 3, seed=task)
                net.prune(0.5, optimizer=optimizer)
                train(net, optimizer, 2, seed=task)
                net.eval()
                answers.append([net(batch(net, 7)[0])])

            assert_same_networks(*nets, f"training task {task}")
            for net, given in zip(nets, answers):
                net.finish_task()
                given += [recall(net, batch(net, 7)[0], k) for k in range(task + 1)]
            for k, (ours, theirs) in enumerate(zip(*answers)):
                assert_same_bits(f"logits {k} in task {task}", ours, theirs)
    assert_same_networks(*nets, "all")


@pytest.mark.parametrize("activation", ek.ops.ACTIVATIONS)
def test_every_activation_and_the_exact_gradient_of_the_input(activation):
    fused, unfused = Fused(activation), Unfused(activation)
    fused.load_state_dict(renamed(unfused.state_dict()))
    with backends.using("torch"):
        for net in (fused, unfused):
            torch.manual_seed(1)
            learn(net, 0)
            net.prepare_for_task(1, 3)
        assert_same_networks(fused, unfused, "the first task")

        gradients = []
        for net in (fused, unfused):
            net.train()
            x, y = batch(net)
            F.cross_entropy(net(x.requires_grad_()), y).backward()
            gradients.append([x.grad, *(p.grad for p in net.parameters())])
        assert gradients[0][0].any()

        # silu and gelu: the library's derivatives of a value depend on where it lies
        uneven = activation in ("silu", "gelu")
        equal = partial(assert_close, least=1.0) if uneven else assert_same_bits
        order = [name for name, _ in unfused.named_parameters()]
        theirs = dict(zip(renamed(dict.fromkeys(order)), gradients[1][1:]))
        equal("input", gradients[0][0], gradients[1][0])
        for (name, _), gradient in zip(fused.named_parameters(), gradients[0][1:]):
            equal(name, gradient, theirs[name])


@pytest.mark.parametrize("name", PAIRS)
def test_recall_survives_later_tasks_poison_saving_and_snapshots(name, tmp_path):
    net = PAIRS[name][0]()
    memory = Memory(net)
    for task in range(3):
        net.prepare_for_task(task, 3, max_units=0.5 if task else None)
        optimizer = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.5)
        train(net, optimizer, 2, seed=task)

        snapshot = net.snapshot(optimizer)
        before = copy.deepcopy(net.state_dict())
        net.prune(0.6, "taylor", optimizer=optimizer, data=[batch(net)])
        train(net, optimizer, 1, seed=task)
        net.restore(snapshot, optimizer)
        for key, tensor in net.state_dict().items():
            assert torch.equal(tensor, before[key]), key

        net.prune(0.6, optimizer=optimizer)
        train(net, optimizer, 1, seed=task)
        memory.check(net, "training")
        net.finish_task()
        memory.note(net)

        net.save(tmp_path / "net")
        net = type(net).load(tmp_path / "net")
        memory.check(net, "loading")
        net.certify().check()

    net.prepare_for_task(3, 3)
    poison(net)
    memory.check(net, "poison")
    assert net.groups[0].norms and all(path.endswith(".norm") for group in net.groups for path in group.norms)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (ek.EideticLinear(5, 8, norm=ek.EideticBatchNorm1d(8, activation="silu")), torch.randn(6, 5)),
        lambda: (ek.EideticConv2d(3, 8, 3, norm=ek.EideticBatchNorm2d(8, activation="silu")), torch.randn(2, 3, 5, 5)),
    ],
    ids=["linear", "conv"],
)
def test_a_layer_alone_lives_with_its_norm(make):
    layer, x = make()
    said = []
    for _ in range(2):
        layer(x).sum().backward()
        layer.prune([0, 2, 3])
        layer.freeze()
        said.append(layer.eval()(x).detach())
        layer.recycle()
        layer.train()
    assert layer.norm.frozen_scale.shape == (6,) and layer.norm.weight.shape == (2,)
    assert layer(x).shape[1] == 8
    assert_same_bits("the first task", layer(x)[:, :3].detach(), said[0])
    assert_same_bits("both tasks", layer(x)[:, :6].detach(), said[1])
    for call in (lambda: layer.norm.prune([0]), layer.norm.freeze, layer.norm.recycle):
        with pytest.raises(TaskError, match="part of another"):
            call()


def test_the_running_statistics_of_the_part_move():
    layer = ek.EideticLinear(5, 8, norm=ek.EideticBatchNorm1d(8))
    layer(torch.randn(6, 5))
    assert layer.norm.running_mean.any() and layer.norm.num_batches_tracked == 1
    with pytest.raises(InputError, match="more than one value per channel"):
        layer(torch.randn(1, 5))
    assert layer.norm.num_batches_tracked == 1


def test_errors_of_the_norm():
    with pytest.raises(InputError, match="norm has 7 channels and the layer 8 units"):
        ek.EideticLinear(5, 8, norm=ek.EideticBatchNorm1d(7))
    with pytest.raises(InputError, match="must be a fresh EideticBatchNorm1d; got EideticBatchNorm2d"):
        ek.EideticLinear(5, 8, norm=ek.EideticBatchNorm2d(8))
    with pytest.raises(InputError, match="must be a fresh EideticBatchNorm2d; got BatchNorm2d"):
        ek.EideticConv2d(5, 8, 3, norm=nn.BatchNorm2d(8))
    used = ek.EideticBatchNorm1d(8)
    ek.EideticLinear(5, 8, norm=used)
    with pytest.raises(InputError, match="already pruned, frozen or added to a network"):
        ek.EideticLinear(5, 8, norm=used)
    with pytest.raises(InputError, match=r"normalises its units and expects \[N, 5\]"):
        ek.EideticLinear(5, 8, norm=ek.EideticBatchNorm1d(8))(torch.randn(2, 3, 5))
    with pytest.raises(InputError, match="has no norm to take a residual"):
        ek.EideticConv2d(5, 8, 1)(torch.randn(2, 5, 3, 3), torch.randn(2, 8, 3, 3))
    with pytest.raises(InputError, match="adds a residual shaped as its input"):
        ek.EideticBatchNorm1d(4)(torch.randn(3, 4), torch.randn(3, 5))


@pytest.mark.parametrize("training", [True, False])
def test_what_a_convolution_with_its_norm_refuses_changes_nothing(training):
    layer = ek.EideticConv2d(2, 4, 3, norm=ek.EideticBatchNorm2d(4)).train(training)
    x = torch.randn(2, 2, 5, 5)
    before = copy.deepcopy(layer.state_dict())
    for images, residual, message in (
        (x, torch.randn(2, 4, 5, 5), r"residual shaped as its input, \[2, 4, 3, 3\]; got a tensor \[2, 4, 5, 5\]"),
        (x[:, :, :2], None, "kernel larger than its input of 2 x 5 pixels"),
        (x[:, :1], None, "expects an input of shape"),
        *([(x[:1, :, :3, :3], None, "more than one value per channel")] if training else []),
    ):
        with pytest.raises(InputError, match=message):
            layer(images, residual)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    layer(x, torch.randn(2, 4, 3, 3))
    assert layer.norm.num_batches_tracked == int(training)


# ---- residuals


class Tied(ek.EideticNetwork):
    """A residual given to a norm, by position or by name: stem and outer share one group."""

    example = (6,)

    def __init__(self, named=True):
        super().__init__()
        self.named = named
        self.stem, self.inner, self.outer = ek.EideticLinear(6, 8), ek.EideticLinear(8, 5), ek.EideticLinear(5, 8)
        self.norm = ek.EideticBatchNorm1d(8, activation="relu")

    def forward(self, x):
        x = self.stem(x)
        y = self.outer(F.relu(self.inner(x)))
        return self.norm(y, residual=x) if self.named else self.norm(y, x)


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by position"])
def test_a_residual_ties_its_units(named):
    net = Tied(named)
    assert [sorted(group.producers) for group in net.groups] == [["outer", "stem"], ["inner"]]
    memory = Memory(net)
    learn(net, 0)
    memory.note(net)
    learn(net, 1)
    memory.check(net, "the second task")


def test_a_residual_computes_the_addition():
    with backends.using("torch"):
        net, x = Tied(), torch.randn(7, 6)
        plain = copy.deepcopy(net)
        plain.norm.activation = "none"
        for module in (net, plain):
            module.prepare_for_task(0, 3)
        stem = plain.stem(x)
        expected = F.relu(plain.norm(plain.outer(F.relu(plain.inner(stem)))) + stem)
        assert_same_bits("features", net.compute_features(x), expected)
    y, labels = batch(net)
    loss_of(net, y, labels).backward()
    assert net.stem.weight.grad.any()


class TwoGroups(ek.EideticNetwork):
    """A norm over two concatenated groups, with a residual of the same two."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.a, self.b = ek.EideticLinear(6, 4), ek.EideticLinear(6, 5)
        self.c, self.d = ek.EideticLinear(9, 4), ek.EideticLinear(9, 5)
        self.norm = ek.EideticBatchNorm1d(9, activation="relu")

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1)
        return self.norm(torch.cat([self.c(x), self.d(x)], 1), residual=x)


def test_a_residual_over_several_groups():
    net = TwoGroups()
    assert [sorted(group.producers) for group in net.groups] == [["a", "c"], ["b", "d"]]
    memory = Memory(net)
    for task in range(2):
        learn(net, task)
        memory.check(net, "the next task")
        memory.note(net)
