"""Staircase convolution: the op and its oracle against the paper's dense masked layer, and the contract."""

import random

import pytest
import torch
import torch.nn.functional as F
from convolutions import GEOMETRIES, PLAIN, inputs, product
from staircases import (
    CASES,
    DTYPES,
    Case,
    Layer,
    assert_close,
    assert_same_bits,
    assert_same_results,
    inside_poison,
    random_case,
)

from eidetic_kernels.ops import Weights, dense_weight, staircase_conv2d, staircase_conv2d_oracle

IMPLEMENTATIONS = {"op": staircase_conv2d, "oracle": staircase_conv2d_oracle}
# The oracle is the library's dense convolution, which refuses an input or an output without channels.
RUNS = [("op", name) for name in CASES]
RUNS += [("oracle", name) for name, case in CASES.items() if case.mask().numel()]


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("implementation", "name"), RUNS)
def test_equals_the_dense_masked_layer(name, implementation, dtype, full_input_grad):
    case = CASES[name]
    kernel, geometry = PLAIN
    for bias, samples in ((True, 2), (False, 1)):
        layer = Layer(case, kernel, bias=bias, dtype=dtype)
        x, dy = inputs(case, kernel, geometry, samples, dtype)
        results = layer.run(IMPLEMENTATIONS[implementation], x, geometry, full_input_grad=full_input_grad, dy=dy)
        assert_same_results(results, layer.by_hand(product(geometry), x, full_input_grad=full_input_grad, dy=dy))


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_stride_padding_and_dilation(geometry, implementation, full_input_grad):
    kernel, geometry = GEOMETRIES[geometry]
    for name in ("mixed by segment", "concatenated", "first layer, two tasks frozen"):
        layer = Layer(CASES[name], kernel)
        x, dy = inputs(layer.case, kernel, geometry)
        results = layer.run(IMPLEMENTATIONS[implementation], x, geometry, full_input_grad=full_input_grad, dy=dy)
        assert_same_results(
            results, layer.by_hand(product(geometry), x, full_input_grad=full_input_grad, dy=dy), f"{name} "
        )


@pytest.mark.parametrize("name", CASES)
def test_memory_formats_and_strided_inputs(name):
    kernel, geometry = PLAIN
    layer = Layer(CASES[name], kernel)
    x, dy = inputs(layer.case, kernel, geometry)
    expected = layer.by_hand(product(geometry), x, dy=dy)
    last = {"memory_format": torch.channels_last}
    assert_same_results(layer.run(staircase_conv2d, inside_poison(x), geometry, dy=inside_poison(dy)), expected)
    assert_same_results(layer.run(staircase_conv2d, x.contiguous(**last), geometry, dy=dy), expected)
    assert_same_results(layer.run(staircase_conv2d, x, geometry, dy=dy.contiguous(**last)), expected)
    layer.weight = layer.weight.contiguous(**last)
    assert_same_results(layer.run(staircase_conv2d, x.contiguous(**last), geometry, dy=dy), expected)
    ones = torch.ones(1, 1, 1, 1, dtype=x.dtype).expand(dy.shape)
    assert_same_results(layer.run(staircase_conv2d, x, geometry, dy=ones), layer.by_hand(product(geometry), x))


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_fully_written(name, full_input_grad, poisoned_memory):
    kernel, geometry = PLAIN
    layer = Layer(CASES[name], kernel)
    x, dy = inputs(layer.case, kernel, geometry)
    for tensor in layer.run(staircase_conv2d, x, geometry, full_input_grad=full_input_grad, dy=dy).values():
        assert tensor is None or tensor.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_only_trainable_channels_get_a_gradient(name):
    kernel, geometry = PLAIN
    layer = Layer(CASES[name], kernel)
    x, dy = inputs(layer.case, kernel, geometry)
    dx = layer.run(staircase_conv2d, x, geometry, dy=dy)["dx"]
    owners = layer.case.column_owners()
    trainable = (owners == layer.case.live_task) & (layer.case.task is None)
    assert (dx[:, ~trainable] == 0).all()


def test_frozen_rows_cause_no_gradient_even_when_theirs_is_nan():
    kernel, geometry = PLAIN
    layer = Layer(CASES["nested"], kernel)
    x, dy = inputs(layer.case, kernel, geometry)
    expected = layer.run(staircase_conv2d, x, geometry, dy=dy)
    dy[:, : sum(layer.case.frozen)] = float("nan")
    assert_same_results(layer.run(staircase_conv2d, x, geometry, dy=dy), expected)


def test_frozen_weights_get_no_gradient():
    kernel, geometry = PLAIN
    layer = Layer(CASES["nested"], kernel)
    x, _ = inputs(layer.case, kernel, geometry)
    layer.frozen_weight.requires_grad_()
    layer.frozen_bias.requires_grad_()
    layer.run(staircase_conv2d, x, geometry)
    assert layer.frozen_weight.grad is None and layer.frozen_bias.grad is None


@pytest.mark.parametrize("name", ["nested", "disjoint", "mixed by segment", "empty segments", "concatenated"])
def test_nothing_live_leaks_into_frozen_channels(name):
    kernel, geometry = PLAIN
    layer = Layer(CASES[name], kernel)
    case = layer.case
    x, _ = inputs(case, kernel, geometry)
    clean = staircase_conv2d(x, layer.weights(), case.staircase(), geometry)
    x[:, case.column_owners() == case.live_task] = float("nan")
    layer.weight.fill_(float("nan"))
    layer.bias.fill_(float("nan"))
    poisoned = staircase_conv2d(x, layer.weights(), case.staircase(), geometry)
    assert_same_bits("frozen channels", poisoned[:, : sum(case.frozen)], clean[:, : sum(case.frozen)])
    assert poisoned[:, sum(case.frozen) :].isnan().all()


def test_an_empty_batch():
    kernel, geometry = PLAIN
    layer = Layer(CASES["nested"], kernel)
    x, dy = inputs(layer.case, kernel, geometry, samples=0)
    results = layer.run(staircase_conv2d, x, geometry, dy=dy)
    assert results["y"].shape == dy.shape and results["dx"].shape == x.shape
    assert not results["dweight"].any() and not results["dbias"].any()


def test_dense_weight_is_the_masked_weight():
    for case in CASES.values():
        layer = Layer(case, (2, 3))
        weight = layer.dense[: len(case.row_owners())][:, layer._present_columns()]
        given = dense_weight(layer.weight, layer.frozen_weight, case.staircase())
        mask = case.mask().view(*weight.shape[:2], 1, 1)
        assert torch.equal(given, weight.where(mask, torch.zeros((), dtype=weight.dtype)))


def test_op_equals_oracle_in_random_layers():
    generator = random.Random(0)
    for _ in range(40):
        case = random_case(generator, 10)
        if not (len(case.column_owners()) and len(case.row_owners())):
            continue
        kernel, geometry = generator.choice(list(GEOMETRIES.values()))
        layer, full_input_grad = Layer(case, kernel, bias=generator.random() < 0.7), generator.random() < 0.5
        x, dy = inputs(case, kernel, geometry, generator.choice([1, 3]))
        expected = layer.run(staircase_conv2d_oracle, x, geometry, full_input_grad=full_input_grad, dy=dy)
        assert_same_results(
            layer.run(staircase_conv2d, x, geometry, full_input_grad=full_input_grad, dy=dy), expected, f"{case} "
        )


def test_a_stack_of_layers_has_the_dense_masked_networks_gradients():
    kernel, geometry = PLAIN
    first = CASES["first layer, two tasks frozen"]
    second = Case((((2, 3), 4, 1),), (4, 2), 5, (True, False, True))
    layers = [Layer(case, kernel) for case in (first, second)]
    x = torch.randn(3, 6, 5, 5, dtype=torch.float64)

    given, y = [], x
    for layer in layers:
        given.append([t.detach().requires_grad_() for t in (layer.weight, layer.bias)])
        weights = Weights(*given[-1], layer.frozen_weight, layer.frozen_bias)
        y = torch.tanh(staircase_conv2d(y, weights, layer.case.staircase(), geometry))
    y.square().sum().backward()

    dense, z = [], x
    for layer in layers:
        dense.append([t.clone().requires_grad_() for t in (layer.dense, layer.dense_bias)])
        mask = layer.case.mask()
        z = torch.tanh(F.conv2d(z, dense[-1][0] * mask.view(*mask.shape, 1, 1), dense[-1][1], *geometry))
    z.square().sum().backward()

    assert_close("output", y, z)
    for depth, layer in enumerate(layers):
        live = layer.case.row_owners() == layer.case.live_task
        reads = layer.case.mask()[live][0]
        assert_close(f"weight {depth}", given[depth][0].grad, dense[depth][0].grad[live][:, reads])
        assert_close(f"bias {depth}", given[depth][1].grad, dense[depth][1].grad[live])


def test_a_segments_bits_do_not_depend_on_what_else_is_present():
    """P1: the product of a prefix is, bit by bit, the first channels of the whole, whatever the widths."""
    generator = random.Random(1)
    for trial in range(60):
        case = random_case(generator, generator.choice([4, 16, 48] + [100] * (trial % 10 == 0)))
        if not len(case.column_owners()):
            continue
        kernel, geometry = generator.choice(list(GEOMETRIES.values()))
        layer = Layer(case, kernel, bias=trial % 3 > 0, dtype=generator.choice(DTYPES))
        x, _ = inputs(case, kernel, geometry, generator.choice([1, 2, 8]), layer.weight.dtype)
        whole = staircase_conv2d(x, layer.weights(), case.staircase(), geometry)
        for task in range(case.live_task):
            columns, rows = len(case.column_owners(task)), len(case.row_owners(task))
            for prefix in (x[:, :columns], x[:, :columns].contiguous()):
                y = staircase_conv2d(prefix, layer.weights(), case.staircase(task), geometry)
                assert_same_bits(f"prefix {task} of {case}", y, whole[:, :rows])


def test_equals_torch_bit_by_bit_when_nothing_is_frozen():
    generator = random.Random(2)
    for _ in range(30):
        kernel, geometry = generator.choice(list(GEOMETRIES.values()))
        case = Case((generator.randint(1, 40),), (), generator.randint(1, 40), (True,))
        layer = Layer(case, kernel, dtype=torch.float32)
        x, _ = inputs(case, kernel, geometry, generator.randint(1, 4), torch.float32)
        y = staircase_conv2d(x, layer.weights(), case.staircase(), geometry)
        assert_same_bits(str(geometry), y, F.conv2d(x, layer.weight, layer.bias, *geometry))
