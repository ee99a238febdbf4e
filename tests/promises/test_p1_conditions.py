"""P1's conditions: what may differ between two recalls that give the same bits, and what changes the last ones.

Each row of the two tables recalls every task of a network in another way. Rows of the first keep the bits, everywhere.
Rows of the second may round otherwise (which of them do depends on the machine): by 2e-6 of the largest logit at most,
where it was measured.
"""

import copy
from contextlib import contextmanager

import pytest
import small_transformers
import torch
from life import bits, learn
from small_networks import MLP, ConvNet, Grouped, Residual

import eidetic_kernels as ek
from eidetic_kernels import backends

SIZES = (1, 7, 33)
TASKS = 2
TOLERANCE = 1e-5  # of the largest logit; five times what was measured
NETWORKS = {
    "mlp": lambda: MLP((300, 257)),
    "conv": lambda: ConvNet((24, 20, 28)),
    "residual": lambda: Residual(24, 20),
    "grouped": Grouped,
    "transformer": lambda: small_transformers.converted("encoder").float(),
}


@pytest.fixture(scope="module", params=NETWORKS)
def known(request):
    """A fresh network's maker, the network after its tasks, and (inputs, task, logits) of its recalls."""
    torch.manual_seed(0)
    make = NETWORKS[request.param]
    if request.param == "transformer":
        net = small_transformers.learned("encoder", tasks=TASKS)
    else:
        net = make()
        for task in range(TASKS):
            learn(net, task, max_units=0.4)
    net.eval()
    inputs = [torch.randn(size, *net.example) for size in SIZES]
    with torch.no_grad():
        return make, net, [(x, task, net(x, task=task)) for x in inputs for task in range(TASKS)]


# ---- ways to recall: each returns the logits of x for a task


def beginning_elsewhere(net, x, task):
    """Not at the beginning of a cache line."""
    room = torch.zeros(x.numel() + 1)
    return net(room[1:].view(x.shape).copy_(x), task=task)


def part_of_wider_rows(net, x, task):
    room = torch.zeros(*x.shape[:-1], x.shape[-1] + 3)
    return net(room[..., 1:-2].copy_(x), task=task)


def with_gradients(net, x, task):
    with torch.enable_grad():
        return net(x.clone().requires_grad_(), task=task).detach()


def in_inference_mode(net, x, task):
    with torch.inference_mode():
        return net(x, task=task).clone()


def with_deterministic_algorithms(net, x, task):
    torch.use_deterministic_algorithms(True)
    try:
        return net(x, task=task)
    finally:
        torch.use_deterministic_algorithms(False)


def refused(graph, inputs):
    raise AssertionError("a recall was compiled")


def compiled(net, x, task):
    net = copy.deepcopy(net)
    net.compile(backend=refused, fullgraph=True)
    return net(x, task=task)


def compiled_around(net, x, task):
    return torch.compile(net, backend=refused)(x, task=task)


SAME_BITS = {
    "the same again": lambda net, x, task: net(x, task=task),
    "an input that begins elsewhere": beginning_elsewhere,
    "an input that is part of wider rows": part_of_wider_rows,
    "gradients": with_gradients,
    "inference_mode": in_inference_mode,
    "deterministic algorithms": with_deterministic_algorithms,
    "a deepcopy": lambda net, x, task: copy.deepcopy(net)(x, task=task),
    "float64 and back": lambda net, x, task: copy.deepcopy(net).double().float()(x, task=task),
    "another memory format of the network": lambda net, x, task: copy.deepcopy(net).to(
        memory_format=torch.channels_last
    )(x, task=task),
    "net.compile()": compiled,
    "torch.compile(net)": compiled_around,
}


@contextmanager
def setting(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def under(get, put, value):
    def recalled(net, x, task):
        with setting(get, put, value):
            return net(x, task=task)

    return recalled


def transposed(net, x, task):
    order = tuple(range(x.dim()))[::-1]
    return net(x.permute(order).contiguous().permute(order), task=task)


def channels_last(net, x, task):
    return net(x.to(memory_format=torch.channels_last) if x.dim() == 4 else x, task=task)


def in_a_larger_batch(net, x, task):
    return net(torch.cat([x.flip(0), x, x]), task=task)[len(x) : 2 * len(x)]


def in_another_order(net, x, task):
    return net(x.flip(0), task=task).flip(0)


def one_by_one(net, x, task):
    return torch.cat([net(each, task=task) for each in x.split(1)])


def with_torch_backend(net, x, task):
    with backends.using("torch"):
        return net(x, task=task)


def with_mkldnn(on):
    torch.backends.mkldnn.enabled = on


FLASH = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp
ROUNDING = {
    "transposed input": transposed,
    "images with channels last": channels_last,
    "other samples in the batch": in_a_larger_batch,
    "another order of the batch": in_another_order,
    "one sample at a time": one_by_one,
    "threads": under(torch.get_num_threads, torch.set_num_threads, 2),
    "mkldnn off": under(lambda: torch.backends.mkldnn.enabled, with_mkldnn, False),
    "another kernel of attention": under(*FLASH, False),
    "another backend": with_torch_backend,
}


@torch.no_grad()
@pytest.mark.parametrize("way", SAME_BITS)
def test_recall_has_the_same_bits(known, way):
    _, net, recalls = known
    for x, task, logits in recalls:
        assert bits(SAME_BITS[way](net, x, task)) == bits(logits), f"task {task}, {len(x)} samples"


@torch.no_grad()
def test_recall_has_the_same_bits_after_saving_and_loading(known, tmp_path):
    make, net, recalls = known
    net.save(tmp_path / "net.safetensors")
    loaded = ek.EideticNetwork.load(tmp_path / "net.safetensors", network=make()).eval()
    for x, task, logits in recalls:
        assert bits(loaded(x, task=task)) == bits(logits)


@torch.no_grad()
@pytest.mark.parametrize("way", ROUNDING)
def test_recall_is_the_same_up_to_rounding(known, way):
    _, net, recalls = known
    for x, task, logits in recalls:
        apart = (ROUNDING[way](net, x, task) - logits).abs().max() / logits.abs().max()
        assert apart <= TOLERANCE, f"task {task}, {len(x)} samples: {apart:.1e} of the largest logit"
