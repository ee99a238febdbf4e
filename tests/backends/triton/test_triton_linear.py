"""Triton's staircase linear, in the interpreter or on a GPU: the float64 oracle, and equal bits where promised."""

import copy
import gc
import math
import random
import weakref

import pytest
import torch
from fused_networks import NETWORKS, on_device_learn
from life import batch
from slow import slow
from staircases import CASES, Case, Layer, assert_close, assert_same_bits, inside_poison, random_case

from eidetic_kernels import backends
from eidetic_kernels.backends.arguments import Norm as BatchNorm
from eidetic_kernels.backends.arguments import Weights
from eidetic_kernels.layout import Span, Stair, Staircase
from eidetic_kernels.ops import ACTIVATIONS, segmented_batch_norm_oracle, staircase_linear_oracle

pytest.importorskip("triton", reason="Triton is not installed")
import interpreter  # noqa: E402, F401  repairs bfloat16

from eidetic_kernels.backends.triton import linear  # noqa: E402
from eidetic_kernels.backends.triton.launch import INTERPRETED  # noqa: E402

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOMENTUM, EPS = 0.3, 1e-3

# Sizes that divide by 16, several spans, and both kinds of reading.
ALIGNED = Case((16, ((32, 16), 16, 1)), (48, 16), 32, (True, False, True))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles that small cases fill several times. A GPU's products need 16 of everything."""
    monkeypatch.setattr(linear, "choose_tile", lambda dtype, precision, samples: linear.Tile(16, 16, 16, 4, 2))


class Norm:
    """A staircase linear with a normalisation behind it: its tensors, and both ways to compute it."""

    def __init__(self, case, dtype=torch.float32, bias=True, affine=True, shift=0.0):
        self.layer, self.case, self.stairs = Layer(case, bias=bias, dtype=dtype), case, case.staircase()
        frozen, live = self.stairs.frozen_rows, self.stairs.rows - self.stairs.frozen_rows
        self.scale, self.shift = torch.rand(frozen) + 0.5, torch.randn(frozen)
        self.weight, self.bias = (torch.rand(live) + 0.5, torch.randn(live)) if affine else (None, None)
        self.running = torch.randn(live), torch.rand(live) + 0.5
        if bias:
            self.layer.bias += shift

    def norm(self, convert, training, activation):
        tensors = self.weight, self.bias, *self.running, self.scale, self.shift
        return BatchNorm(*(None if t is None else convert(t) for t in tensors), training, MOMENTUM, EPS, activation)

    def run(self, x, training, activation, stairs=None):
        """y, pre, mean, rstd and the running statistics afterwards; the case's own tensors are left alone."""
        x = x.to(DEVICE) if x.device.type != DEVICE else x
        weights = self.layer.weights(on_device)
        norm = self.norm(lambda t: t.clone().to(DEVICE), training, activation)
        results = linear.staircase_linear_norm_forward(x, weights, stairs or self.stairs, norm)
        moved = {"running_mean": norm.running_mean, "running_var": norm.running_var}
        return {**dict(zip(("y", "pre", "batch_mean", "rstd"), results)), **moved}

    def expected(self, x, training, activation):
        norm = self.norm(torch.Tensor.double, training, activation)
        mean, var = norm.running_mean, norm.running_var
        frozen = self.stairs.frozen_rows
        product = staircase_linear_oracle(x.double(), self.layer.weights(torch.Tensor.double), self.stairs)
        pre = product[:, frozen:].contiguous()
        batch_mean = pre.mean(0) if training else mean.clone()
        batch_var = (pre - batch_mean).square().mean(0) if training else var.clone()
        y = segmented_batch_norm_oracle(product, norm)
        rstd = (batch_var + EPS).rsqrt()
        return {"y": y, "pre": pre, "batch_mean": batch_mean, "rstd": rstd, "running_mean": mean, "running_var": var}

    def check(self, samples, training, activation="none", condition=1.0):
        x = torch.randn(samples, self.stairs.columns).to(self.layer.weight.dtype)
        # On the CPU the statistics' own dtype, float32, is stricter than that of what they are statistics of.
        given, expected = self.run(x, training, activation), self.expected(x, training, activation)
        for name, tensor in expected.items():
            result = given[name]
            assert result.dtype == (x.dtype if name in ("y", "pre") else torch.float32), name
            assert_close(f"{name} of {self.case}", result.to(x.dtype), tensor, condition)


def on_device(tensor):
    return tensor.to(DEVICE)


def product(layer, x, stairs):
    return linear.staircase_linear_forward(x.to(DEVICE), layer.weights(on_device), stairs)


EVERY_DTYPE = ("nothing frozen", "reading nothing", "concatenated", "aligned")


@pytest.mark.parametrize("dtype", [DTYPES[0], *slow(*DTYPES[1:])], ids=str)
@pytest.mark.parametrize("name", [*CASES, "aligned"])
def test_equals_the_oracle(name, dtype, small_tiles, poisoned_memory):
    """One sample, one block and a few; with bias and without; every output written, though memory was NaN."""
    if dtype != torch.float32 and name not in EVERY_DTYPE:
        return
    case = CASES.get(name, ALIGNED)
    for bias, samples in ((True, 21), (False, 16), (True, 1)):
        layer = Layer(case, bias=bias, dtype=dtype)
        x = torch.randn(samples, len(case.column_owners())).to(dtype)
        expected = staircase_linear_oracle(x.double(), layer.weights(torch.Tensor.double), case.staircase())
        assert_close(f"{samples} samples", product(layer, x, case.staircase()), expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", [*CASES, "aligned"])
def test_the_norm_equals_the_oracle(name, training, small_tiles, poisoned_memory):
    case, dtype = CASES.get(name, ALIGNED), torch.float32  # half precision is random_layers' share
    Norm(case, dtype).check(21, training, "relu")
    Norm(case, dtype, bias=False, affine=False).check(16, training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, training, small_tiles):
    Norm(CASES["nested"]).check(20, training, activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_are_activated_as_torch_does(activation, small_tiles):
    values = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 3.0, -3.0, 6.0, 1e30, -1e30])
    case = Case((1,), (1,), 1, (True, True))  # one frozen and one live unit, each of which is its column
    norm = Norm(case, affine=False, bias=False)
    norm.layer.weight.fill_(1), norm.layer.frozen_weight.fill_(1)
    norm.scale.fill_(1), norm.shift.fill_(0)
    norm.running = torch.zeros(1), torch.ones(1) - EPS
    x = values.view(-1, 1)
    y = norm.run(x, False, activation)["y"].cpu()
    expected = norm.expected(x, False, activation)["y"]
    for value, given, wanted in zip(values.tolist(), y, expected):
        assert_close(f"{activation}({value})", given, wanted.float(), least=1.0)


@pytest.mark.parametrize("dtype", [DTYPES[0], *slow(*DTYPES[1:])], ids=str)
def test_random_layers(dtype, small_tiles):
    generator = random.Random(0)
    for samples in (2, 16, 33, 18, 5):
        case = random_case(generator, 40)
        Norm(case, dtype, generator.random() < 0.5, generator.random() < 0.5).check(samples, generator.random() < 0.5)


@pytest.mark.parametrize("dtype", [DTYPES[0], *slow(*DTYPES[1:])], ids=str)
@pytest.mark.parametrize("samples", [96, 515])
def test_the_tiles_of_gpus(samples, dtype):
    """The tiles that are really used: several spans, several steps, and more than one block of samples."""
    case = Case((((100, 30), 20, 1), 7), (70, 9), 40, (True, False, True))
    Norm(case, dtype).check(samples, True, "relu")


def test_a_mean_a_thousand_deviations_wide(small_tiles):
    """A plain sum of squares would be wrong in the first digit."""
    norm = Norm(CASES["nothing frozen"], shift=1000.0)
    x = torch.randn(100, norm.stairs.columns)
    spread = norm.expected(x, True, "none")["rstd"].reciprocal()
    assert (spread < 2).all()
    norm.check(100, True, condition=1000)


def test_statistics_are_those_of_the_rounded_values(small_tiles):
    """What is normalised, and what a backward pass sees, is ``pre`` in its own dtype."""
    norm = Norm(CASES["nested"], torch.bfloat16)
    given = norm.run(torch.randn(40, norm.stairs.columns).bfloat16(), True, "none")
    pre = given["pre"].double()
    assert_close("mean", given["batch_mean"], pre.mean(0))
    assert_close("rstd", given["rstd"], (pre.var(0, unbiased=False) + EPS).rsqrt())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_empty_batch(training):
    norm = Norm(CASES["nested"])
    given = norm.run(torch.randn(0, norm.stairs.columns), training, "relu")
    assert given["y"].shape == (0, norm.stairs.rows) and given["pre"].shape == (0, norm.case.live)
    assert given["batch_mean"].isfinite().all() and given["rstd"].isfinite().all()
    assert_same_bits("running mean", given["running_mean"].cpu(), norm.running[0])
    assert product(norm.layer, torch.randn(0, norm.stairs.columns), norm.stairs).shape == (0, norm.stairs.rows)


def followed_by_nan(x):
    """``x`` where what comes next in memory is NaN."""
    longer = x.new_full((x.numel() + 64,), math.nan)
    return longer[: x.numel()].view(x.shape).copy_(x)


@pytest.mark.parametrize("name", ["nested", "concatenated", "all frozen"])
def test_nothing_is_read_beyond_the_ends(name, small_tiles):
    layer = Layer(CASES[name])
    stairs = layer.case.staircase()
    x = torch.randn(21, stairs.columns, dtype=torch.float64)
    for dtype in DTYPES:
        x, *tensors = [followed_by_nan(t.to(dtype).to(DEVICE)) for t in (x, *layer.weights())]
        wide = Weights(*(t.cpu().double() for t in tensors))
        expected = staircase_linear_oracle(x.cpu().double(), wide, stairs)
        assert_close(f"{dtype}", linear.staircase_linear_forward(x, Weights(*tensors), stairs), expected)


@pytest.mark.parametrize("name", ["nested", "concatenated", "recall of the last", "aligned"])
def test_inputs_lie_anyhow(name, small_tiles):
    """A slice of something wider whose other values are NaN, columns first, one sample seen many times: equal bits."""
    norm = Norm(CASES.get(name, ALIGNED))
    x = torch.randn(21, norm.stairs.columns)
    expected = norm.run(x, True, "relu")["y"]
    for other in (inside_poison(x), x.t().contiguous().t()):
        assert_same_bits("y", norm.run(other.to(DEVICE), True, "relu")["y"], expected)
    many = x[:1].to(DEVICE).expand(21, -1)
    assert_same_bits("expanded", product(norm.layer, many, norm.stairs), product(norm.layer, many.clone(), norm.stairs))


@pytest.mark.parametrize("dtype", [DTYPES[0], *slow(*DTYPES[1:])], ids=str)
def test_recall_has_the_same_bits_alone_and_beside_others(dtype, small_tiles):
    """P1: a task's prefix, its weights all there is; later the same with more segments, live ones NaN, in training."""
    generator = random.Random(1)
    # Side by side, sources touch in recall between whose spans lies what others own in training.
    concatenated = Case((3, ((20, 1), 18, 1), ((17, 5), 3, 2)), (2, 3), 4, (True, False, False))
    for samples, case in ((17, random_case(generator, 36)), (1, random_case(generator, 36)), (17, concatenated)):
        norm = Norm(case, dtype)
        layer = norm.layer
        for task in range(case.live_task):
            stairs, owners = case.staircase(task), case.column_owners(None)
            full = torch.randn(samples, len(owners)).to(dtype)
            full[:, owners > task] = math.nan
            prefix = full[:, owners <= task]

            alone = Norm(case, dtype)
            size = sum(stair.rows * stair.columns for stair in stairs.stairs)
            alone.layer.weight, alone.layer.bias = layer.weight[:0], layer.bias[:0]
            alone.layer.frozen_weight = layer.frozen_weight[:size].clone()
            alone.layer.frozen_bias = layer.frozen_bias[: stairs.rows].clone()
            alone.scale, alone.shift = norm.scale[: stairs.rows].clone(), norm.shift[: stairs.rows].clone()
            alone.weight, alone.bias, alone.running = None, None, (torch.empty(0), torch.empty(0))
            then = alone.run(prefix.contiguous(), False, "silu", stairs)["y"]

            later = Norm(case, dtype)
            later.layer, later.scale, later.shift = layer, norm.scale, norm.shift
            layer.weight.fill_(math.nan), layer.bias.fill_(math.nan)
            for training in (True, False):
                now = later.run(full, training, "silu", case.staircase(None))["y"]
                assert_same_bits(f"task {task} of {case}", now[:, : stairs.rows], then)
            plain = product(layer, full, case.staircase(None))[:, : stairs.rows]
            assert_same_bits("without a norm", plain, product(alone.layer, prefix, stairs))


@pytest.mark.parametrize("dtype", [DTYPES[0], *slow(*DTYPES[1:])], ids=str)
@pytest.mark.parametrize("tile", [linear.Tile(16, 16, 16, 4, 2), linear.Tile(64, 64, 64, 4, 4)], ids=["small", "real"])
def test_aligned_and_ragged_launches_give_the_same_bits(tile, dtype, monkeypatch):
    """P1: a frozen segment meets a ragged neighbour, or an input of another stride, and does not notice."""
    monkeypatch.setattr(linear, "choose_tile", lambda *_: tile)
    launched = []
    kernel = linear.staircase_linear_kernel

    class Spy:
        def __getitem__(self, grid):
            return lambda *tensors, **options: (launched.append(options["ALIGNED"]), kernel[grid](*tensors, **options))

    monkeypatch.setattr(linear, "staircase_linear_kernel", Spy())

    spans = (Span(16, 48), Span(64, 144))
    block, neighbour = torch.randn(48, 112).to(dtype), torch.randn(37, 61).to(dtype)
    x = torch.randn(50, 160).to(dtype)
    alone = Staircase((Stair(48, spans),), 160)
    beside = Staircase((Stair(48, spans), Stair(37, (Span(3, 64),))), 160)
    numbers = torch.rand(85).to(dtype), torch.rand(85), torch.rand(85)

    def run(stairs, frozen, x):
        rows = stairs.rows
        nothing = x.new_empty(0, 0).to(DEVICE), x.new_empty(0).to(DEVICE)
        bias, *affine = [t[:rows].to(DEVICE) for t in numbers]
        x = x.to(DEVICE) if x.device.type != DEVICE else x
        norm = BatchNorm(None, None, *torch.empty(2, 0, device=DEVICE), *affine, False, 0.1, EPS, "silu")
        return linear.staircase_linear_norm_forward(x, Weights(*nothing, frozen.to(DEVICE), bias), stairs, norm)[0]

    wider = torch.full((50, 171), math.nan).to(dtype)
    wider[:, :160] = x
    expected = run(alone, block.flatten(), x)
    assert_same_bits("beside", run(beside, torch.cat([block.flatten(), neighbour.flatten()]), x)[:, :48], expected)
    assert_same_bits("another stride", run(alone, block.flatten(), wider.to(DEVICE)[:, :160]), expected)
    assert launched == [True, False, False]


def test_nothing_is_called_aligned_that_is_not(small_tiles, poisoned_memory):
    """Were a size wrongly said to divide by 16, the kernel would round it down and the numbers would be wrong."""
    aligned = Staircase((Stair(16, (Span(0, 16), Span(32, 48))), Stair(32, (Span(16, 48),))), 48)
    assert linear.table(aligned, 16, torch.device("cpu")).aligned
    for name, stairs in {
        "rows": (Stair(17, (Span(0, 16),)), Stair(32, (Span(16, 48),))),
        "start": (Stair(16, (Span(8, 24),)), Stair(32, (Span(16, 48),))),
        "length": (Stair(16, (Span(0, 24),)), Stair(32, (Span(16, 48),))),
        "a second span": (Stair(16, (Span(0, 16), Span(32, 40))), Stair(32, (Span(16, 48),))),
    }.items():
        stairs = Staircase(stairs, 48)
        assert not linear.table(stairs, 16, torch.device("cpu")).aligned, name
        weight = torch.randn(sum(stair.rows * stair.columns for stair in stairs.stairs))
        for x in (torch.randn(20, 48), torch.randn(20, 50)[:, :48]):
            weights = Weights(x.new_empty(0, 0).to(DEVICE), None, weight.to(DEVICE), None)
            given = linear.staircase_linear_forward(x.to(DEVICE), weights, stairs)
            wide = Weights(x.new_empty(0, 0).double(), None, weight.double(), None)
            assert_close(name, given, staircase_linear_oracle(x.double(), wide, stairs))


def test_the_table_covers_every_unit_once_and_is_kept_with_its_staircase():
    for case in [*CASES.values(), random_case(random.Random(3), 300)]:
        stairs = case.staircase()
        made = linear.table(stairs, 16, torch.device("cpu"))
        assert linear.table(stairs, 16, torch.device("cpu")) is made
        assert linear.table(case.staircase(), 16, torch.device("cpu")) is not made
        columns = [column for start, units, *_ in made.tiles.tolist() for column in range(start, start + units)]
        assert sorted(columns) == list(range(stairs.rows))
        assert all(1 <= units <= 16 for units in made.tiles[:, 1])
        work = made.tiles[:, 3].tolist()
        assert work == sorted(work, reverse=True), "the tiles that read most come first"


def test_tables_of_other_tiles_devices_and_segments_are_others():
    stairs = CASES["nested"].staircase()
    made = linear.table(stairs, 16, torch.device("cpu"))
    assert len(linear.table(stairs, 2, torch.device("cpu")).tiles) > len(made.tiles)
    frozen = linear.table(stairs, 16, torch.device("cpu"), live=False).tiles
    assert len(frozen) and not frozen[:, 4].any() and made.tiles[:, 4].any()
    assert linear.table(stairs, 16, torch.device("meta")).tiles.device.type == "meta"
    assert linear.table(stairs, 16, torch.device("cpu")) is made


def test_a_table_lives_and_dies_with_its_staircase():
    """A captured CUDA graph reads it at its address: no number of other layers may drive it out, and nothing global
    may keep it."""
    stairs = CASES["nested"].staircase()
    made = linear.table(stairs, 16, torch.device("cpu"))
    for units in range(1, 1200):
        linear.table(Staircase((Stair(units, (Span(0, 3),)),), 3), 16, torch.device("cpu"))
    assert linear.table(stairs, 16, torch.device("cpu")) is made
    assert not copy.deepcopy(stairs).kept and copy.deepcopy(stairs) == stairs
    alive = weakref.ref(made.tiles)
    del made, stairs
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("name", ["layers", *slow("images")])
def test_nothing_is_copied_to_the_device_again_until_the_layer_changes(name, monkeypatch):
    """Tables of finished tasks for ever; in training from one change of units to the next."""
    made = []
    right = linear._table
    monkeypatch.setattr(linear, "_table", lambda *given: made.append(right(*given)) or made[-1])
    net = NETWORKS[name]().to(DEVICE)
    for task in range(2):
        on_device_learn(net, task, DEVICE)
    net.prepare_for_task(2, 3, max_units=0.4)
    x = batch(net, 2)[0].to(DEVICE)

    def round_of_tasks():
        for task in (0, 1, None):
            net.train(task is None)
            net(x, task=task)
        return [layer.staircase(0) for layer in net.modules() if hasattr(layer, "staircase")]

    with backends.using("triton"), torch.no_grad():
        before = round_of_tasks()
        count = len(made)
        assert count and any(stairs.kept for stairs in before)
        round_of_tasks()
        assert len(made) == count
        net.prune(0.5)
        assert all(a is b for a, b in zip(before, round_of_tasks()))
        assert count < len(made) < 2 * count


def test_addresses_beyond_32_bits(small_tiles, monkeypatch):
    """Rows of the input, and a segment's weights, lie more than 2**31 elements from the start, in untouched memory."""
    stride = 2**23 + 16
    far = torch.empty(270 * stride, dtype=torch.bfloat16, device=DEVICE).as_strided((270, 20), (stride, 1))
    x = torch.randn(270, 20).to(torch.bfloat16)
    far.copy_(x)
    layer = Layer(Case((20,), (3,), 2, (True, True)), dtype=torch.bfloat16)
    stairs = layer.case.staircase()
    assert_same_bits("far rows", product(layer, far, stairs), product(layer, x, stairs))
    del far

    stairs = Staircase((Stair(2**20, (Span(0, 2**11),)), Stair(16, (Span(0, 20),))), 2**11)
    weights = torch.empty(2**31 + 16 * 20, dtype=torch.bfloat16, device=DEVICE)
    weights[2**31 :] = torch.randn(16 * 20)
    made = linear.table(stairs, 16, weights.device)
    last = made._replace(tiles=made.tiles[made.tiles[:, 2] >= 2**31])
    assert len(last.tiles) == 1
    monkeypatch.setattr(linear, "table", lambda *_: last)
    x = torch.randn(1, 2**11).to(torch.bfloat16)
    given = Weights(x.new_empty(0, 0).to(DEVICE), None, weights, None)
    y = linear.staircase_linear_forward(x.to(DEVICE), given, stairs)
    expected = x[:, :20].double() @ weights[2**31 :].view(16, 20).cpu().double().t()
    assert_close("far weights", y[:, -16:], expected)


def test_what_is_not_supported_is_said():
    layer = Layer(CASES["nested"], dtype=torch.float32)
    stairs, x = layer.case.staircase(), torch.randn(3, layer.case.staircase().columns)
    assert linear.staircase_linear_supports(x.to(DEVICE), layer.weight, layer.frozen_weight, stairs) is None
    wide = [t.double() for t in (x, layer.weight, layer.frozen_weight)]
    assert "float64" in linear.staircase_linear_supports(*wide, stairs)
    assert "differ" in linear.staircase_linear_supports(x.half(), layer.weight, layer.frozen_weight, stairs)
    far = torch.empty(1, device="meta").expand(3, x.shape[1]).as_strided((3, x.shape[1]), (2**24, 1))
    assert "2**24" in linear.staircase_linear_supports(far, layer.weight, layer.frozen_weight, stairs)
    meta = [t.to("meta") for t in (x, layer.weight, layer.frozen_weight)]
    assert "meta" in linear.staircase_linear_supports(*meta, stairs)
