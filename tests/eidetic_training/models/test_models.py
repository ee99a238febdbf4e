"""The paper's models: sizes known from elsewhere, shapes, and equality with plain torch."""

import json

import pytest
import torch
from slow import slow
from tolerances import assert_close, assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.errors import InputError
from eidetic_kernels.layers import EideticDropout
from eidetic_training import models

# torchvision's resnets without their last linear layer.
TORCHVISION_PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def features(network: nn.Module, *shape: int) -> torch.Tensor:
    network.eval()
    with torch.no_grad():
        return network.forward(torch.randn(*shape))


@pytest.mark.parametrize("name", TORCHVISION_PARAMETERS)
def test_resnets_have_the_parameters_torchvision_counts(name):
    assert count(models.build(name, (3, 224, 224))) == TORCHVISION_PARAMETERS[name]


def test_the_small_stem_differs_by_its_kernel_alone():
    assert count(models.resnet18(small=True)) == TORCHVISION_PARAMETERS["resnet18"] - 3 * 64 * (49 - 9)


def test_a_skip_convolution_adds_one_convolution_and_norm_to_every_identity_block():
    plain, paper = models.resnet18(width=8), models.resnet18(width=8, skip_convolution=True)
    identities = [8, 8, 16, 32, 64]  # two blocks of the first stage, one of every other
    assert count(paper) - count(plain) == sum(width * width + 2 * width for width in identities)


@pytest.mark.parametrize(
    ("name", "shape", "options", "width"),
    [
        ("mlp", (1, 28, 28), {"width": 20}, 20),
        ("mlp", (7,), {"width": 20, "depth": 3, "dropout": 0.5}, 20),
        ("convnet", (1, 28, 28), {"width": 4}, 128),
        ("convnet", (3, 8, 8), {"width": 4, "num_layers": 1, "dropout": 0.5}, 128),
        ("resnet18", (3, 32, 32), {"width": 4}, 32),
        ("resnet34", (1, 28, 28), {"width": 4}, 32),
        ("resnet50", (3, 32, 32), {"width": 4}, 128),
        ("resnet101", (3, 96, 96), {"width": 4}, 128),
        ("resnet18", (3, 32, 32), {"width": 4, "skip_convolution": True}, 32),
    ],
)
def test_features_have_the_documented_shape(name, shape, options, width):
    assert features(models.build(name, shape, **options), 2, *shape).shape == (2, width)


@pytest.mark.parametrize(("small", "positions"), [(True, 32), (False, 8)])
def test_the_stem_keeps_small_images_and_quarters_large_ones(small, positions):
    network = models.resnet18(width=4, small=small)
    assert features(network.stem, 1, 3, 32, 32).shape == (1, 4, positions, positions)


def test_images_from_96_pixels_on_get_the_large_stem():
    assert models.build("resnet18", (3, 95, 96), width=4).stem[0].kernel_size == (3, 3)
    assert models.build("resnet18", (3, 96, 96), width=4).stem[0].kernel_size == (7, 7)
    assert models.build("resnet18", (3, 96, 96), width=4, small=True).stem[0].kernel_size == (3, 3)


# ---- the same as torch's own layers, one after the other


def normed(net, layer, x, tensors):
    """Torch's product and BatchNorm with the weights of ``layer``, found in ``tensors``."""
    (path,) = [path for path, module in net.named_modules() if module is layer]
    weight = tensors[f"{path}.weight"]
    y = F.linear(x, weight) if weight.dim() == 2 else F.conv2d(x, weight, None, layer.stride, layer.padding)
    mean, variance, scale, shift = (
        tensors[f"{path}.norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(y, mean, variance, scale, shift, net.training, layer.norm.momentum, layer.norm.eps)


def plain_mlp(net, x, tensors):
    x = x.flatten(1)
    for layer in net.body:
        if isinstance(layer, ek.EideticLinear):
            x = F.relu(normed(net, layer, x, tensors))
        elif isinstance(layer, EideticDropout):
            x = F.dropout(x, layer.p, net.training)
    return x


def plain_convnet(net, x, tensors):
    """With dropout before the ReLU, as the paper has it."""
    rate = next((layer.p for layer in net.body if isinstance(layer, EideticDropout)), 0.0)
    for layer in net.body:
        if isinstance(layer, ek.EideticConv2d):
            x = F.relu(F.dropout(normed(net, layer, x, tensors), rate, net.training))
        elif isinstance(layer, nn.MaxPool2d):
            x = F.max_pool2d(x, 2)
    return x.amax((2, 3))


def plain_resnet(net, x, tensors):
    x = F.relu(normed(net, net.stem[0], x, tensors))
    if len(net.stem) > 1:
        x = F.max_pool2d(x, 3, 2, 1)
    for block in net.blocks:
        y = x
        for layer in block.body:
            y = F.relu(normed(net, layer, y, tensors))
        skip = x if isinstance(block.skip, nn.Identity) else normed(net, block.skip, x, tensors)
        x = F.relu(normed(net, block.last, y, tensors) + skip)
    return x.mean((2, 3))


PLAIN = {"mlp": plain_mlp, "convnet": plain_convnet, "resnet18": plain_resnet, "resnet50": plain_resnet}
VARIANTS = {
    "mlp": ("mlp", (3, 4), {"width": 9}),
    "mlp with dropout": ("mlp", (12,), {"width": 40, "depth": 3, "dropout": 0.3}),
    "convnet": ("convnet", (2, 8, 8), {"width": 3}),
    "convnet with dropout": ("convnet", (2, 8, 8), {"width": 3, "num_layers": 1, "dropout": 0.3}),
    "resnet18": ("resnet18", (2, 8, 8), {"width": 4}),
    "skip convolutions": ("resnet18", (2, 8, 8), {"width": 4, "skip_convolution": True}),
    "large stem": ("resnet18", (2, 33, 40), {"width": 3, "small": False}),
    "bottlenecks": ("resnet50", (1, 8, 8), {"width": 2}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_computes_what_torch_s_layers_do_one_after_the_other(variant):
    """Features, gradients and running statistics, in training and in evaluation, on float64."""
    name, shape, options = VARIANTS[variant]
    torch.manual_seed(0)
    net = models.build(name, shape, **options).double()
    x = torch.randn(6, *shape, dtype=torch.float64)
    rates = {layer.p for layer in net.modules() if isinstance(layer, EideticDropout)}
    assert rates == {rate for option, rate in options.items() if option == "dropout"}

    for p in net.parameters():
        nn.init.normal_(p, float(p.dim() == 1), 0.3)
    tensors = {
        key: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for key, tensor in [*net.named_parameters(), *net.named_buffers()]
    }

    for training in (True, False):
        net.train(training)
        results = []
        for features in (net.forward, lambda given: PLAIN[name](net, given, tensors)):
            torch.manual_seed(1)
            results.append(features(x))
        ours, theirs = results
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

        target = torch.randn_like(ours)
        parameters = dict(net.named_parameters())
        found = torch.autograd.grad((ours * target).sum(), parameters.values())
        expected = torch.autograd.grad((theirs * target).sum(), [tensors[key] for key in parameters])
        for key, mine, plain in zip(parameters, found, expected):
            torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-8, msg=lambda said, key=key: f"{key}: {said}")
        for key, mine in net.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                torch.testing.assert_close(mine, tensors[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_an_mlp_with_nothing_frozen_has_the_bits_of_plain_torch(training):
    torch.manual_seed(0)
    net = models.MLP(in_features=12, width=9).train(training)
    x = torch.randn(16, 3, 4)
    tensors = {
        key: tensor.detach().clone().requires_grad_(tensor.requires_grad)
        for key, tensor in [*net.named_parameters(), *net.named_buffers()]
    }

    with backends.using("torch"):
        ours, theirs = net.forward(x), plain_mlp(net, x, tensors)
        assert_same_bits("features", ours, theirs)
        target = torch.randn_like(ours)
        parameters = dict(net.named_parameters())
        found = torch.autograd.grad((ours * target).sum(), parameters.values())
    expected = torch.autograd.grad((theirs * target).sum(), [tensors[key] for key in parameters])

    equal = assert_same_bits if training else assert_close  # evaluation sums a scale's gradient in another order
    for key, mine, plain in zip(parameters, found, expected):
        equal(key, mine, plain)
    for key, mine in net.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            assert_same_bits(key, mine, tensors[key])


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_draw_as_torch_s_do_and_norms_and_activations_nothing(variant):
    name, shape, options = VARIANTS[variant]
    torch.manual_seed(0)
    net = models.build(name, shape, **options)
    after = torch.rand(1)
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, ek.EideticLinear):
            torch_s = nn.Linear(module.in_features, module.out_features, bias=False)
        elif isinstance(module, ek.EideticConv2d):
            torch_s = nn.Conv2d(module.in_channels, module.out_channels, module.kernel_size, bias=False)
        else:
            continue
        assert torch.equal(module.weight, torch_s.weight)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_norm_and_activation_is_part_of_the_layer_it_follows(variant):
    name, shape, options = VARIANTS[variant]
    net = models.build(name, shape, **options)
    norms = [module for module in net.modules() if isinstance(module, (ek.EideticBatchNorm1d, ek.EideticBatchNorm2d))]
    assert norms and all(norm.attached for norm in norms)
    assert not any(isinstance(module, nn.ReLU) for module in net.modules())


@pytest.mark.parametrize("skip_convolution", [False, True])
def test_identities_tie_a_stage_s_units_and_skip_convolutions_a_block_s_only(skip_convolution):
    net = models.resnet18(width=4, skip_convolution=skip_convolution)
    found = [sorted(group.producers) for group in net.groups if len(group.producers) > 1]
    last, skip = "blocks.{}.last".format, "blocks.{}.skip".format
    if skip_convolution:
        expected = [[last(i), skip(i)] for i in range(8)]
    else:
        expected = [[last(0), last(1), "stem.0"], *([last(i), skip(i), last(i + 1)] for i in (2, 4, 6))]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("mlp", (1, 6, 6), {"width": 12, "dropout": 0.2}),
        ("convnet", (1, 8, 8), {"width": 2, "num_layers": 1, "dropout": 0.2}),
        ("resnet18", (3, 8, 8), {"width": 4}),
        ("resnet18", (3, 8, 8), {"width": 4, "skip_convolution": True}),
        ("resnet50", (3, 8, 8), {"width": 4}),
    ],
)
@pytest.mark.parametrize("importance", [*slow("l2"), "taylor"])
def test_every_model_learns_a_second_task_and_keeps_the_first(name, shape, options, importance, tmp_path):
    torch.manual_seed(0)
    network = models.build(name, shape, **options)
    network.input_shape = shape
    x, y = torch.randn(8, *shape), torch.arange(8) % 3

    logits = []
    for task in range(2):
        network.prepare_for_task(task, num_classes=3)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        network.prune(0.5, importance, data=[(x, y)])
        network.finish_task()
        network.eval()
        with torch.no_grad():
            logits.append(network(x, task=task))

    network.save(tmp_path / "network.safetensors")
    loaded = ek.EideticNetwork.load(tmp_path / "network.safetensors").eval()
    with torch.no_grad():
        assert torch.equal(network(x, task=0), logits[0])
        assert torch.equal(loaded(x, task=0), logits[0])
        assert torch.equal(loaded(x, task=1), logits[1])
        for task in range(2):
            torch.testing.assert_close(network.extract(task)(x), logits[task], rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits[0], logits[1])
    loaded.certify().check()


def test_constructor_arguments_survive_json():
    arguments = json.loads(json.dumps({"blocks": [1, 1, 1, 1], "bottleneck": False, "width": 4}))
    assert features(models.ResNet(**arguments), 1, 3, 16, 16).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet19", (3, 32, 32), {}, r"name must be one of mlp, .*; got 'resnet19' \(did you mean 'resnet18'\?\)"),
        (
            "mlp",
            (1, 28, 28),
            {"widht": 3},
            r"the model 'mlp' has no argument 'widht' \(did you mean 'width'\?\); it has: in_f",
        ),
        ("mlp", (), {}, "example_shape must be one sample's shape"),
        ("convnet", (784,), {}, "needs images"),
        ("convnet", (3, 7, 8), {}, "a side must have 8 pixels or more"),
        ("resnet18", (32, 32), {}, "needs images"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(name, shape, options, message):
    with pytest.raises(InputError, match=message):
        models.build(name, shape, **options)


def test_models_are_eidetic_networks():
    assert isinstance(models.build("mlp", (4,), width=3), ek.EideticNetwork)
    assert set(models.MODELS) == {"mlp", "convnet", *TORCHVISION_PARAMETERS}
