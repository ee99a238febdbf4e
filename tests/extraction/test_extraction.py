"""net.extract: a finished task as a plain torch module, with the network's logits, for any way of reading."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conversions import extracted_alike
from life import CLASSES, READINGS, batch, digest, learn, poison, recall, train
from small_networks import KINDS, MLP, NETWORKS, ConvNet, Residual
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.layers.linear import UNIT_MAJOR_FROM
from eidetic_kernels.wiring.rules import registry


def learned(net, how="nested", tasks=3, **options):
    for task in range(tasks):
        learn(net, task, how, max_units=0.4 if task else None, **options)
    return net


def plain_layers(module):
    return [each for each in module.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("name", KINDS)
def test_every_tasks_logits(name, how):
    """Also under NaN in everything live, and while a task is in training."""
    net = learned(NETWORKS[name](), how)
    net.prepare_for_task(3, CLASSES, max_units=2)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    poison(net)
    for task in range(3):
        for samples in (2, 9):
            extracted_alike(net, task, batch(net, samples)[0])


class Sequences(nn.Module):
    """Units normalised over the positions of a sequence."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.head = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.a(x).transpose(1, 2))).mean(2))


@pytest.mark.parametrize("positions", [4, 6])
def test_a_norm_over_sequences(positions):
    """As long as there are units of task 0, or longer."""
    net = ek.convert(Sequences(), torch.randn(2, positions, 5))
    net.example = (positions, 5)
    for task in range(2):
        if task:
            net.prepare_for_task(task, CLASSES)
        train(net, torch.optim.SGD(net.parameters(), 0.1), seed=task)
        net.prune(0.5)
        net.finish_task()
    for task in range(2):
        for samples in (1, 7):
            extracted_alike(net, task, batch(net, samples)[0])


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("make", [MLP, ConvNet, Residual])
def test_float64(make, how):
    net = learned(make().double(), how)
    for task in range(3):
        plain = extracted_alike(net, task, batch(net)[0])
        assert {tensor.dtype for tensor in plain.parameters()} == {torch.float64}


@pytest.mark.parametrize("widths", [(300, 257), (67, 45), (150, 201), (33, 111)])
def test_nested_tasks_of_linear_layers_have_the_same_bits(widths):
    """Each product has the shape, and its input the place in memory, that it has in the network; in larger batches,
    where the network's units lie one after the other, products of few units are rounded otherwise."""
    net = learned(MLP(widths))
    for task in range(3):
        for samples in (2, 3, 5, 8, 31, 256):
            x = batch(net, samples)[0]
            with backends.using("torch"):  # what the plain module is made of
                given, expected = net.extract(task)(x), recall(net, x, task)
            if samples < UNIT_MAJOR_FROM:
                assert_same_bits(f"task {task}", given, expected)
            else:
                assert_close(f"task {task}", given, expected)


@pytest.mark.parametrize("widths", [(300, 257), (320, 200)])
def test_of_sixteen_units_and_more_they_have_the_same_bits_in_larger_batches_too(widths):
    net = MLP(widths)
    for task in range(3):
        net.prepare_for_task(task, 16, max_units=0.4 if task else None)
        train(net, torch.optim.SGD(net.parameters(), 0.1), seed=task)
        net.prune(0.4)
        net.finish_task()
    assert all(size >= 16 for group in net.groups for size in group.segments.frozen)
    for task in range(3):
        for samples in (UNIT_MAJOR_FROM, 33, 100, 256):
            x = batch(net, samples)[0]
            with backends.using("torch"):
                assert_same_bits(f"task {task}", net.extract(task)(x), recall(net, x, task))


def test_channels_last():
    net = learned(ConvNet(widths=(20, 33, 40)))
    for task in range(3):
        extracted_alike(net, task, batch(net)[0].to(memory_format=torch.channels_last))


def test_a_disjoint_task_is_extracted_without_the_units_of_others():
    net = learned(MLP(), "disjoint")
    for task in range(3):
        first, second, head = plain_layers(net.extract(task))
        sizes = [group.segments.frozen[task] for group in net.groups]
        assert first.weight.shape == (sizes[0], 6)
        assert second.weight.shape == (sizes[1], sizes[0])
        assert head.weight.shape == (CLASSES, sizes[1])


def test_no_product_with_zeros_is_kept():
    """A nested task's weights are those of its staircase."""
    net = learned(MLP())
    stairs = [layer.staircase(2) for group in net.groups for layer in group.producers.values()]
    stairs.append(net.heads[2].staircase(2))
    weights = sum(layer.weight.numel() for layer in plain_layers(net.extract(2)))
    assert weights == sum(each.multiply_adds() for each in stairs)
    assert weights < sum(each.rows * each.columns for each in stairs)


def test_units_that_only_later_tasks_read_are_left_out_and_those_read_through_others_kept():
    """The head of task 1 reads its own units; these read task 0's in the first layer only."""
    net = MLP(norm=False)
    learn(net, 0)
    path = list(net.wiring.sources)[1]
    net.prepare_for_task(1, CLASSES, {path: True, "head": False}, max_units=3)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.finish_task()
    extracted_alike(net, 1, batch(net)[0])
    names = [name for name, each in net.extract(1).named_modules() if isinstance(each, nn.Linear)]
    assert [name.split(".")[-1] for name in names[:2]] == ["task0", "task1"]
    assert len(names) == 4 and names[2] == path


class Pooled(ek.EideticNetwork):
    """Poolings refuse images without channels."""

    example = (2, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.norm = ek.EideticConv2d(2, 8, 3, padding=1), ek.EideticBatchNorm2d(8, activation="relu")
        self.b = ek.EideticConv2d(8, 8, 3, padding="same", padding_mode="reflect", bias=False)
        self.pool, self.fc = nn.MaxPool2d(2), ek.EideticLinear(32, 12)

    def forward(self, x):
        return F.relu(self.fc(self.pool(F.relu(self.b(self.pool(self.norm(self.a(x)))))).flatten(1)))


def test_a_task_that_reads_no_image_at_all():
    net = Pooled()
    learn(net, 0, max_units=4)
    net.prepare_for_task(1, CLASSES, forward_transfer=False)
    net.prune(1.0)
    net.finish_task()
    for task in range(2):
        extracted_alike(net, task, batch(net)[0])


def test_a_task_whose_images_nobody_reads():
    """Its linear units lost all their inputs to pruning and are constants: yet the images must pass the poolings."""
    net = Pooled()
    learn(net, 0, max_units=4)
    net.prepare_for_task(1, CLASSES, forward_transfer=False)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.apply_plan(ek.PruningPlan("all images", net.plan_pruning(1.0).groups[:2]))
    net.finish_task()
    assert [group.segments.frozen[1] for group in net.groups] == [0, 0, 10]
    for task in range(2):
        extracted_alike(net, task, batch(net)[0])


class Resized(nn.Module):
    """Images that are pooled, padded and resized, beside others, and slopes of their channels."""

    def __init__(self):
        super().__init__()
        self.a, self.slopes, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.MaxPool2d(2)
        self.b, self.c = nn.Conv2d(8, 8, 3), nn.Conv2d(16, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        a = self.slopes(self.a(x))
        b = F.avg_pool2d(F.pad(self.b(F.pad(self.pool(a), (1, 1, 1, 1))), (1, 1, 1, 1)), 3, 1)
        b = F.interpolate(b, scale_factor=2, mode="bilinear")
        both = self.norm(self.c(torch.cat([b, a * a.mean((2, 3), keepdim=True).sigmoid()], 1)))
        return self.head(F.adaptive_avg_pool2d(both.relu(), 1).flatten(1))


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 1, 2]])
def test_a_first_task_without_units_of_images(gone):
    net = ek.convert(Resized(), torch.randn(2, 3, 8, 8))
    groups = net.plan_pruning(1.0).groups
    net.apply_plan(ek.PruningPlan("images", tuple(groups[number] for number in gone)))
    net.example = (3, 8, 8)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    net.finish_task()
    assert [group.segments.frozen[0] for group in net.groups] == [0 if number in gone else 8 for number in range(3)]

    x = batch(net, 3)[0]
    plain = extracted_alike(net, 0, x)
    for other in (pickle.loads(pickle.dumps(plain)), torch.export.export(plain, (x,)).module()):
        assert_same_bits("kept or exported", other(x), plain(x))
    larger = torch.randn(2, 3, 16, 12)
    assert_close("images of another size", plain(larger), net(larger, task=0), condition=10)


def test_a_task_without_units_of_images_in_a_network_that_cannot_be_traced():
    class ByHand(Pooled):
        def connections(self):
            return {"a": "input", "norm": "a", "b": "norm", "fc": "b", "output": "fc"}

        def forward(self, x):
            return Pooled.forward(self, x if x.mean() < 1e9 else x / 2)

    net = ByHand()
    learn(net, 0, fraction=1.0)
    with pytest.raises(ek.ConversionError, match=r"took no unit of some layer.*refuses images without channels"):
        net.extract(0)


@pytest.mark.parametrize("name", KINDS)
def test_a_first_task_without_any_unit(name):
    net = NETWORKS[name]()
    learn(net, 0, fraction=1.0)
    extracted_alike(net, 0, batch(net)[0])


@pytest.mark.parametrize("gone", [[0], [1], [0, 1]])
def test_images_without_channels_keep_their_size(gone):
    """Convolutions that lost all their inputs are constants over an image, whose size they still decide."""

    class Strided(ek.EideticNetwork):
        example = (2, 9, 7)

        def __init__(self):
            super().__init__()
            self.a, self.b = ek.EideticConv2d(2, 4, 3, stride=2), ek.EideticConv2d(4, 5, 2, padding=1, bias=False)
            self.fc = ek.EideticLinear(5 * 5 * 4, 6)

        def forward(self, x):
            return F.relu(self.fc(self.b(self.a(x)).flatten(1)))

    net = Strided()
    net.prepare_for_task(0, CLASSES)
    train(net, torch.optim.SGD(net.parameters(), 0.1))
    groups = net.plan_pruning(1.0).groups
    net.apply_plan(ek.PruningPlan("some", tuple(groups[number] for number in gone)))
    net.finish_task()
    learn(net, 1)
    for task in range(2):
        extracted_alike(net, task, batch(net)[0])


class Squash(nn.Module):
    """A user's own module, with a rule of its own."""

    def forward(self, x):
        return x / (1 + x.abs())


def test_ones_own_modules_and_functions_are_copied(monkeypatch):
    for rules in (registry.MODULES, registry.REGISTERED):
        monkeypatch.setitem(rules, Squash, ek.rules.passes)
    net = ek.convert(nn.Sequential(nn.Linear(6, 8), Squash(), nn.Dropout(), nn.Linear(8, 3)), torch.randn(1, 6))
    net.example = (6,)
    net.finish_task()
    plain = extracted_alike(net, 0, batch(net)[0])
    assert [name for name, _ in plain.named_children()] == ["0", "1", "head"]
    assert isinstance(plain.get_submodule("1"), Squash)
    assert plain.state_dict().keys() == {"0.weight", "0.bias", "head.weight", "head.bias"}


def test_a_layer_called_head_stays_apart_from_the_tasks_head():
    class Net(MLP):
        def __init__(self):
            super().__init__()
            self.head = ek.EideticLinear(8, 5)

        def forward(self, x):
            return self.head(super().forward(x))

    extracted_alike(learned(Net()), 2, batch(MLP())[0])


class ByHand(ek.EideticNetwork):
    """Its forward cannot be traced: it asks for values."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": ek.EideticLinear(6, 8), "norm": ek.EideticBatchNorm1d(8)})
        self.last, self.drop = ek.EideticLinear(8, 7), nn.Dropout(0.5)
        self.slope = 0.1
        self.register_buffer("scale", torch.tensor(2.0))

    def activation(self, x):
        return F.leaky_relu(x, self.slope) * self.scale

    def forward(self, x):
        if x.abs().max() > 100:
            x = x / 100
        return self.activation(self.last(self.drop(self.layers["norm"](self.layers["a"](x)))))

    def connections(self):
        return {
            "layers.a": "input",
            "layers.norm": "layers.a",
            "drop": "layers.norm",
            "last": "drop",
            "output": "last",
        }


@pytest.mark.parametrize("how", READINGS)
def test_a_network_wired_by_hand_keeps_its_own_forward(how):
    net = learned(ByHand(), how)
    x = batch(net)[0]
    for task in range(3):
        extracted_alike(net, task, x)
        plain = extracted_alike(net, task, 300 * x)  # the other branch
        assert not torch.allclose(plain(300 * x), plain(300 * x / 100 * 90))
        assert not isinstance(plain.body, ek.EideticNetwork)
    assert set(plain.body.state_dict()) >= {"scale"} and not plain.body.state_dict().keys() & {"probe"}


class OwnNorms(ek.EideticNetwork):
    """Convolutions and a linear layer that own their norms, and residuals: of a layer's own norm and of one apart."""

    example = (2, 4, 4)

    def __init__(self, activation="relu"):
        super().__init__()

        def norm(width, kind=ek.EideticBatchNorm2d):
            return kind(width, activation=activation)

        self.stem = ek.EideticConv2d(2, 7, 3, padding=1, norm=norm(7))
        self.inner = ek.EideticConv2d(7, 5, 3, padding=1, bias=False, norm=norm(5))
        self.outer = ek.EideticConv2d(5, 7, 3, padding=1, norm=norm(7))
        self.last, self.bn = ek.EideticConv2d(7, 7, 1), norm(7)
        self.fc = ek.EideticLinear(7 * 16, 9, norm=norm(9, ek.EideticBatchNorm1d))

    def forward(self, x):
        return self.features(self.stem(x))

    def features(self, x):
        x = self.outer(self.inner(x), residual=x)
        return self.fc(self.bn(self.last(x), x).flatten(1))


class OwnNormsByHand(OwnNorms):
    def forward(self, x):
        return self.features(self.stem(x if x.sum() > -1e9 else -x))

    def connections(self):
        return {
            "stem": "input",
            "inner": "stem",
            "outer": "inner",
            "last": ("outer", "stem"),
            "bn": "last",
            "fc": ("bn", "outer"),
            "output": "fc",
        }


@pytest.mark.parametrize("make", [OwnNorms, OwnNormsByHand])
@pytest.mark.parametrize("how", READINGS)
def test_layers_that_own_their_norms_and_residuals(make, how):
    """One life with three tasks; the last has the activations that are computed in place."""
    net = learned(make("hardswish" if how == "mixed" else "relu"), how)
    for task in range(3):
        for samples in (1, 7):
            plain = extracted_alike(net, task, batch(net, samples)[0])
    names = dict(plain.named_parameters())
    body = "body." if make is OwnNormsByHand else ""
    assert {f"{body}stem.scale", f"{body}outer.shift"} <= names.keys()
    again = pickle.loads(pickle.dumps(plain)) if make is OwnNorms else copy.deepcopy(plain)
    assert_same_bits("a copy", again(batch(net)[0]), plain(batch(net)[0]))


@pytest.mark.parametrize("make", [OwnNorms, OwnNormsByHand])
def test_a_residual_is_added_before_the_activation(make):
    """Large negative residuals show on which side of the ReLU they were added."""
    net = learned(make(), tasks=1)
    plain = net.extract(0)
    norm = (plain.body if make is OwnNormsByHand else plain).bn
    x = torch.randn(2, norm.scale.shape[0], 3, 3)
    assert torch.equal(norm(x, torch.full_like(x, -1e4)), torch.zeros_like(x))
    if make is OwnNormsByHand:
        assert_same_bits("no residual", norm(x), torch.relu(torch.addcmul(norm.shift, x, norm.scale)))
    else:
        with pytest.raises(TypeError, match="residual"):
            norm(x)


def test_a_residual_over_two_groups_side_by_side():
    class Joined(ek.EideticNetwork):
        example = (2, 4, 4)

        def __init__(self):
            super().__init__()
            self.a, self.b = ek.EideticConv2d(2, 4, 3, padding=1), ek.EideticConv2d(2, 3, 3, padding=1)
            self.bn, self.pool = ek.EideticBatchNorm2d(7, activation="relu"), nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            x = torch.cat([self.a(x), self.b(x)], 1)
            return self.pool(self.bn(x, residual=x)).flatten(1)

    net = learned(Joined())
    for task in range(3):
        extracted_alike(net, task, batch(net)[0])


def test_the_network_is_left_as_it_was_and_shares_nothing():
    net = learned(MLP())
    net.train()
    x, before = batch(net)[0], digest(net)
    answers = [recall(net, x, task) for task in range(3)]
    for task in range(3):
        plain = net.extract(task)
        with torch.no_grad():
            for tensor in plain.parameters():
                tensor.fill_(float("nan"))
    assert digest(net) == before
    for task in range(3):
        assert_same_bits(f"task {task}", recall(net, x, task), answers[task])


def test_it_can_be_trained_and_is_the_same_in_training_mode():
    net = learned(ConvNet())
    plain, (x, y) = net.extract(2), batch(net)
    assert_same_bits("training mode", plain.train()(x), plain.eval()(x))
    loss = F.cross_entropy(plain(x), y)
    loss.backward()
    assert all(tensor.grad is not None for tensor in plain.parameters())
    torch.optim.SGD(plain.parameters(), 0.05).step()
    assert F.cross_entropy(plain(x), y) < loss


@pytest.mark.parametrize("task", [-1, 1, 2, 0.0, True, None])
def test_a_task_that_is_not_finished(task):
    net = MLP()
    learn(net, 0)
    net.prepare_for_task(1, CLASSES)
    with pytest.raises(ek.TaskError, match=r"cannot be extracted: finished tasks are 0\.\.0"):
        net.extract(task)


def test_a_task_may_be_a_number_of_numpy_s():
    net = learned(MLP())
    x, _ = batch(net)
    assert torch.equal(net.extract(np.int64(0))(x), net.extract(0)(x))


def test_no_task_is_finished():
    with pytest.raises(ek.TaskError, match="task True cannot be extracted"):
        learned(MLP()).extract(True)
    with pytest.raises(ek.TaskError, match="no task is finished"):
        MLP().extract(0)


def test_a_layer_without_a_plain_version_is_named(monkeypatch):
    from eidetic_kernels.extraction import layers

    net = learned(MLP())
    monkeypatch.delitem(layers.PLAIN, ek.EideticBatchNorm1d.__mro__[1])
    with pytest.raises(ek.ConversionError, match="EideticBatchNorm1d has no plain version"):
        net.extract(0)


def test_it_can_be_copied_and_pickled_again_and_again():
    net = learned(ConvNet(), "mixed")
    plain, x = net.extract(2), batch(net)[0]
    again = pickle.loads(pickle.dumps(copy.deepcopy(plain)))
    assert_same_bits("a copy of a copy", pickle.loads(pickle.dumps(again))(x), plain(x))
