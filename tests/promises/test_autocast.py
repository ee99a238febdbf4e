"""Half precision under torch.autocast, forward and backward, and the promises with it, on every backend here."""

import copy

import interpreter  # noqa: F401  half precision in Triton's interpreter
import pytest
import torch
from fused_networks import NETWORKS, on_device_learn
from life import batch, bits, poison
from slow import slow
from tolerances import assert_close
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels import backends, ops
from eidetic_kernels.backends.activations import FUNCTIONS

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
@pytest.mark.parametrize("name", ["layers", *slow("images")])
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
@pytest.mark.parametrize("name", ["layers", *slow("images")])
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
@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_a_network_that_is_half_precision_throughout_trains(name, dtype, backend, device):
    net, x, y = made(name, device)
    net.to(dtype)
    _, gradients = step(net, x.to(dtype), y, torch.autocast(device, enabled=False))
    assert all(g.dtype == dtype and g.isfinite().all() for g in gradients.values())


MIXED = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.bfloat16)]


@pytest.mark.parametrize("full_input_grad", [False, True])
@pytest.mark.parametrize("activation, frozen", [("none", 3), ("relu6", 0), ("silu", 3), ("relu", 8)])
@pytest.mark.parametrize("dtypes", MIXED, ids=str)
def test_a_residual_of_another_dtype_is_added_as_torch_adds(
    dtypes, activation, frozen, full_input_grad, backend, device
):
    norm = ek.EideticBatchNorm2d(8, activation=activation).to(device)
    if frozen:
        norm.prune(range(frozen))
        norm.freeze()
        norm.recycle(8 - frozen)

    x, residual, dy = (torch.randn(4, 8, 3, 3, device=device).to(memory_format=torch.channels_last) for _ in range(3))
    alone = copy.deepcopy(norm)
    alone.activation = "none"

    results = []
    for fused in (True, False):
        a, b = (t.to(dtype).detach().requires_grad_() for t, dtype in zip((x, residual), dtypes))
        with torch.autocast(device, torch.bfloat16):
            if fused:
                y = norm.normalise(a, b, full_input_grad)
            else:
                y = FUNCTIONS[activation](alone.normalise(a, None, full_input_grad) + b)
        y.backward(dy.to(y.dtype))
        results.append((y, a.grad, b.grad, *(p.grad for p in (norm if fused else alone).parameters() if p.numel())))

    (given, *gradients), (expected, *wanted) = results
    assert given.dtype == expected.dtype == torch.promote_types(*dtypes) == torch.float32
    assert given.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)

    if not full_input_grad:
        wanted[1][:, :frozen] = 0  # plain addition knows no frozen channels
    for gradient, want in zip(gradients, wanted):
        assert gradient.dtype == want.dtype
        assert_close("a gradient", gradient.to(torch.bfloat16), want.double())
    assert full_input_grad or not (gradients[0][:, :frozen].any() or gradients[1][:, :frozen].any())


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_with_such_a_residual_frozen_bits_depend_on_nothing_beside_them(activation, backend, device):
    x, residual = torch.randn(5, 7, device=device).to(torch.bfloat16), torch.randn(5, 7, device=device)
    scale, shift = torch.rand(2, 7, device=device)

    def frozen(channels):
        nothing = [torch.empty(0, device=device) for _ in range(2)]
        affine = scale[:channels], shift[:channels]
        norm = ops.Norm(None, None, *nothing, *affine, False, 0.1, 1e-5, activation)
        return ops.segmented_batch_norm(x[:, :channels], norm, residual[:, :channels])

    for channels in range(1, 7):
        assert bits(frozen(channels)) == bits(frozen(7)[:, :channels].contiguous())
