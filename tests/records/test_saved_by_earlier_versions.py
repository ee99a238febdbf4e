"""Networks saved by version 0.1.0 load: the same answers, an intact certificate, and training goes on.

``expected.safetensors`` holds what version 0.1.0 computed on the machine that wrote the files. Another machine may
round otherwise, so answers are compared within tolerances.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.conversion.network import ConvertedNetwork
from eidetic_kernels.published.networks import PublishedMLP, PublishedResNet
from eidetic_training import models
from eidetic_training.models.convnet import ConvNet
from eidetic_training.models.mlp import MLP

SAVED = Path(__file__).parents[1] / "data" / "saved_by_0_1_0"
EXPECTED = load_file(SAVED / "expected.safetensors")
CLASSES = {
    "mlp": MLP,
    "convnet": ConvNet,
    "published_mlp": PublishedMLP,
    "published_resnet": PublishedResNet,
    "converted": ConvertedNetwork,
}
DEPTH = 8  # rounding adds up over the layers


def converted():
    """The module that the saved one was converted from, with other weights."""
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return ek.convert(module, torch.randn(2, 2, 6, 6))


def loaded(name):
    """The saved network, in evaluation mode."""
    return ek.EideticNetwork.load(SAVED / f"{name}.safetensors", converted() if name == "converted" else None).eval()


def answers(name):
    """What version 0.1.0 computed of each finished task's logits."""
    prefix = f"{name}.logits."
    return {int(key.removeprefix(prefix)): tensor for key, tensor in EXPECTED.items() if key.startswith(prefix)}


@torch.no_grad()
def recalled(net, x):
    net.eval()
    return [net(x, task=task) for task in range(net.finished_tasks)]


@pytest.mark.parametrize("name", CLASSES)
def test_finished_tasks_answer_as_when_they_were_saved(name):
    net = loaded(name)
    assert type(net) is CLASSES[name]
    expected = answers(name)
    assert net.finished_tasks == len(expected) >= 2
    for task, logits in enumerate(recalled(net, EXPECTED[f"{name}.x"])):
        assert_close(f"{name}, task {task}", logits, expected[task], DEPTH)


@pytest.mark.parametrize("name", CLASSES)
def test_certificates_hold(name):
    certificate = loaded(name).certify()
    assert certificate.ok, str(certificate)
    assert certificate.tasks == len(answers(name))


@pytest.mark.parametrize("name", CLASSES)
def test_training_goes_on_and_moves_no_finished_task(name):
    net, x = loaded(name), EXPECTED[f"{name}.x"]
    before = recalled(net, x)
    if net.current_task is None:
        net.prepare_for_task(net.finished_tasks, 3)
    weights = [parameter.detach().clone() for parameter in net.parameters()]

    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()

    assert not all(map(torch.equal, weights, net.parameters()))
    net.finish_task()
    after = recalled(net, x)
    assert len(after) == len(before) + 1
    assert all(map(torch.equal, before, after))
    assert net.certify().ok


@pytest.mark.parametrize("name", CLASSES)
def test_saving_them_again_loses_nothing(name, tmp_path):
    net, x = loaded(name), EXPECTED[f"{name}.x"]
    net.save(tmp_path / "again.safetensors")
    again = ek.EideticNetwork.load(tmp_path / "again.safetensors", converted() if name == "converted" else None)
    assert all(map(torch.equal, recalled(again, x), recalled(net, x)))
    assert again.current_task == net.current_task and again.records == net.records


def test_a_task_in_training_and_its_router_come_back():
    net = loaded("mlp")
    assert net.current_task == 2 and net.num_classes == [3, 3, 4]
    assert [(group.segments.live, group.segments.width) for group in net.groups] == [(2, 12), (2, 12)]
    assert (net.router.layers, net.router.inputs, net.router.convolutions) == (True, True, None)
    prediction = net.predict(EXPECTED["mlp.x"])
    assert_close("the router's scores", prediction.router_logits, EXPECTED["mlp.router"], DEPTH)


@pytest.mark.parametrize(
    "name, build",
    [
        ("mlp", lambda: models.build("mlp", (1, 4, 4), width=12, dropout=0.1)),
        ("convnet", lambda: models.build("convnet", (1, 8, 8), width=2)),
    ],
)
def test_they_load_into_a_fresh_network_as_well(name, build):
    net = ek.EideticNetwork.load(SAVED / f"{name}.safetensors", build())
    for task, logits in enumerate(recalled(net, EXPECTED[f"{name}.x"])):
        assert_close(f"{name}, task {task}", logits, answers(name)[task], DEPTH)
