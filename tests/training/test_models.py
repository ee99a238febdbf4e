"""The paper's models: sizes known from elsewhere, shapes, and equality with plain torch."""

import json

import pytest
import torch
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.errors import InputError
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


def test_an_mlp_with_nothing_frozen_equals_plain_torch():
    torch.manual_seed(0)
    network = models.MLP(in_features=12, width=9, depth=2)
    network.prepare_for_task(0, num_classes=4)
    twin = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Linear(9, 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Linear(9, 4),
    )
    parameters = [*network.body.parameters(), *network.live_head.parameters()]
    with torch.no_grad():
        for mine, plain in zip(parameters, twin.parameters(), strict=True):
            plain.copy_(mine.normal_())
    x = torch.randn(16, 3, 4)
    for training in (True, False):  # the first pass moves the running statistics that the second one uses
        torch.testing.assert_close(network.train(training)(x), twin.train(training)(x))


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
def test_every_model_learns_a_second_task_and_keeps_the_first(name, shape, options, tmp_path):
    torch.manual_seed(0)
    network = models.build(name, shape, **options)
    x, y = torch.randn(8, *shape), torch.arange(8) % 3
    logits = []
    for task in range(2):
        network.prepare_for_task(task, num_classes=3)
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        network.prune(0.5, importance="l2")
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
    assert not torch.equal(logits[0], logits[1])


def test_constructor_arguments_survive_json():
    arguments = json.loads(json.dumps({"blocks": [1, 1, 1, 1], "bottleneck": False, "width": 4}))
    assert features(models.ResNet(**arguments), 1, 3, 16, 16).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("resnet19", (3, 32, 32), {}, "unknown model 'resnet19'.*resnet18"),
        ("mlp", (1, 28, 28), {"widht": 3}, "takes no widht; it takes: in_features, width"),
        ("mlp", (), {}, "expected one sample's shape"),
        ("convnet", (784,), {}, "needs images"),
        ("convnet", (3, 7, 8), {}, "8 pixels a side"),
        ("resnet18", (32, 32), {}, "needs images"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(name, shape, options, message):
    with pytest.raises(InputError, match=message):
        models.build(name, shape, **options)


def test_models_are_eidetic_networks():
    assert isinstance(models.build("mlp", (4,), width=3), ek.EideticNetwork)
    assert set(models.MODELS) == {"mlp", "convnet", *TORCHVISION_PARAMETERS}
