"""The plain twin that methods without segments train computes what the eidetic network computes."""

import pytest
import torch
from small_networks import NETWORKS
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import EideticStochasticDepth
from eidetic_training import models
from eidetic_training.methods.networks import NormStatistics, PlainNetwork, count, plain

SHAPES = {"mlp": (1, 5, 5), "convnet": (2, 8, 8), "resnet18": (3, 8, 8)}
NAMES = [name for name in NETWORKS if name != "grouped"]


def built(name):
    torch.manual_seed(3)
    if name in SHAPES:
        arguments = {} if name == "resnet18" else {"width": 4}
        return models.build(name, SHAPES[name], **arguments), SHAPES[name]
    net = NETWORKS[name]()
    return net, net.example


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*NAMES, *SHAPES])
def test_the_twin_has_the_same_features_and_no_layer_of_ours(name, training):
    net, shape = built(name)
    twin = PlainNetwork(built(name)[0])
    net.prepare_for_task(0, 3)
    for module in (*net.modules(), *twin.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or hasattr(module, "running_mean"):
            module.momentum = 0.3
    assert not any(type(m).__module__.startswith("eidetic_kernels") for m in twin.modules())
    net.train(training), twin.train(training)
    x = torch.randn(6, *shape)
    for _ in range(2):  # the second pass has the first one's statistics
        torch.manual_seed(1)
        expected = net.compute_features(x)
        torch.manual_seed(1)
        features = twin.features(x)
        assert features.shape == (6, twin.columns)
        if not training or name in SHAPES:  # dropout draws other numbers
            torch.testing.assert_close(features, expected)


class WithAttributes(ek.EideticNetwork):
    def __init__(self):
        super().__init__()
        self.features = ek.EideticLinear(6, 5)  # a name that the twin uses itself
        self.factor = 3.0

    def forward(self, x):
        return F.relu(self.features(x)) * self.factor


def test_attributes_and_any_layer_s_name_come_along():
    torch.manual_seed(0)
    net = WithAttributes()
    torch.manual_seed(0)
    twin = PlainNetwork(WithAttributes())
    x = torch.randn(4, 6)
    expected = 3 * F.relu(F.linear(x, net.features.weight, net.features.bias))
    torch.testing.assert_close(twin.features(x), expected)


def test_the_body_s_parameters_are_all_but_the_heads():
    twin = PlainNetwork(built("mlp-without-norm")[0])
    twin.add_head(3)
    names = [name for name, _ in twin.body_parameters()]
    assert names == [name for name, _ in twin.named_parameters() if not name.startswith("task_heads")]
    assert count(p for _, p in twin.body_parameters()) == 6 * 10 + 10 + 10 * 8 + 8


def test_the_latest_head_answers_when_none_is_named():
    twin = PlainNetwork(built("mlp-without-norm")[0])
    first, second = twin.add_head(3), twin.add_head(3)
    twin.eval()
    x = torch.randn(4, 6)
    assert torch.equal(twin(x), second(twin.features(x))) and torch.equal(twin(x, 0), first(twin.features(x)))


@pytest.mark.parametrize("name", SHAPES)
def test_the_twin_and_its_heads_are_where_the_network_is(name):
    net = built(name)[0].to("meta")
    twin = PlainNetwork(net)
    twin.add_head(3)
    assert all(each.is_meta for each in (*twin.parameters(), *twin.buffers()))


def test_ties_are_told():
    assert PlainNetwork(built("residual")[0]).tied
    assert not PlainNetwork(built("conv")[0]).tied


def test_what_has_no_twin_is_refused():
    with pytest.raises(InputError, match="EideticGroupedConv2d has no plain twin here"):
        PlainNetwork(NETWORKS["grouped"]())
    with pytest.raises(InputError, match="EideticStochasticDepth has no plain twin here"):
        plain(nn.Sequential(ek.EideticLinear(3, 3), EideticStochasticDepth(0.1)))

    class Fused(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.first = ek.EideticLinear(6, 4)
            self.norm = ek.EideticBatchNorm1d(4, activation="relu")

        def forward(self, x):
            return self.norm(self.first(x))

    with pytest.raises(InputError, match="applies relu itself; its plain twin would not"):
        PlainNetwork(Fused())


def test_statistics_are_kept_by_task():
    twin = PlainNetwork(built("mlp")[0])
    kept = NormStatistics(twin)
    twin.train()
    for task in range(2):
        twin.features(torch.randn(8, 25) + 3 * task)
        kept.keep(task)
    means = [layer.running_mean.clone() for layer in kept.layers]
    kept.use(0)
    assert not any(torch.equal(layer.running_mean, mean) for layer, mean in zip(kept.layers, means))
    kept.use(1)
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(kept.layers, means))
    assert kept.numbers() == 2 * 2 * (4 + 4)
