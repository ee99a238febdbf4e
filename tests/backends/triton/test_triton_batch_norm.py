"""Segmented BatchNorm in Triton against the oracle: in the interpreter where there is no GPU."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

import interpreter
from kernel_cases import CHANNELS, EPS, MOMENTUM, SHAPES, NormCase, applied, norm_of
from staircases import inside_poison
from tolerances import assert_close, assert_same_bits

from eidetic_kernels.backends.activations import FUNCTIONS
from eidetic_kernels.backends.arguments import Norm, NormGradients
from eidetic_kernels.backends.triton import batch_norm, blocks, gradients, launch, statistics
from eidetic_kernels.ops import ACTIVATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def one_block(monkeypatch):
    """Blocks so large that each kernel is one program: the interpreter's time goes by the number of programs."""
    if INTERPRETED:
        for name in ("BLOCK", "APPLY_RUN", "REDUCE_RUN"):
            monkeypatch.setattr(blocks, name, 2**14)


@pytest.fixture
def many_blocks(monkeypatch):
    """Blocks so small that rows, channels and pixels are all split, ragged at every end, and merged."""
    if INTERPRETED:
        sizes = {"BLOCK": 64, "APPLY_RUN": 8, "REDUCE_RUN": 8, "SPLIT_AFTER": 1, "STEPS": 3, "PROGRAMS": 6}
        for name, size in sizes.items():
            monkeypatch.setattr(blocks, name, size)


def launches(monkeypatch):
    """The names of the kernels launched from now on, filled in as they are."""
    names = []
    for module in (statistics, batch_norm, gradients):
        for name in [name for name in dir(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Counted(getattr(module, name), name, names))
    return names


class Counted:
    def __init__(self, kernel, name, names):
        self.kernel, self.name, self.names = kernel, name, names

    def __getitem__(self, grid):
        self.names.append(self.name)
        return self.kernel[grid]


@pytest.mark.usefixtures("one_block", "poisoned_memory")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equals_the_oracle(channels, shape):
    for training, full_input_grad in ((True, False), (False, True)):
        case = NormCase(
            CHANNELS[channels],
            SHAPES[shape],
            activation="relu",
            training=training,
            residual=training,
            full_input_grad=full_input_grad,
        )
        if not case.ill_posed:
            case.check(batch_norm, DEVICE)


@pytest.mark.usefixtures("one_block", "poisoned_memory")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_options(activation):
    for training, residual, full_input_grad in itertools.product((True, False), repeat=3):
        affine = (training + residual + full_input_grad) % 2 == 1
        options = {"training": training, "residual": residual, "full_input_grad": full_input_grad, "affine": affine}
        NormCase(shape=(3, 4, 5), activation=activation, **options).check(batch_norm, DEVICE)


@pytest.mark.usefixtures("one_block", "poisoned_memory")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("shape", [(37,), (4, 5), (3, 7, 5)], ids=str)
def test_half_precision(shape, dtype):
    for training, activation in ((True, "silu"), (False, "relu")):
        case = NormCase(
            shape=shape,
            dtype=dtype,
            activation=activation,
            training=training,
            residual=True,
            full_input_grad=not training,
            channels_last=len(shape) == 3,
        )
        case.check(batch_norm, DEVICE)


@pytest.mark.usefixtures("one_block")
def test_parameters_of_half_precision():
    case = NormCase(dtype=torch.bfloat16, residual=True)
    tensors = case.tensors(DEVICE)
    small = {name: tensor.bfloat16() for name, tensor in tensors.items() if tensor.dim() == 1}
    results = case.run(batch_norm, tensors | {name: tensor.clone() for name, tensor in small.items()})
    rounded = {name: tensor.float() for name, tensor in small.items()}
    expected = case.run(batch_norm, tensors | rounded)
    for name, tensor in results.items():
        assert tensor.dtype == torch.bfloat16
        assert_close(name, tensor, expected[name])


@pytest.mark.usefixtures("many_blocks", "poisoned_memory")
@pytest.mark.parametrize(
    "case",
    [
        NormCase((7, 20), (37,), activation="gelu"),
        NormCase((3, 2), (3, 7, 5), residual=True),
        NormCase((7, 12), (3, 3, 5), residual=True, channels_last=True, activation="relu"),
        NormCase((1, 2), (5, 70), full_input_grad=True),
        NormCase((16, 16), (20,), dtype=torch.bfloat16),
        NormCase((3, 9), (40,), training=False, full_input_grad=True),
    ],
    ids=str,
)
def test_split_among_blocks(case):
    case.check(batch_norm, DEVICE)


def test_large_enough_to_be_split(monkeypatch):
    names = launches(monkeypatch)
    NormCase((2, 3), (2100,), mean=3.0).check(batch_norm, DEVICE)
    assert names == ["statistics_kernel", "merge_kernel", "apply_kernel", "gradient_sums_kernel", "gradients_kernel"]


@pytest.mark.usefixtures("one_block")
def test_few_launches(monkeypatch):
    names = launches(monkeypatch)
    forward = ["statistics_kernel", "apply_kernel"]
    backward = ["gradient_sums_kernel", "gradients_kernel"]
    NormCase(residual=True).check(batch_norm, DEVICE)
    assert names == forward + backward
    names.clear()
    NormCase(residual=True, training=False).check(batch_norm, DEVICE)
    assert names == forward[1:] + backward
    names.clear()
    NormCase(training=False, affine=False).check(batch_norm, DEVICE)
    assert names == forward[1:] + backward[1:]
    names.clear()
    NormCase(channels=(6, 0)).check(batch_norm, DEVICE)
    assert names == forward[1:] + backward[1:]


@pytest.mark.usefixtures("one_block", "poisoned_memory")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_memory_formats_and_strides(training):
    last = {"memory_format": torch.channels_last}
    options = {"training": training, "residual": True, "activation": "hardswish"}
    for shape, change in (
        ((3, 4, 5), lambda t: t.contiguous(**last)),
        ((3, 4, 5), inside_poison),
        ((3, 4, 5), lambda t: inside_poison(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        ((3, 4, 5), lambda t: t.transpose(2, 3).contiguous().transpose(2, 3)),
        ((5, 3), inside_poison),
        ((5, 3), lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)),
        ((9,), inside_poison),
        ((9,), lambda t: t.t().contiguous().t()),
    ):
        NormCase(shape=shape, **options).check(batch_norm, DEVICE, change)


@pytest.mark.usefixtures("one_block")
def test_outputs_lie_in_memory_as_the_input():
    case = NormCase(residual=True, channels_last=True)
    tensors = case.tensors(DEVICE)
    for change, contiguous in (
        (lambda t: t, {"memory_format": torch.channels_last}),
        (lambda t: t.contiguous(), {}),
    ):
        results = case.run(batch_norm, tensors | {"x": change(tensors["x"])})
        for name in ("y", "dx", "dresidual"):
            assert results[name].is_contiguous(**contiguous), name


def test_a_slice_of_columns_is_not_copied():
    x = torch.randn(6, 20)
    layout = blocks.Layout.of(x[:, 3:9])
    assert layout.arrange(x[:, 3:9]).data_ptr() == x[:, 3:9].data_ptr()
    assert layout.stride(x[:, 3:9]) == 20
    assert not layout.aligned(0, 20) and layout._replace(channels=32).aligned(16, 64)
    assert not layout._replace(channels=32).aligned(8, 64), "live channels that begin off a boundary"


@pytest.mark.usefixtures("one_block")
def test_an_upstream_gradient_of_one_number():
    """Strides of zero: what a sum's backward hands down."""
    for shape in ((9,), (3, 4, 5)):
        case = NormCase(shape=shape)
        tensors = case.tensors(DEVICE)
        ones = torch.ones((), device=DEVICE).expand(tensors["x"].shape)
        given, written = (
            case.run(batch_norm, case.tensors(DEVICE) | {"dy": dy}) for dy in (ones, torch.ones_like(tensors["x"]))
        )
        for name in ("dx", "dweight", "dbias"):
            assert_same_bits(name, given[name], written[name])


@pytest.mark.usefixtures("many_blocks")
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 1.0), (-300.0, 0.1), (0.0, 1e-4), (0.0, 1e4)])
def test_large_means_and_deviations(mean, std):
    NormCase((1, 2), (3, 30), mean=mean, std=std).check(batch_norm, DEVICE)
    for shape in ((120,), (5, 40)):
        t = NormCase((0, 3), shape, mean=mean, std=std).tensors(DEVICE)
        _, batch_mean, rstd = forward(t, training=True)
        x = t["x"].double().transpose(0, 1).flatten(1)
        # The variance of exactly these numbers, whatever their mean: a plain sum of squares is off by 13 %.
        assert_close("rstd", rstd, (x.var(1, correction=0) + EPS).rsqrt(), condition=1 + abs(mean) / std / 100)
        assert_close("mean", batch_mean, x.mean(1))


def test_a_large_mean_is_found_to_the_last_bit():
    """Sums of large numbers lose what little they differ by; the merge of lanes goes around once more for it."""
    x = torch.randn(300, 16, device=DEVICE) + 1000.3
    none, numbers = x.new_empty(0), x.new_zeros(16)
    norm = Norm(None, None, numbers, numbers + 1, none, none, True, MOMENTUM, EPS)
    _, mean, _ = batch_norm.segmented_batch_norm_forward(x, None, norm)
    expected = x.double().mean(0)
    assert ((mean - expected).abs() / expected).max() < 1.5 * 2**-24


def forward(t, training, activation="none"):
    return batch_norm.segmented_batch_norm_forward(t["x"], t["residual"], norm_of(t, training, activation))


KINKS = [-float("inf"), -200.0, -3.0, -1e-30, -0.0, 0.0, 1.5, 3.0, 6.0, 200.0, float("inf"), float("nan")]


@pytest.mark.usefixtures("one_block")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_kinks_and_beyond_numbers(activation):
    x = torch.tensor(KINKS, dtype=torch.float64, requires_grad=True)
    expected = FUNCTIONS[activation](x)
    expected.sum().backward()
    given = x.detach().float().view(-1, 1).to(DEVICE)
    one, none = given.new_ones(1), given.new_empty(0)
    affine = one, torch.zeros_like(one)
    norm = Norm(None, None, none, none, *affine, True, MOMENTUM, EPS, activation)
    y, mean, rstd = batch_norm.segmented_batch_norm_forward(given, None, norm)
    dx, *_ = batch_norm.segmented_batch_norm_backward(
        torch.ones_like(y), given, None, applied(norm, mean, rstd), NormGradients(True, True, False)
    )
    for name, ours, torchs in (("y", y, expected), ("dx", dx, x.grad)):
        finite = torchs.isfinite()
        ours = ours.flatten().cpu()
        assert_close(name, ours[finite], torchs.detach()[finite])
        assert_same_bits(f"{name} beyond numbers", ours[~finite].nan_to_num(7), torchs[~finite].float().nan_to_num(7))


@pytest.mark.usefixtures("one_block")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nan_and_infinity_stay_in_their_channel(training, value):
    case = NormCase(training=training, activation="relu", full_input_grad=True)
    clean = case.run(batch_norm, case.tensors(DEVICE))
    tensors = case.tensors(DEVICE)
    tensors["x"][1, [2, 9], 3, 4] = value  # one frozen channel, one live
    results = case.run(batch_norm, tensors)
    others = [c for c in range(11) if c not in (2, 9)]
    for name in ("y", "dx"):
        assert_same_bits(name, results[name][:, others], clean[name][:, others])
    for name in ("running_mean", "running_var", "dweight", "dbias"):
        assert_same_bits(name, results[name][[0, 1, 3]], clean[name][[0, 1, 3]])
    assert not results["y"][1, 2, 3, 4].isfinite()
    assert (results["y"][:, 2].isfinite().sum() == 3 * 7 * 5 - 1) and results["y"][1, 9, 3, 4].isnan() == (
        training or value != value
    )
    assert results["y"][:, 9].isnan().all() == training, "a batch statistic that is not a number is nobody's number"
    assert bool(results["running_var"][2].isfinite()) != training


@pytest.mark.usefixtures("many_blocks")
def test_the_same_bits_in_every_run_and_any_order_of_programs():
    case = NormCase((7, 20), (37,), residual=True, activation="gelu")
    first = case.run(batch_norm, case.tensors(DEVICE))
    again = case.run(batch_norm, case.tensors(DEVICE))
    with interpreter.programs_reversed():
        backwards = case.run(batch_norm, case.tensors(DEVICE))
    for name, tensor in first.items():
        assert_same_bits(name, again[name], tensor)
        assert_same_bits(f"{name}, last program first", backwards[name], tensor)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_frozen_channels_bits_are_its_own(activation, dtype):
    """P1: alone, in a prefix, beside live channels in training, whatever those are, in either memory format."""
    case = NormCase((5, 6), (3, 4, 5), dtype, activation, residual=True)
    t = case.tensors(DEVICE)
    whole = forward(t, True, activation)[0]
    none = {name: t[name][:0] for name in ("weight", "bias", "running_mean", "running_var")}

    for prefix in (5, 2):
        cut = {name: t[name][:, :prefix] for name in ("x", "residual")}
        cut |= {name: t[name][:prefix] for name in ("frozen_scale", "frozen_shift")}
        recalled = forward(t | none | cut, False, activation)[0]
        assert_same_bits(f"the first {prefix}, recalled", recalled, whole[:, :prefix])

    last = {name: t[name].contiguous(memory_format=torch.channels_last) for name in ("x", "residual")}
    assert_same_bits("channels_last", forward(t | last, True, activation)[0][:, :5], whole[:, :5])
    rows = {
        name: inside_poison(t[name].permute(0, 2, 3, 1).reshape(-1, 11)) for name in ("x", "residual")
    }  # the same values as [N, C], in a slice of something wider
    by_rows = forward(t | rows, True, activation)[0].view(3, 4, 5, 11).permute(0, 3, 1, 2)
    assert_same_bits("as rows", by_rows[:, :5], whole[:, :5])

    nan = {name: torch.full_like(t[name], float("nan")) for name in none}
    nan |= {
        name: torch.where(torch.arange(11, device=DEVICE).view(-1, 1, 1) < 5, t[name], float("nan"))
        for name in cut
        if t[name].dim() == 4
    }
    for training in (True, False):
        poisoned = forward(t | nan, training, activation)[0]
        assert_same_bits("beside NaN", poisoned[:, :5], whole[:, :5])
        assert poisoned[:, 5:].isnan().all()


@pytest.mark.usefixtures("one_block")
def test_frozen_channels_reach_nothing_trainable():
    """NaN in a frozen channel's upstream gradient, its input and its residual leaves no trace where none is owed."""
    case = NormCase((3, 4), (4, 5), residual=True, activation="silu")
    expected = case.run(batch_norm, case.tensors(DEVICE))
    tensors = case.tensors(DEVICE)
    for name in ("x", "dy", "residual"):
        tensors[name][:, :3] = float("nan")
    results = case.run(batch_norm, tensors)
    assert results.pop("y")[:, :3].isnan().all()
    for name, tensor in results.items():
        assert_same_bits(name, tensor, expected[name])
    assert not results["dx"][:, :3].any() and not results["dresidual"][:, :3].any()


@pytest.mark.usefixtures("one_block")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_only_what_is_asked_for_is_computed(training, monkeypatch):
    t = NormCase(residual=True).tensors(DEVICE)
    _, mean, rstd = forward(t, training)

    def backward(need_dx, need_dresidual, affine):
        norm = norm_of(t if affine else t | {"weight": None, "bias": None}, training, "relu")
        return batch_norm.segmented_batch_norm_backward(
            t["dy"], t["x"], t["residual"], applied(norm, mean, rstd), NormGradients(False, need_dx, need_dresidual)
        )

    whole = backward(True, True, True)
    names = launches(monkeypatch)
    for asked in itertools.product((True, False), (True, False)):
        given = backward(*asked, True)
        for wanted, ours, full in zip((*asked, True, True), given, whole):
            assert (ours is not None) == wanted
            if wanted:
                assert_same_bits("dx, dresidual, dweight or dbias", ours, full)
    names.clear()
    assert backward(False, False, False) == (None, None, None, None) and not names


@pytest.mark.usefixtures("one_block")
def test_evaluation_returns_the_running_statistics_and_leaves_them():
    for shape in ((3, 4, 5), (0,)):
        t = NormCase(shape=shape).tensors(DEVICE)
        before = t["running_mean"].clone(), t["running_var"].clone()
        _, mean, rstd = forward(t, training=False)
        assert_same_bits("mean", mean, before[0])
        assert_close("rstd", rstd, (before[1].double() + EPS).rsqrt())
        assert_same_bits("running mean", t["running_mean"], before[0])
        assert_same_bits("running variance", t["running_var"], before[1])


def test_merging_and_normalising_alone():
    """The two that a product with statistics in its epilogue goes on with; ragged last block, y a slice of columns."""
    x = torch.randn(70, 37, device=DEVICE) * 2 + 30
    blocks = x.split(16)
    block_mean = torch.stack([block.mean(0) for block in blocks])
    block_m2 = torch.stack([block.var(0, correction=0) * len(block) for block in blocks])
    mean, rstd, running_mean, running_var = (torch.full((37,), 0.25, device=DEVICE) for _ in range(4))
    weight, bias, none = *torch.randn(2, 37, device=DEVICE), x.new_empty(0)
    norm = Norm(weight, bias, running_mean, running_var, none, none, True, 0.5, EPS, "relu")
    statistics.merge_statistics(statistics.Blocks(block_mean, block_m2, 16, 70), norm, mean, rstd)
    assert_close("mean", mean, x.double().mean(0))
    assert_close("rstd", rstd, (x.double().var(0, correction=0) + EPS).rsqrt())
    assert_close("running mean", running_mean, 0.125 + 0.5 * x.double().mean(0))
    assert_close("running variance", running_var, 0.125 + 0.5 * x.double().var(0))
    wide = torch.full((70, 50), float("nan"), device=DEVICE)
    batch_norm.normalise_into(wide[:, 13:], x, norm, mean, rstd)
    z = (x.double() - x.double().mean(0)) * (x.double().var(0, correction=0) + EPS).rsqrt() * weight + bias
    assert_close("y", wide[:, 13:], z.relu(), condition=16)
    assert wide[:, :13].isnan().all()


def test_rows_beyond_32_bits():
    """A row stride beyond 2**30: the third row begins past 2**31 elements. The memory between is never touched."""
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 5 * 2**30:
        pytest.skip("needs 5 GiB of GPU memory")
    x = torch.empty_strided((3, 4), (2**30 + 8, 1), dtype=torch.float16, device=DEVICE)
    values = torch.randn(3, 4, device=DEVICE).half()
    x.copy_(values)
    none = x.new_empty(0)
    norm = Norm(None, None, none, none, x.new_ones(4), x.new_zeros(4), False, MOMENTUM, EPS)
    y, *_ = batch_norm.segmented_batch_norm_forward(x, None, norm)
    assert_same_bits("y", y, values)


def test_what_is_not_supported_is_said(monkeypatch):
    def why(**changes):
        t = NormCase(residual=True).tensors(DEVICE) | changes
        return batch_norm.segmented_batch_norm_supports(
            t["x"], t["residual"], t["weight"], t["bias"], t["running_mean"], t["frozen_scale"]
        )

    t = NormCase(residual=True).tensors(DEVICE)
    assert why() is None and why(residual=None, weight=None, bias=None) is None
    assert why(x=t["x"].half(), residual=None) is None, "statistics are float32 then"
    assert "torch.float64 is not one of" in why(x=t["x"].double())
    assert "has 1 dimension" in why(x=t["x"].flatten())
    assert "the residual is torch.float16" in why(residual=t["residual"].half())
    assert "the residual is torch.float32 [1, 11, 7, 5]" in why(residual=t["residual"][:1])
    assert "bias is torch.float16, neither float32 nor the input's torch.float32" in why(bias=t["bias"].half())
    assert "not contiguous" in why(running_mean=t["running_mean"].new_zeros(4, 2)[:, 0])
    for shape in ((2, 2**20, 1), (2, 2**16, 2), (1, 1, 2**16, 2**15), (2**20, 2**10, 2**7)):
        assert "more channels, pixels or values" in why(x=t["x"].new_zeros(()).expand(shape), residual=None)
    for shape in ((2, 2**20 - 1), (2, 2**16 - 1, 2), (1, 3, 2**12, 2**12)):
        assert why(x=t["x"].new_zeros(()).expand(shape), residual=None) is None
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert (why() is None) == (DEVICE == "cuda")
