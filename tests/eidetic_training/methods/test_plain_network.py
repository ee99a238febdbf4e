"""The plain network that methods without segments train computes what the eidetic network computes."""

import pytest
import torch
from slow import slow
from small_networks import NETWORKS
from tolerances import assert_same_bits
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import EideticStochasticDepth
from eidetic_training import models
from eidetic_training.methods import METHODS, Conditions
from eidetic_training.methods.networks import NormStatistics, PlainNetwork, count
from eidetic_training.methods.plain_layers import plain

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
def test_the_plain_network_has_the_same_features_and_no_layer_of_ours(name, training):
    net, shape = built(name)
    plain_one = PlainNetwork(built(name)[0])
    net.prepare_for_task(0, 3)
    for module in (*net.modules(), *plain_one.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or hasattr(module, "running_mean"):
            module.momentum = 0.3
    assert not any(type(m).__module__.startswith("eidetic_kernels") for m in plain_one.modules())
    net.train(training), plain_one.train(training)
    x = torch.randn(6, *shape)
    for _ in range(2):  # the second pass has the first one's statistics
        torch.manual_seed(1)
        expected = net.compute_features(x)
        torch.manual_seed(1)
        features = plain_one.features(x)
        assert features.shape == (6, plain_one.columns)
        if not training or name in SHAPES:  # dropout draws other numbers
            torch.testing.assert_close(features, expected)


class WithAttributes(ek.EideticNetwork):
    def __init__(self):
        super().__init__()
        self.features = ek.EideticLinear(6, 5)  # a name that the plain network uses itself
        self.factor = 3.0

    def forward(self, x):
        return F.relu(self.features(x)) * self.factor


def test_attributes_and_any_layer_s_name_come_along():
    torch.manual_seed(0)
    net = WithAttributes()
    torch.manual_seed(0)
    plain_one = PlainNetwork(WithAttributes())
    x = torch.randn(4, 6)
    expected = 3 * F.relu(F.linear(x, net.features.weight, net.features.bias))
    torch.testing.assert_close(plain_one.features(x), expected)


def test_the_body_s_parameters_are_all_but_the_heads():
    plain_one = PlainNetwork(built("mlp-without-norm")[0])
    plain_one.add_head(3)
    names = [name for name, _ in plain_one.body_parameters()]
    assert names == [name for name, _ in plain_one.named_parameters() if not name.startswith("task_heads")]
    assert count(p for _, p in plain_one.body_parameters()) == 6 * 10 + 10 + 10 * 8 + 8


def test_the_latest_head_answers_when_none_is_named():
    plain_one = PlainNetwork(built("mlp-without-norm")[0])
    first, second = plain_one.add_head(3), plain_one.add_head(3)
    plain_one.eval()
    x = torch.randn(4, 6)
    assert torch.equal(plain_one(x), second(plain_one.features(x))) and torch.equal(
        plain_one(x, 0), first(plain_one.features(x))
    )


@pytest.mark.parametrize("name", SHAPES)
def test_the_plain_network_and_its_heads_are_where_the_network_is(name):
    net = built(name)[0].to("meta")
    plain_one = PlainNetwork(net)
    plain_one.add_head(3)
    assert all(each.is_meta for each in (*plain_one.parameters(), *plain_one.buffers()))


def test_ties_are_told():
    assert PlainNetwork(built("residual")[0]).tied
    assert not PlainNetwork(built("conv")[0]).tied


def test_what_has_no_plain_version_is_refused():
    with pytest.raises(InputError, match="EideticGroupedConv2d has no plain version here"):
        PlainNetwork(NETWORKS["grouped"]())
    with pytest.raises(InputError, match="EideticStochasticDepth has no plain version here"):
        plain(nn.Sequential(ek.EideticLinear(3, 3), EideticStochasticDepth(0.1)))


ACTIVATIONS = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ek.ops.ACTIVATIONS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "norm alone"])
def test_norms_add_the_residual_and_activate_as_torch_s_functions_do(kind, activation, training):
    torch.manual_seed(0)
    images = kind != "linear"
    norm = (ek.EideticBatchNorm2d if images else ek.EideticBatchNorm1d)(6, momentum=0.3, activation=activation)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    kinds = {
        "linear": lambda: ek.EideticLinear(4, 6, norm=norm),
        "norm alone": lambda: norm,
        "convolution": lambda: ek.EideticConv2d(4, 6, 3, 2, 1, norm=norm),
    }
    layer = kinds[kind]().train(training)

    plain_one = plain(layer)
    assert plain_one.state_dict().keys() == layer.state_dict().keys()
    assert not any(type(module).__module__.startswith("eidetic_kernels") for module in plain_one.modules())

    reference = (nn.BatchNorm2d if images else nn.BatchNorm1d)(6, momentum=0.3).train(training)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(8, 6 if kind == "norm alone" else 4, *(5, 5) * images)
    y = layer_of(kind, plain_one, x)

    for residual in (None, torch.randn_like(y)) if images else (None,):
        expected = reference(y) if residual is None else reference(y) + residual
        expected = ACTIVATIONS[activation](expected)
        found = plain_one(x) if residual is None else plain_one(x, residual=residual.clone())
        assert_same_bits("forward", found, expected)
        weights = [plain_one.get_parameter(name) for name in ("weight", "bias")]
        if kind != "norm alone":
            found, expected = (
                torch.autograd.grad(z.square().sum(), weights, retain_graph=True) for z in (found, expected)
            )
            for name, mine, theirs in zip(("weight", "bias"), found, expected):
                assert_same_bits(name, mine, theirs)


def layer_of(kind, plain_one, x):
    """The product that ``plain_one`` normalises, by torch's function."""
    if kind == "linear":
        return F.linear(x, plain_one.weight, plain_one.bias)
    return x if kind == "norm alone" else F.conv2d(x, plain_one.weight, plain_one.bias, 2, 1)


class Calls(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **kwargs or {})


class Block(nn.Module):
    """A residual block as people write it in torch."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


def test_a_residual_block_s_plain_version_runs_what_people_write_in_torch_and_nothing_else():
    plain_one = PlainNetwork(models.resnet18(1, width=4)).body.blocks[0]
    block = Block(4)
    runs = []
    for module in (plain_one, block):
        with Calls() as calls:
            module(torch.randn(2, 4, 8, 8)).sum().backward()
        runs.append([name for name in calls.names if "detach" not in name and "randn" not in name])
    assert runs[0] == runs[1] and any("add_" in name for name in runs[0])


@pytest.mark.parametrize("network", [*slow("resnet18", "convnet"), "mlp"])
def test_every_method_trains_networks_whose_layers_own_their_norms(network):
    """Two tasks, with finite logits for both; HAT refuses a network that is no chain."""
    shape = (1, 8, 8)
    under = Conditions(lambda: models.build(network, shape, width=4), epochs=3)
    x, y = torch.randn(12, *shape), torch.arange(12) % 3
    for name, kind in METHODS.items():
        if name == "hat" and network == "resnet18":
            with pytest.raises(InputError, match="HAT takes chains"):
                kind(under)
            continue
        options = {"tasks": 2} if name in ("eidetic", "clnp", "packnet") else {}
        method = kind(under, **options, **{"keep_at_least": 1} if name == "eidetic" else {})
        method.learn_all([[(x, y)]] * 2, [3, 3])
        for task in range(2):
            logits = method.logits(x, task)
            assert logits.shape == (12, 3) and logits.isfinite().all(), name
        assert method.stored_numbers() > 0


def test_statistics_are_kept_by_task():
    plain_one = PlainNetwork(built("mlp")[0])
    kept = NormStatistics(plain_one)
    plain_one.train()
    for task in range(2):
        plain_one.features(torch.randn(8, 25) + 3 * task)
        kept.keep(task)
    means = [layer.running_mean.clone() for layer in kept.layers]
    kept.use(0)
    assert not any(torch.equal(layer.running_mean, mean) for layer, mean in zip(kept.layers, means))
    kept.use(1)
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(kept.layers, means))
    assert kept.numbers() == 2 * 2 * (4 + 4)
