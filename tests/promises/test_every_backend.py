"""P1, P3 and P4 through the layers, on every backend of this machine; Triton in its interpreter where there is no GPU.

Shapes are tiny: the interpreter takes milliseconds a tile.
"""

import copy

import pytest
import torch
from fused_networks import NETWORKS, on_device_learn
from life import batch, bits, loss_of, poison, recall
from slow import slow
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.ops import self_check

HERE = [name for name in backends.NAMES if backends.why_missing(name) is None]


@pytest.fixture(params=HERE)
def backend(request):
    with backends.using(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    return "cuda" if "cuda" in backends.devices(backend) and torch.cuda.is_available() else "cpu"


def answers(net, device):
    x = batch(net, 5)[0].to(device)
    return [bits(recall(net, x, task)) for task in range(net.finished_tasks)]


def learned(make, tasks, device):
    """A network that has finished some tasks, a third of it live in the next."""
    net = make().to(device)
    for task in range(tasks):
        on_device_learn(net, task, device)
    return net


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_recall_keeps_its_bits_and_nothing_leaks_in(name, backend, device):
    """P1 and P3."""
    net, known = NETWORKS[name]().to(device), []
    for task in range(3):
        on_device_learn(net, task, device, "nested" if task < 2 else "disjoint")
        now = answers(net, device)
        assert now[: len(known)] == known, f"after task {task}"
        known = now
    net.prepare_for_task(3, 3)
    poison(net)
    assert answers(net, device) == known


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_frozen_units_are_the_same_in_training_and_evaluation(name, backend, device):
    """P5, of the units that no activation outside of this package has touched."""
    net = learned(NETWORKS[name], 2, device)
    net.prepare_for_task(2, 3)
    x = batch(net, 9)[0].to(device)
    with torch.no_grad():
        training, evaluated = net.train().compute_features(x), net.eval().compute_features(x)
    frozen = net.groups[-1].segments.frozen_total
    assert 0 < frozen < training.shape[1]
    assert torch.equal(training[:, :frozen], evaluated[:, :frozen])
    assert not torch.equal(training, evaluated)


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_forward_and_backward_equal_the_double_precision_network(name, backend, device):
    """P4: against the same network in float64 on torch, which tests/promises/test_p4_oracle.py holds to the paper's."""
    with self_check.full_precision():
        check_against_double_precision(name, device)


def check_against_double_precision(name, device):
    net = learned(NETWORKS[name], 2, device)
    net.prepare_for_task(2, 3)
    reference = copy.deepcopy(net).cpu().double()
    x, y = batch(net, 9)
    loss = loss_of(net.train(), x.to(device), y.to(device))
    loss.backward()
    with backends.using("torch"):
        expected = loss_of(reference.train(), x.double(), y)
        expected.backward()
    torch.testing.assert_close(loss.cpu().double(), expected, rtol=1e-5, atol=1e-6)
    for (path, ours), (_, theirs) in zip(net.named_parameters(), reference.named_parameters()):
        error = (ours.grad.cpu().double() - theirs.grad).abs().max() / theirs.grad.abs().max().clamp_min(1e-3)
        assert error < 1e-4, f"{path}: {error:.1e}"
    for (path, ours), (_, theirs) in zip(net.named_buffers(), reference.named_buffers()):
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=path)


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_training_goes_on_after_inference_mode(name, backend, device):
    """What is kept from pass to pass must not be an inference tensor."""
    net = learned(NETWORKS[name], 1, device)
    net.prepare_for_task(1, 3)
    x, y = (t.to(device) for t in batch(net, 9))
    with torch.inference_mode():
        net.eval()(x)
        net(x, task=0)
    F.cross_entropy(net.train()(x), y).backward()
    assert all(p.grad is not None for p in net.parameters() if p.numel())


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_training_beside_kept_features_is_the_same(name, backend, device):
    """The ops on live units alone, and indices of samples on the CPU wherever the network is."""
    net = learned(NETWORKS[name], 2, device)
    net.prepare_for_task(2, 3)
    plain = copy.deepcopy(net)
    features = ek.FrozenFeatures(net.train(), 6)
    x, y = (t.to(device) for t in batch(net, 6))
    optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in (plain.train(), net)]
    for _ in range(4):  # the first is kept, the second compared
        rows = torch.randperm(6)
        expected = loss_of(plain, x[rows], y[rows])
        with features.batch(rows):
            loss = loss_of(net, x[rows], y[rows])
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        for each, optimizer in zip((expected, loss), optimizers):
            optimizer.zero_grad()
            each.backward()
            optimizer.step()
    assert features.off is None and features.bytes and features._verified and not features._missing
    for (path, ours), (_, theirs) in zip(net.state_dict().items(), plain.state_dict().items()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=path)
