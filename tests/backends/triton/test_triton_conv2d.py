"""The frozen segments of a staircase convolution in Triton against the oracle: in the interpreter without a GPU."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from slow import slow

pytest.importorskip("triton")

import interpreter  # noqa: F401  half precision in the interpreter
from staircases import CASES, Case, Layer, assert_same_results, inside_poison
from tolerances import assert_close, assert_same_bits

import eidetic_kernels as ek
from eidetic_kernels import backends
from eidetic_kernels.backends.activations import FUNCTIONS
from eidetic_kernels.backends.arguments import Epilogue, Weights
from eidetic_kernels.backends.triton import conv2d, linear
from eidetic_kernels.layout import Staircase
from eidetic_kernels.ops import ACTIVATIONS, Geometry, staircase_conv2d, staircase_conv2d_oracle
from eidetic_kernels.ops.conv2d import output_shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = (3, 3), Geometry((1, 1), (1, 1), (1, 1))
GEOMETRIES = {
    "1x1": ((1, 1), Geometry((1, 1), (0, 0), (1, 1))),
    "1x1 stride 2": ((1, 1), Geometry((2, 2), (0, 0), (1, 1))),
    "stride 2": ((3, 3), Geometry((2, 2), (1, 1), (1, 1))),
    "uneven everything": ((2, 3), Geometry((2, 1), (0, 2), (1, 2))),
    "dilated": ((3, 3), Geometry((1, 1), (2, 2), (2, 2))),
    "5x5": ((5, 5), Geometry((1, 1), (2, 2), (1, 1))),
    "7x7 stride 2": ((7, 7), Geometry((2, 2), (3, 3), (1, 1))),
    "as large as the image": ((6, 7), Geometry((1, 1), (0, 0), (1, 1))),
}
NESTED = CASES["nested"]
TWO = Case((((3, 2), 4, 1),), (5, 4), 3, (True, True, False))


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def few_blocks(monkeypatch):
    """The interpreter's time goes by the number of programs and steps, and by how much each loads."""
    if DEVICE == "cpu":
        monkeypatch.setattr(conv2d, "choose_tile", lambda *_: linear.Tile(128, 16, 16, 4, 2))


class Call:
    """A layer's frozen segments, an input and the numbers of their BatchNorm."""

    def __init__(self, case, kernel, geometry, dtype=torch.float32, bias=True, norm=True, size=(6, 7), samples=2):
        self.case, self.kernel, self.geometry = case, kernel, geometry
        self.layer = Layer(case, kernel, bias, dtype)
        self.staircase = case.staircase()
        self.x = torch.randn(samples, len(case.column_owners()), *size).to(dtype)
        rows = self.staircase.frozen_rows
        self.scale, self.shift = (torch.randn(rows) + 2, torch.randn(rows)) if norm else (None, None)

    def run(self, x=None, activation="none", staircase=None, residual=None):
        """The frozen channels of the kernel's y, the others being untouched; as many weights as ``staircase`` has."""
        staircase = staircase or self.staircase
        x = (self.x if x is None else x).to(DEVICE)
        rows, taps = staircase.frozen_rows, self.kernel[0] * self.kernel[1]
        weights = sum(stair.rows * stair.columns for stair in staircase.frozen) * taps
        last = x.stride(1) == 1 and not x.is_contiguous()
        y = torch.full(
            output_shape(x, self.kernel, staircase.rows, self.geometry),
            7.0,
            dtype=x.dtype,
            device=DEVICE,
        ).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

        def part(tensor, count):
            return None if tensor is None else tensor[:count].to(DEVICE)

        frozen = part(self.layer.frozen_weight, weights), part(self.layer.frozen_bias, rows)
        given = Weights(x.new_empty(0, 0, *self.kernel), None, *frozen)
        epilogue = Epilogue(part(self.scale, rows), part(self.shift, rows), residual, activation)
        conv2d.staircase_conv2d_frozen_forward(y, x, given, staircase, self.geometry, epilogue)
        assert (y[:, rows:] == 7).all(), "live channels were touched"
        return y[:, :rows]

    def expected(self, activation="none", residual=None):
        """By the paper's mask over the dense weight, in float64."""
        rows = self.case.row_owners() < self.case.live_task
        mask = self.case.mask()[rows]
        kept = self.layer.dense[: self.case.row_owners().numel()][rows][:, self.layer._present_columns()]
        weight = kept.double() * mask.view(*mask.shape, 1, 1)
        x = F.pad(self.x.double(), (0, 0, 0, 0, 0, 1))  # one silent channel more: the library wants some
        y = F.conv2d(x, F.pad(weight, (0, 0, 0, 0, 0, 1, 0, 1)), None, *self.geometry)[:, :-1]
        wide = (-1, 1, 1)
        if self.layer.frozen_bias is not None:
            y = y + self.layer.frozen_bias.double()[: y.shape[1]].view(wide)
        if self.scale is not None:
            y = y * self.scale.double().view(wide) + self.shift.double().view(wide)
        if residual is not None:
            y = y + residual[:, : y.shape[1]].double().cpu()
        return FUNCTIONS[activation](y)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("few_blocks", "poisoned_memory")
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_masked_layer(name):
    call = Call(CASES[name], *PLAIN)
    assert_close("y", call.run(channels_last(call.x), "relu"), call.expected("relu"))
    plain = Call(CASES[name], *GEOMETRIES["1x1"], bias=False, norm=False)
    assert_close("y, no epilogue", plain.run(), plain.expected())


@pytest.mark.usefixtures("few_blocks", "poisoned_memory")
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name):
    call = Call(TWO, *GEOMETRIES[name])
    expected = call.expected("silu")
    for x in (call.x, channels_last(call.x)):
        assert_close("y", call.run(x, "silu"), expected)


@pytest.mark.usefixtures("few_blocks", "poisoned_memory")
def test_memory_formats_and_strides():
    call = Call(TWO, *GEOMETRIES["uneven everything"])
    expected = call.expected()
    sliced = inside_poison(call.x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    for x in (call.x, channels_last(call.x), sliced, inside_poison(call.x), call.x.mT.contiguous().mT):
        y = call.run(x)
        assert_close("y", y, expected)


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    call = Call(TWO, *GEOMETRIES["1x1"])
    assert_close("y", call.run(activation=activation), call.expected(activation))


@pytest.mark.usefixtures("few_blocks", "poisoned_memory")
def test_a_residual_is_added_before_the_activation():
    call = Call(NESTED, *GEOMETRIES["uneven everything"])
    residual = torch.randn(2, call.staircase.rows, *call.expected().shape[2:], device=DEVICE)
    residual[:, call.staircase.frozen_rows :] = float("nan")
    for added in (residual, channels_last(residual), inside_poison(residual)):
        for x in (call.x, channels_last(call.x)):
            assert_close("y", call.run(x, "silu", residual=added), call.expected("silu", residual))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    """And with the tiles that a GPU runs."""
    call = Call(TWO, *PLAIN, dtype=dtype)
    for x in (call.x, channels_last(call.x)):
        assert_close("y", call.run(x, "relu"), call.expected("relu"))


def test_samples_beyond_32_bits(monkeypatch):
    """The last block's samples lie more than 2**31 elements from the start, in memory that nobody touches."""
    monkeypatch.setattr(conv2d, "choose_tile", lambda *_: linear.Tile(16, 16, 16, 4, 2))
    call = Call(NESTED, *GEOMETRIES["1x1"], dtype=torch.bfloat16, size=(1, 1), samples=85)
    channels, stride = call.x.shape[1], 2**25 - 16
    assert 80 * stride > 2**31
    far = torch.empty(85 * stride, dtype=torch.bfloat16, device=DEVICE)
    far = far.as_strided((85, channels, 1, 1), (stride, 1, channels, channels))
    far.copy_(call.x)
    assert_same_bits("far samples", call.run(far), call.run(channels_last(call.x)))


@pytest.mark.usefixtures("poisoned_memory")
def test_many_tiles_and_steps(monkeypatch):
    """Positions, units and channels all split, ragged at every end; then all of them whole."""
    tile = linear.Tile(16, 16, 16, 4, 2)
    monkeypatch.setattr(conv2d, "choose_tile", lambda *_: tile)
    ragged = Case((((19, 3), 4, 1), 2), (18, 5), 3, (False, True, False))
    whole = Case((((16, 16), 16, 1),), (16, 32), 16, (True, True, False))
    for case, size in ((ragged, (3, 3)), (whole, (4, 4))):
        call = Call(case, *GEOMETRIES["uneven everything"], size=size)
        assert_close("y", call.run(channels_last(call.x)), call.expected())


def test_what_the_compiler_is_told_is_true(monkeypatch):
    """Sizes that divide by sixteen, and only those, are said to; and only whole steps go without a mask."""
    told = []

    class Told:
        def __getitem__(self, grid):
            return lambda *_, **constants: told.append((constants["ALIGNED"], constants["WHOLE_STEPS"]))

    monkeypatch.setattr(conv2d, "staircase_conv2d_kernel", Told())
    for sizes, channels in (((16, 32), 64), ((64, 128), 64), ((64, 120), 64), ((64, 128), 60)):
        case = Case((((64, 64), 0, 1), channels), sizes, 0, (True, True, True))
        call = Call(case, *PLAIN, dtype=torch.bfloat16)
        call.run(channels_last(call.x))
    assert told == [(True, True), (True, True), (False, True), (False, False)]
    told.clear()
    call = Call(Case((((64, 64), 0, 1),), (64, 128), 0, (True, True, True)), *PLAIN, dtype=torch.bfloat16)
    call.run(inside_poison(call.x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    assert told == [(False, True)], "a slice of something wider, which does not divide by sixteen"


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("dtype", [*slow(torch.float32), torch.bfloat16], ids=str)
def test_a_frozen_segments_bits_never_change(dtype):
    """P1: in training, recalled, alone in its launch, from either memory format, sliced out of NaN."""
    call = Call(NESTED, *PLAIN, dtype=dtype)
    whole = call.run(activation="gelu")
    row = 0
    for task, stair in enumerate(call.staircase.frozen):
        row += stair.rows
        recalled = NESTED.staircase(task)
        for x in (call.x, channels_last(call.x), inside_poison(call.x)):
            y = call.run(x[:, : recalled.columns], "gelu", recalled)
            assert_same_bits(f"task {task}", y, whole[:, :row])
    first = call.staircase.frozen[0]
    alone = call.run(activation="gelu", staircase=Staircase((first,), call.staircase.columns))
    assert_same_bits("the first, alone", alone, whole[:, : first.rows])
    call.x[:, 10:] = float("nan")  # live inputs
    assert_same_bits("beside NaN", call.run(activation="gelu"), whole)


def test_the_same_bits_in_any_order_of_programs(monkeypatch):
    monkeypatch.setattr(conv2d, "choose_tile", lambda *_: linear.Tile(16, 16, 16, 4, 2))
    call = Call(TWO, *GEOMETRIES["1x1"])
    y = call.run()
    with interpreter.programs_reversed():
        assert_same_bits("y", call.run(), y)


def test_nothing_in_nothing_out():
    call = Call(NESTED, *PLAIN, samples=0)
    assert call.run().shape == (0, 9, 6, 7)
    empty = Call(CASES["nothing frozen"], *PLAIN)
    assert empty.run().shape == (2, 0, 6, 7)


@pytest.mark.usefixtures("few_blocks")
def test_nan_and_infinity_spread_as_far_as_the_kernel_reaches():
    call = Call(NESTED, *PLAIN, norm=False)
    for value in (float("nan"), float("inf")):
        call.x[0, 0, 2, 3] = value
        wrong = ~call.run(activation="none").isfinite()
        assert wrong[0, :, 1:4, 2:5].all() and wrong.sum() == 9 * 9


def test_what_is_not_supported_is_said():
    call = Call(NESTED, *PLAIN)

    def why(x=call.x, kernel=call.kernel, dtype=torch.float32, geometry=call.geometry):
        weight = call.layer.frozen_weight.to(DEVICE, dtype)
        return conv2d.staircase_conv2d_frozen_supports(x.to(DEVICE), weight, kernel, call.staircase, geometry)

    assert why() is None
    assert "torch.float64 is not one of" in why(call.x.double())
    assert "differ in dtype (torch.float32, torch.bfloat16)" in why(dtype=torch.bfloat16)
    assert "a kernel of [9, 9] leaves nothing of an input of [6, 7]" in why(kernel=(9, 9))
    assert "samples of 2**25 values" in why(call.x[:1, :1, :1, :1].expand(1, 14, 2048, 2048))


# ---- frozen weights are packed once


@pytest.fixture
def packings(monkeypatch):
    """How many segments were packed, by each call."""
    counts = []
    taps_outside = conv2d.taps_outside

    def counting(weight, stairs, kernel):
        known = conv2d._packed.get(weight)
        packed = taps_outside(weight, stairs, kernel)
        fresh = known is None or known.weights is not packed
        counts.append(len(stairs) - (0 if fresh else min(len(known.blocks), len(stairs))))
        return packed

    monkeypatch.setattr(conv2d, "taps_outside", counting)
    return counts


def packed_by_hand(weight, stairs, kernel):
    taps, offset, parts = kernel[0] * kernel[1], 0, []
    for stair in stairs:
        size = stair.rows * stair.columns * taps
        block = weight[offset : offset + size].view(stair.rows, stair.columns, taps)
        parts.append(block.transpose(1, 2).flatten())
        offset += size
    return torch.cat(parts)


def check_packed(weight, staircase, kernel=(3, 3)):
    expected = packed_by_hand(weight, staircase.frozen, kernel)
    packed = conv2d.taps_outside(weight, staircase.frozen, kernel)
    assert_same_bits("packed", packed[: len(expected)], expected)


def test_a_segment_is_packed_once_whatever_is_recalled(packings):
    weight = Layer(NESTED, (3, 3), dtype=torch.float32).frozen_weight
    for task, count in ((0, 1), (0, 0), (1, 1), (None, 1), (None, 0), (1, 0), (2, 0), (0, 0)):
        check_packed(weight, NESTED.staircase(task))
        assert packings.pop() == count, task
    check_packed(weight, CASES["disjoint"].staircase(1))  # another structure of the same numbers
    assert packings.pop() == 2


def test_no_packed_weights_are_older_than_the_weights(packings):
    weight, stairs = Layer(NESTED, (3, 3), dtype=torch.float32).frozen_weight, NESTED.staircase()
    check_packed(weight, stairs)

    def loaded():
        weight.copy_(torch.randn_like(weight))

    def one_bit():
        weight.view(torch.int32)[-1] ^= 1

    def elsewhere():
        weight.data = torch.randn_like(weight)

    def without_gradients():
        with torch.inference_mode():
            weight.mul_(2)

    for change in (loaded, one_bit, elsewhere, without_gradients, lambda: weight[3:4].zero_()):
        change()
        check_packed(weight, stairs)
        assert packings.pop() == 3, change
        check_packed(weight, stairs)
        assert packings.pop() == 0
    for other in (weight.clone(), copy.deepcopy(weight), weight.to(torch.float64)):
        other.view(-1)[0] = 5.0
        check_packed(other, stairs)
        assert packings.pop() == 3
    check_packed(weight, stairs)
    assert packings.pop() == 0


def test_packed_weights_go_with_the_weights(packings):
    gc.collect()
    before = len(conv2d._packed)
    weight, stairs = Layer(NESTED, (3, 3), dtype=torch.float32).frozen_weight, NESTED.staircase()
    check_packed(weight, stairs)
    assert len(conv2d._packed) == before + 1
    del weight
    gc.collect()
    assert len(conv2d._packed) == before


def test_weights_whose_changes_are_not_counted_are_packed_each_time(packings):
    with torch.inference_mode():
        weight, stairs = Layer(NESTED, (3, 3), dtype=torch.float32).frozen_weight, NESTED.staircase()
        for value in (1.0, 2.0):
            weight[0] = value
            check_packed(weight, stairs)
            assert packings.pop() == 3


def test_what_is_packed_in_inference_mode_is_added_to_outside(packings):
    weight = Layer(NESTED, (3, 3), dtype=torch.float32).frozen_weight
    with torch.inference_mode():
        check_packed(weight, NESTED.staircase(0))
    check_packed(weight, NESTED.staircase())
    assert packings == [1, 2]


@pytest.mark.usefixtures("few_blocks")
@pytest.mark.parametrize("norm", [False, True], ids=["convolution", "with its norm"])
def test_a_layer_packs_each_task_once_and_never_answers_from_older_weights(norm, packings):
    layer = ek.EideticConv2d(2, 7, 3, padding=1, norm=ek.EideticBatchNorm2d(7) if norm else None).to(DEVICE)
    x = torch.randn(2, 2, 4, 4, device=DEVICE)

    def answers(layer):
        with backends.using("torch"):
            expected = layer.eval()(x)
        with backends.using("triton"):
            assert_close("y", layer(x), expected)
        return packings.pop()

    for task in range(2):
        with backends.using("torch"):
            layer.train()(x)
        layer.prune([0, 2])
        layer.freeze()
        layer.recycle(3)
        assert answers(layer) == task + 1 and answers(layer) == 0
    copied = copy.deepcopy(layer)
    assert answers(copied) == 2
    state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert answers(layer) == 2 and answers(copied) == 0
    assert answers(layer.double().float()) == 2
    assert answers(layer.to(memory_format=torch.channels_last)) in (0, 2)


@pytest.mark.parametrize("name", ["nested", "disjoint", "no live row", "recall of the last"])
def test_the_op_runs_frozen_segments_here_when_triton_is_forced(name, monkeypatch):
    """And live ones, with every gradient, on the library."""
    layer = Layer(CASES[name], (3, 3), dtype=torch.float32)
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    x = torch.randn(2, len(layer.case.column_owners()), 4, 5, device=DEVICE)
    expected = layer.run(staircase_conv2d_oracle, x.cpu(), geometry)
    for tensor in ("weight", "bias", "frozen_weight", "frozen_bias"):
        setattr(layer, tensor, getattr(layer, tensor).to(DEVICE))
    calls = []
    forward = conv2d.staircase_conv2d_frozen_forward
    monkeypatch.setattr(
        conv2d, "staircase_conv2d_frozen_forward", lambda *given: calls.append(given) or forward(*given)
    )
    with backends.using("triton"):
        assert_same_results(layer.run(staircase_conv2d, x, geometry), expected)
    assert len(calls) == 1
    with backends.using("torch"):
        layer.run(staircase_conv2d, x, geometry)
    assert len(calls) == 1
