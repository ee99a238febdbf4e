"""The layers as drop-ins for torch's, and their life alone: prune, freeze, recycle."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from staircases import assert_close, assert_same_bits
from torch import nn

import eidetic_kernels as ek
from eidetic_kernels.errors import CapacityError, InputError, TaskError
from eidetic_kernels.layers import EideticDropout
from eidetic_kernels.layout import Segments, Source

LINEAR = (ek.EideticLinear, nn.Linear)
CONV = (ek.EideticConv2d, nn.Conv2d)
NORM1 = (ek.EideticBatchNorm1d, nn.BatchNorm1d)
NORM2 = (ek.EideticBatchNorm2d, nn.BatchNorm2d)
IMAGE = (4, 3, 9, 8)

DROP_INS = {
    "linear": (LINEAR, (7, 5), {}, (4, 7)),
    "linear without bias": (LINEAR, (7, 5, False), {}, (4, 7)),
    "linear, float64": (LINEAR, (7, 5), {"dtype": torch.float64}, (4, 7)),
    "linear on three dimensions": (LINEAR, (7, 5), {}, (2, 3, 7)),
    "linear on one dimension": (LINEAR, (7, 5), {}, (7,)),
    "conv": (CONV, (3, 5, 3), {}, IMAGE),
    "conv, pairs": (CONV, (3, 5, (3, 2), (2, 1), (1, 2), (1, 2)), {}, IMAGE),
    "conv without bias": (CONV, (3, 5, 3), {"bias": False, "stride": 2}, IMAGE),
    "conv, float64": (CONV, (3, 5, 3), {"dtype": torch.float64, "dilation": 2}, IMAGE),
    "conv same": (CONV, (3, 5, 3), {"padding": "same"}, IMAGE),
    "conv same, even kernel": (CONV, (3, 5, (2, 4)), {"padding": "same"}, IMAGE),
    "conv same, even and dilated": (CONV, (3, 5, 2), {"padding": "same", "dilation": (1, 3)}, IMAGE),
    "conv valid": (CONV, (3, 5, 3), {"padding": "valid"}, IMAGE),
    "conv reflect": (CONV, (3, 5, 3), {"padding": (2, 1), "padding_mode": "reflect"}, IMAGE),
    "conv replicate": (CONV, (3, 5, 3), {"padding": 1, "padding_mode": "replicate"}, IMAGE),
    "conv circular": (CONV, (3, 5, 3), {"padding": (1, 2), "padding_mode": "circular", "stride": 2}, IMAGE),
    "conv circular, same, even": (CONV, (3, 5, 4), {"padding": "same", "padding_mode": "circular"}, IMAGE),
    "norm 1d": (NORM1, (6,), {}, (5, 6)),
    "norm 1d over a line": (NORM1, (6,), {"eps": 0.1}, (5, 6, 3)),
    "norm 1d, no momentum": (NORM1, (6,), {"momentum": None}, (5, 6)),
    "norm 1d, momentum": (NORM1, (6, 1e-3, 0.5), {}, (5, 6)),
    "norm 1d, not affine": (NORM1, (6,), {"affine": False}, (5, 6)),
    "norm 1d, float64": (NORM1, (6,), {"dtype": torch.float64}, (5, 6)),
    "norm 2d": (NORM2, (3,), {}, IMAGE),
    "norm 2d, not affine, no momentum": (NORM2, (3,), {"affine": False, "momentum": None}, IMAGE),
}


@pytest.fixture(params=DROP_INS)
def twins(request):
    """Ours and torch's, made under the same seed, and an input."""
    (ours, theirs), args, options, shape = DROP_INS[request.param]
    layers = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        layers.append(layer(*args, **options))
    dtype = options.get("dtype", torch.float32)
    return *layers, torch.randn(shape, dtype=dtype)


def scramble(layer):
    """Parameters and statistics far from their initial values."""
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))


# ---- drop-in


def test_initialised_as_torch_does(twins):
    ours, theirs, _ = twins
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            assert_same_bits(name, ours.state_dict()[name], tensor)
        else:
            assert torch.equal(ours.state_dict()[name], tensor)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_draws_as_many_random_numbers_as_torch():
    for name, ((ours, theirs), args, options, _) in DROP_INS.items():
        states = []
        for layer in (ours, theirs):
            torch.manual_seed(3)
            layer(*args, **options)
            states.append(torch.random.get_rng_state())
        assert torch.equal(*states), name


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own, about torch's layer
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_computes_the_same_bits_when_nothing_is_frozen(twins, mode):
    ours, theirs, x = twins
    scramble(theirs)
    ours.load_state_dict(theirs.state_dict())
    getattr(ours, mode)(), getattr(theirs, mode)()
    for _ in range(3):
        assert_same_bits("output", ours(x), theirs(x))
    for name, tensor in theirs.named_buffers():
        assert torch.equal(dict(ours.named_buffers())[name], tensor), name
    theirs.load_state_dict(ours.state_dict())  # and the other way round


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_has_torchs_gradients(twins, mode):
    ours, theirs, x = twins
    scramble(theirs)
    ours.load_state_dict(theirs.state_dict())
    dy, gradients = None, []
    for layer in (ours, theirs):
        getattr(layer, mode)()
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        dy = torch.randn_like(y) if dy is None else dy
        y.backward(dy)
        gradients.append({"x": leaf.grad, **{name: p.grad for name, p in layer.named_parameters()}})
    for name, gradient in gradients[1].items():
        assert_close(name, gradients[0][name], gradient)


def test_an_input_that_asks_for_no_gradient_gets_none(twins):
    ours, _, x = twins
    y = ours(x)
    assert y.requires_grad == bool(list(ours.parameters()))
    if y.requires_grad:
        y.sum().backward()
    assert x.grad is None


def test_prints_like_torch():
    assert repr(ek.EideticLinear(3, 2)) == "EideticLinear(in_features=3, out_features=2, bias=True)"
    assert "kernel_size=(3, 3), stride=(1, 1), padding=1" in repr(ek.EideticConv2d(1, 2, 3, padding=1))
    assert repr(ek.EideticBatchNorm1d(3)) == "EideticBatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True)"


def test_relu_in_the_normalisation():
    plain, fused = nn.BatchNorm1d(6), ek.EideticBatchNorm1d(6, activation="relu")
    x = torch.randn(5, 6)
    assert_same_bits("output", fused(x), F.relu(plain(x)))


# ---- the life of a layer alone


LIVES = {
    "linear": (lambda **o: ek.EideticLinear(6, 10, **o), (5, 6), F.linear),
    "linear without bias": (lambda **o: ek.EideticLinear(6, 10, bias=False, **o), (5, 6), F.linear),
    "conv": (lambda **o: ek.EideticConv2d(4, 10, 3, 2, 1, **o), (2, 4, 5, 5), lambda *a: F.conv2d(*a, 2, 1)),
}


@pytest.mark.parametrize("name", LIVES)
def test_four_tasks_against_the_dense_layer(name):
    """Kept rows are kept exactly, frozen ones never change, and the layer is the dense masked one at every stage."""
    make, shape, product = LIVES[name]
    layer = make(dtype=torch.float64)
    expected_weight, expected_bias = layer.weight.detach().clone(), layer.bias
    expected_bias = None if expected_bias is None else expected_bias.detach().clone()
    frozen = 0

    def check():
        x, dense = torch.randn(shape, dtype=torch.float64, requires_grad=True), layer.dense_weight()
        assert torch.equal(dense, expected_weight)
        assert layer.mask().shape == dense.shape[:2] and layer.mask().all()
        y = layer(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        x2 = x.detach().clone().requires_grad_()
        w2 = expected_weight.clone().requires_grad_()
        y2 = product(x2, w2, expected_bias)
        y2.backward(dy)
        assert_close("output", y, y2)
        assert_close("dx", x.grad, x2.grad)
        if layer.weight.grad is not None:
            assert_close("dweight", layer.weight.grad, w2.grad[frozen:])

    check()
    for kept in ([1, 4, 8], [], [0, 2], [0, 1, 2, 3, 4]):
        keep = torch.cat([torch.arange(frozen), frozen + torch.tensor(kept, dtype=torch.long)])
        layer.prune(kept)
        expected_weight = expected_weight[keep]
        expected_bias = None if expected_bias is None else expected_bias[keep]
        check()
        layer.freeze()
        frozen += len(kept)
        assert layer.segments.frozen_total == frozen and not layer.weight.numel()
        check()
        if layer.segments.free:
            layer.recycle()
            assert len(layer.weight) == layer.segments.live == 10 - frozen
            with torch.no_grad():
                expected_weight = torch.cat([expected_weight, layer.weight])
                if expected_bias is not None:
                    expected_bias = torch.cat([expected_bias, layer.bias])
            check()
    assert layer.segments.frozen == (3, 0, 2, 5)


@pytest.mark.parametrize("layer", [ek.EideticBatchNorm1d(6), ek.EideticBatchNorm1d(6, affine=False)])
def test_the_life_of_a_normalisation(layer):
    scramble(layer)
    x = torch.randn(5, 6)
    layer.train()
    layer(x)
    layer.eval()
    before = layer(x)
    layer.prune([0, 2, 5])
    assert_same_bits("kept channels", layer(x[:, [0, 2, 5]].contiguous()), before[:, [0, 2, 5]])
    layer.freeze()
    assert_close("frozen channels", layer(x[:, [0, 2, 5]]), before[:, [0, 2, 5]])
    frozen = layer(x[:, [0, 2, 5]])

    layer.recycle(2)
    assert not layer.running_mean.any() and (layer.running_var == 1).all() and layer.num_batches_tracked == 0
    y = torch.cat([x[:, [0, 2, 5]], torch.randn(5, 2)], 1)
    layer.train()
    fresh = nn.BatchNorm1d(2, affine=layer.affine)
    for _ in range(2):
        out = layer(y)
        assert_same_bits("frozen in training", out[:, :3], frozen)
        assert_close("live in training", out[:, 3:], fresh(y[:, 3:]))
    assert_close("running mean", layer.running_mean, fresh.running_mean)
    assert_close("running variance", layer.running_var, fresh.running_var)
    layer.eval()
    out = layer(y)
    assert_same_bits("frozen in evaluation", out[:, :3], frozen)
    assert_close("live in evaluation", out[:, 3:], fresh.eval()(y[:, 3:]))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_cumulative_average_starts_anew_with_each_task(momentum):
    layer = ek.EideticBatchNorm1d(4, momentum=momentum)
    for _ in range(3):
        layer(torch.randn(5, 4))
    assert layer.num_batches_tracked == 3
    layer.prune([0, 1])
    layer.freeze()
    layer.recycle()
    x = torch.randn(8, 4) + 3
    layer(x)
    expected = x[:, 2:].mean(0) * (1 if momentum is None else momentum)
    assert_close("running mean", layer.running_mean, expected)


def test_a_normalisation_without_live_units_trains_nothing():
    layer = ek.EideticBatchNorm1d(4)
    layer.freeze()
    x = torch.randn(1, 4)  # too few for batch statistics, of which there are none
    assert_same_bits("output", layer.train()(x), layer.eval()(x))
    assert layer.num_batches_tracked == 0


def test_frozen_units_are_buffers_and_live_ones_parameters():
    layer = ek.EideticLinear(3, 4)
    layer.prune([0, 1])
    layer.freeze()
    assert sum(p.numel() for p in layer.parameters()) == 0
    layer.recycle()
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"weight", "bias"} and layer.weight.shape == (2, 3)
    assert not layer.frozen_weight.requires_grad and layer.frozen_weight.numel() == 6


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 10.0, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    ],
)
def test_no_optimizer_reaches_frozen_units(optimizer):
    layer = ek.EideticLinear(3, 6)
    layer.prune([0, 1])
    layer.freeze()
    frozen = layer.frozen_weight.clone()
    layer.recycle()
    fresh = optimizer(layer.parameters())
    before = layer.weight.detach().clone()
    for _ in range(3):
        layer(torch.randn(4, 3)).sum().backward()
        fresh.step()
    assert_same_bits("frozen weights", layer.frozen_weight, frozen)
    assert not torch.equal(layer.weight, before)


def test_frozen_rows_of_a_task():
    layer = ek.EideticLinear(3, 6)
    rows = []
    for kept in ([0, 1], [2]):
        layer.prune(kept)
        rows.append((layer.weight.detach().clone(), layer.bias.detach().clone()))
        layer.freeze()
        layer.recycle()
    for task, (weight, bias) in enumerate(rows):
        given = layer.frozen_rows_of(task)
        assert torch.equal(given[0], weight) and torch.equal(given[1], bias)


# ---- saving, copying, moving


def segmented_layers():
    torch.manual_seed(1)
    layers = [
        (ek.EideticLinear(3, 6), torch.randn(4, 3)),
        (ek.EideticLinear(3, 6, bias=False), torch.randn(4, 3)),
        (ek.EideticConv2d(3, 6, 3), torch.randn(4, 3, 5, 5)),
        (ek.EideticBatchNorm1d(6), torch.randn(4, 6)),
        (ek.EideticBatchNorm2d(6, affine=False), torch.randn(4, 6, 3, 3)),
    ]
    for layer, _ in layers:
        for kept in ([0, 1], [2]):
            layer.prune(kept)
            layer.freeze()
            layer.recycle()
        scramble(layer)
    return layers


LAYERS = range(5)


@pytest.mark.parametrize("index", LAYERS)
def test_state_dict_round_trip_with_frozen_segments(index):
    layer, x = segmented_layers()[index]
    other = copy.deepcopy(layer)
    scramble(other)
    assert not torch.equal(other.eval()(x), layer.eval()(x))
    assert any(name.startswith("frozen_") for name in layer.state_dict())
    missing, unexpected = other.load_state_dict(layer.state_dict())
    assert not missing and not unexpected
    assert_same_bits("output", other(x), layer(x))


def test_a_state_dict_without_the_frozen_segments_is_refused():
    layer, _ = segmented_layers()[0]
    state = layer.state_dict()
    shorter = {**state, "frozen_weight": state["frozen_weight"][1:]}
    with pytest.raises(RuntimeError, match=r"frozen_weight has shape \(8,\), expected \(9,\)"):
        layer.load_state_dict(shorter)
    del state["frozen_weight"]
    with pytest.raises(RuntimeError, match="Missing key.*frozen_weight"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key.*frozen_weight"):
        ek.EideticLinear(3, 6).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("index", LAYERS)
def test_deepcopy_is_a_layer_of_its_own(index):
    layer, x = segmented_layers()[index]
    layer.eval()
    twin, before = copy.deepcopy(layer), layer(x)
    assert_same_bits("output", twin(x), layer(x))
    twin.prune([])
    twin.freeze()
    assert layer.segments.tasks == 2 and twin.segments.tasks == 3
    scramble(twin)
    assert_same_bits("output", layer(x), before)


@pytest.mark.parametrize("index", LAYERS)
def test_to_float64_moves_the_frozen_units_too(index):
    layer, x = segmented_layers()[index]
    before = layer.eval()(x)
    layer.to(torch.float64)
    assert_close("output", layer(x.double()).float(), before)
    layer.prune([0])
    layer.freeze()
    layer.recycle()
    assert all(t.dtype == torch.float64 for t in layer.state_dict().values() if t.is_floating_point())


def test_bfloat16_input_of_a_normalisation_under_autocast():
    """Statistics stay in float32 while activations are in bfloat16."""
    layer = ek.EideticBatchNorm2d(6)
    layer.prune([0, 1])
    layer.freeze()
    layer.recycle()
    x = torch.randn(4, 6, 3, 3)
    expected = copy.deepcopy(layer)(x)
    half = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(half)
    y.float().square().sum().backward()
    assert y.dtype == half.grad.dtype == torch.bfloat16 and layer.running_mean.dtype == torch.float32
    assert_close("output", y, expected)


# ---- dropout


def test_dropout_leaves_frozen_units_alone():
    layer = EideticDropout(0.5)
    layer.wire(Source(Segments(8, 4, (3, 1)), block=2), layer.scope)
    x = torch.randn(50, 16)
    y = layer(x)
    assert_same_bits("frozen columns", y[:, :8], x[:, :8])
    dropped = y[:, 8:] == 0
    assert 0.3 < dropped.float().mean() < 0.7
    assert torch.equal(y[:, 8:][~dropped], 2 * x[:, 8:][~dropped])
    assert_same_bits("evaluation", layer.eval()(x), x)


def test_dropout_is_torchs_while_nothing_is_frozen():
    x, results = torch.randn(5, 6), []
    for layer in (EideticDropout(0.4), nn.Dropout(0.4)):
        torch.manual_seed(2)
        results.append(layer(x))
    assert_same_bits("output", *results)


def test_dropout_with_everything_frozen_is_nothing():
    layer = EideticDropout(0.5)
    layer.wire(Source(Segments(4, 0, (4,))), layer.scope)
    x = torch.randn(5, 4)
    assert layer(x) is x


# ---- errors


def raising(error, text, call, *args, **options):
    with pytest.raises(error, match=re.escape(text)):
        call(*args, **options)


def test_constructor_errors():
    raising(InputError, "EideticConv2d supports groups=1, got groups=2", ek.EideticConv2d, 4, 4, 3, groups=2)
    raising(InputError, "padding_mode must be one of zeros, reflect", ek.EideticConv2d, 4, 4, 3, padding_mode="ones")
    raising(InputError, "padding='same' needs stride 1, got stride (2, 2)", ek.EideticConv2d, 4, 4, 3, 2, "same")
    raising(InputError, "'same' or 'valid'; got 'full'", ek.EideticConv2d, 4, 4, 3, padding="full")
    raising(
        InputError,
        "track_running_stats=False has no statistics to freeze",
        ek.EideticBatchNorm1d,
        4,
        track_running_stats=False,
    )
    raising(
        InputError,
        "activation must be one of none, relu, relu6, silu, gelu, hardswish; got 'tanh'",
        ek.EideticBatchNorm1d,
        4,
        activation="tanh",
    )
    raising(InputError, "out_features must be a whole number of units", ek.EideticLinear, 4, 2.5)


def test_input_shape_errors():
    linear, conv = ek.EideticLinear(4, 2), ek.EideticConv2d(4, 2, 3)
    raising(InputError, "expects an input of shape [N, 4], got [3, 5]", linear, torch.zeros(3, 5))
    raising(InputError, "expects an input of shape [N, 4], got []", linear, torch.zeros(()))
    raising(InputError, "expects an input of shape [N, 4, H, W], got [1, 3, 5, 5]", conv, torch.zeros(1, 3, 5, 5))
    raising(InputError, "expects an input of shape [N, 4, H, W], got [4, 5, 5]", conv, torch.zeros(4, 5, 5))
    norm = ek.EideticBatchNorm1d(4)
    raising(
        InputError, "expects 2-dimensional or 3-dimensional input with 4 channels, got [2, 5]", norm, torch.zeros(2, 5)
    )
    raising(InputError, "4-dimensional input with 4 channels, got [2, 4]", ek.EideticBatchNorm2d(4), torch.zeros(2, 4))


def test_the_expected_width_follows_the_life():
    norm = ek.EideticBatchNorm1d(4)
    norm.prune([0])
    raising(InputError, "input with 1 channels, got [2, 4]", norm, torch.zeros(2, 4))


def test_dtype_errors():
    for dtype in (torch.float64, torch.int64):
        raising(
            InputError,
            f"holds torch.float32 and was given {dtype}: convert the input (x.to(torch.float32))",
            ek.EideticLinear(4, 2),
            torch.zeros(3, 4, dtype=dtype),
        )
    raising(InputError, "was given torch.uint8", ek.EideticConv2d(4, 2, 1), torch.zeros(3, 4, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1)])
def test_batch_statistics_of_one_sample(shape):
    norm = ek.EideticBatchNorm1d(4)
    raising(InputError, "needs more than one value per channel in training", norm, torch.zeros(shape))
    assert norm.num_batches_tracked == 0 and not norm.running_mean.any()
    norm.eval()(torch.zeros(shape))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ek.EideticLinear(0, 3), lambda: ek.EideticLinear(3, 0), lambda: ek.EideticConv2d(0, 3, 1),
        lambda: ek.EideticGroupedConv2d(0, 1, 1), lambda: ek.EideticBatchNorm1d(0), lambda: ek.EideticLayerNorm(0),
    ],
    ids=["no columns", "no units", "no channels read", "grouped", "batch norm", "layer norm"],
)  # fmt: skip
def test_an_empty_parameter_takes_no_gradient(make):
    """Some optimizers divide by a parameter's number of elements; every other parameter learns."""
    parameters = list(make().parameters())
    assert any(not parameter.numel() for parameter in parameters)
    assert all(parameter.requires_grad == bool(parameter.numel()) for parameter in parameters)


def test_pruning_errors_change_nothing():
    layer = ek.EideticLinear(4, 3)
    weight = layer.weight
    for keep in ([1, 0], [1, 1], [[0]]):
        raising(InputError, "keep must be a list of ascending unit indices without repetition", layer.prune, keep)
    for keep in ([3], [-1, 0]):
        raising(InputError, "keep names units outside 0..2", layer.prune, keep)
    assert layer.weight is weight and layer.segments.live == 3


def test_recycling_errors():
    layer = ek.EideticLinear(4, 3)
    raising(TaskError, "3 live units are in training; freeze them before recycling", layer.recycle)
    layer.prune([0])
    layer.freeze()
    raising(CapacityError, "3 live units were asked for, but 1 of 3 are frozen and only 2 are free", layer.recycle, 3)
    layer.recycle()
    layer.freeze()
    raising(CapacityError, "all 3 units are frozen; nothing is left to recycle", layer.recycle)
    layer.recycle(0)


def test_layers_of_a_network_live_with_it():
    class Net(ek.EideticNetwork):
        def __init__(self):
            super().__init__()
            self.fc = ek.EideticLinear(4, 3)

        def forward(self, x):
            return self.fc(x)

    net = Net()
    assert len(net.groups) == 1
    raising(TaskError, "call net.prune", net.fc.prune, [0])
    raising(TaskError, "call net.finish_task", net.fc.freeze)
    raising(TaskError, "call net.prepare_for_task", net.fc.recycle)
    raising(InputError, "is part of a network and expects [N, 4], got [2, 3, 4]", net.fc, torch.zeros(2, 3, 4))
    used = Net()
    used.fc.prune([0])
    raising(TaskError, "was already pruned, frozen or added to a network", lambda: used.wiring)
