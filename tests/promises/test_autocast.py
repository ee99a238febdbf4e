"""Half precision under torch.autocast, forward and backward, and the promises with it, on every backend here."""

import copy

import interpreter  # noqa: F401  half precision in Triton's interpreter
import pytest
import torch
from fused_networks import NETWORKS, on_device_learn
from life import batch, bits, poison
from tolerances import assert_close
from torch.nn import functional as F

from eidetic_kernels import backends

# The compiled C++ kernels take float32 alone, and say so (test_cpu_batch_norm.py).
HERE = [name for name in backends.NAMES if name != "cpu" and backends.why_missing(name) is None]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=HERE)
def backend(request):
    with backends.using(request.param):
        yield request.param


@pytest.fixture
def device(backend):
    return "cuda" if "cuda" in backends.devices(backend) and torch.cuda.is_available() else "cpu"


def step(net, x, y, autocast):
    """Loss and gradients of a training step; the network is left as it was."""
    net = copy.deepcopy(net).train()
    with autocast:
        loss = F.cross_entropy(net(x).float(), y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in net.named_parameters() if p.numel()}


def made(name, device):
    net = NETWORKS[name]().to(device)
    on_device_learn(net, 0, device)
    net.prepare_for_task(1, 3)
    return net, *(t.to(device) for t in batch(net, 9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_the_float32_one_but_for_rounding(name, dtype, backend, device):
    net, x, y = made(name, device)
    with backends.using("torch"):
        loss, gradients = step(net, x, y, torch.autocast(device, enabled=False))
    half_loss, half_gradients = step(net, x, y, torch.autocast(device, dtype))
    assert_close("loss", half_loss.to(dtype), loss)
    assert not torch.equal(half_loss, loss), "nothing was rounded, so autocast changed nothing"
    for key, gradient in gradients.items():
        assert half_gradients[key].dtype == torch.float32, key  # master weights keep their dtype
        assert half_gradients[key].isfinite().all()
        distance = (half_gradients[key] - gradient).norm() / gradient.norm().clamp_min(1e-2)
        assert distance < (0.15 if dtype == torch.bfloat16 else 0.03), f"{key} differs by {distance:.1%}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_recall_under_autocast_keeps_its_bits_and_nothing_leaks_in(name, dtype, backend, device):
    net, x, _ = made(name, device)
    net.eval()
    with torch.no_grad(), torch.autocast(device, dtype):
        before = net(x, task=0)
        assert before.dtype == dtype
    poison(net)
    with torch.no_grad(), torch.autocast(device, dtype):
        assert bits(net(x, task=0)) == bits(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_half_precision_throughout_trains(name, dtype, backend, device):
    net, x, y = made(name, device)
    net.to(dtype)
    _, gradients = step(net, x.to(dtype), y, torch.autocast(device, enabled=False))
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients.values())
