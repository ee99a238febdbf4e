"""net.extract of transformers and ConvNeXt: each task's logits however it reads, plain parts, refusals."""

import pytest
import torch
from conversions import extracted_alike
from life import READINGS, batch, learn, poison
from small_transformers import TRANSFORMERS, learned
from tolerances import assert_same_bits
from torch import nn
from torch.nn import functional as F

import eidetic_kernels as ek
from eidetic_kernels.layers import Split


@pytest.mark.parametrize(
    ("name", "how"),  # take_through has all of them nested
    [(name, "mixed") for name in TRANSFORMERS] + [(name, "disjoint") for name in ("encoder", "convnext", "swin")],
)
def test_every_tasks_logits(name, how):
    """Under NaN in everything live, too: in float64 to 1e-10, so that a statistic over the wrong units shows."""
    net = learned(name, how, dtype=torch.float64)
    net.prepare_for_task(3, 4, max_units=4)
    poison(net)
    for task in range(3):
        plain = extracted_alike(net, task, batch(net, 3)[0])
        assert {tensor.dtype for tensor in plain.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["encoder", "by-hand", "by-hand-packed", "convnext", "swin", "maxvit"])
def test_all_units_of_a_task_may_be_gone(name):
    net = learned(name, tasks=2)
    net.prepare_for_task(2, 3, max_units=4)
    net.prune(1.0)
    net.finish_task()
    extracted_alike(net, 2, batch(net, 3)[0])


class Streams(ek.EideticNetwork):
    """LayerNorm over flat units, with a tensor of the network's own on them, and one over two groups side by side."""

    example = (6,)

    def __init__(self, **options):
        super().__init__()
        self.a, self.b, self.c = ek.EideticLinear(6, 10), ek.EideticLinear(6, 9), ek.EideticLinear(19, 8)
        self.alone, self.both = ek.EideticLayerNorm(10, **options), ek.EideticLayerNorm(19, **options)
        self.scale = ek.EideticParameter(torch.rand(10) + 0.5)

    def forward(self, x):
        a = F.relu(self.alone(self.a(x)) * self.scale())
        return F.relu(self.c(self.both(torch.cat([a, self.b(x)], 1))))


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("how", READINGS)
def test_prefix_norms(how, options):
    net = Streams(**options).double()
    net.wiring  # noqa: B018  wired first, since the norm over two groups becomes two parts
    for task in range(3):
        learn(net, task, how, max_units=0.4 if task else None)
    for task in range(3):
        extracted_alike(net, task, batch(net)[0])


def test_a_disjoint_task_leaves_others_units_out():
    """Where a norm reads nested, its statistics need the earlier units, which therefore stay."""
    net = Streams()
    learn(net, 0)
    choices = {path: False for path, layer in net.segmented_layers() if hasattr(layer, "forward_transfer")}
    for task, nested in ((1, False), (2, True)):
        net.prepare_for_task(task, 4, choices | {"alone": nested, "head": False}, max_units=2)
        net.finish_task()
    for task, kept in ((0, [0]), (1, [1]), (2, [0, 1, 2])):
        plain = extracted_alike(net, task, batch(net)[0])
        for name, layer in (("a", net.a), ("b", net.b)):  # what a norm over both sees of one it sees of the other
            weights = [tensor for path, tensor in plain.get_submodule(name).named_parameters() if "weight" in path]
            rows = [tensor.shape[0] for tensor in weights]
            assert rows == [layer.segments.frozen[t] for t in kept]


def test_layers_of_one_segment_are_torchs():
    plain = learned("vit", tasks=1).extract(0)
    kinds = {type(module) for module in plain.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.LayerNorm, nn.Linear, nn.GELU}
    assert F.scaled_dot_product_attention in {
        node.target
        for module in plain.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    }
    assert isinstance(plain.get_parameter("class_token"), nn.Parameter)


@pytest.mark.parametrize("name", ["swin", "swin-v2"])
def test_windows_of_images_of_any_size(name):
    """Padded, shifted, and smaller than a window, where there is nothing to shift."""
    net = learned(name)
    for size in ((4, 4), (6, 10), (13, 5)):
        for task in (0, 2):
            extracted_alike(net, task, torch.randn(2, 3, *size))


@pytest.mark.parametrize("name", ["encoder", "convnext", "swin-v2", "maxvit"])
def test_it_can_be_trained(name):
    net = learned(name, tasks=2)
    plain, (x, y) = net.extract(1), batch(net)
    assert_same_bits("training mode", plain.train()(x), plain.eval()(x))
    F.cross_entropy(plain(x), y).backward()
    unused = [path for path, tensor in plain.named_parameters() if tensor.grad is None]
    assert not unused


class Untraced(ek.EideticNetwork):
    """Wired by hand, with a module of ours before its layer that only a traced network is rid of."""

    example = (6,)

    def __init__(self):
        super().__init__()
        self.layer, self.split = ek.EideticLinear(6, 8), Split([2, 4])

    def forward(self, x):
        return F.relu(self.layer(torch.cat(self.split(x if x.sum() > 0 else -x), 1)))

    def connections(self):
        return {"layer": "input", "output": "layer"}


def test_a_module_of_ours_that_would_be_left_is_named():
    net = Untraced()
    learn(net, 0, fraction=0)
    with pytest.raises(ek.ConversionError, match="'body.split': Split has no plain version yet"):
        net.extract(0)
