"""Staircase linear: the op and its oracle against the paper's dense masked layer, and what the contract promises."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from staircases import (
    CASES,
    DTYPES,
    Layer,
    assert_close,
    assert_same_bits,
    assert_same_results,
    inside_poison,
    random_case,
)

from eidetic_kernels.ops import Weights, dense_weight, staircase_linear, staircase_linear_oracle

IMPLEMENTATIONS = {"op": staircase_linear, "oracle": staircase_linear_oracle}


def inputs(case, samples=4, dtype=torch.float64):
    x = torch.randn(samples, len(case.column_owners()), dtype=dtype)
    return x, torch.randn(samples, len(case.row_owners()), dtype=dtype)


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_masked_layer(name, implementation, dtype, full_input_grad):
    for bias in (True, False):
        layer = Layer(CASES[name], bias=bias, dtype=dtype)
        for samples in (4, 1):
            x, dy = inputs(layer.case, samples, dtype)
            results = layer.run(IMPLEMENTATIONS[implementation], x, full_input_grad=full_input_grad, dy=dy)
            assert_same_results(results, layer.by_hand(F.linear, x, full_input_grad=full_input_grad, dy=dy))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_op_equals_oracle_in_random_layers(dtype):
    generator = random.Random(0)
    for _ in range(60):
        case = random_case(generator, 20)
        layer, full_input_grad = Layer(case, bias=generator.random() < 0.7, dtype=dtype), generator.random() < 0.5
        x, dy = inputs(case, generator.choice([1, 3, 16]), dtype)
        expected = layer.run(staircase_linear_oracle, x, full_input_grad=full_input_grad, dy=dy)
        assert_same_results(
            layer.run(staircase_linear, x, full_input_grad=full_input_grad, dy=dy), expected, f"{case} "
        )


@pytest.mark.parametrize("name", CASES)
def test_strided_inputs_and_gradients(name):
    """Slices of larger buffers whose other values are NaN, and the stride-0 gradient of a sum."""
    layer = Layer(CASES[name])
    x, dy = inputs(layer.case)
    expected = layer.by_hand(F.linear, x, dy=dy)
    assert_same_results(layer.run(staircase_linear, inside_poison(x), dy=inside_poison(dy)), expected)
    assert_same_results(layer.run(staircase_linear, x.t().contiguous().t(), dy=dy.t().contiguous().t()), expected)
    ones = torch.ones(1, 1, dtype=x.dtype).expand(dy.shape)
    assert_same_results(layer.run(staircase_linear, x, dy=ones), layer.by_hand(F.linear, x))


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_fully_written(name, full_input_grad, poisoned_memory):
    layer = Layer(CASES[name])
    x, dy = inputs(layer.case)
    for tensor in layer.run(staircase_linear, x, full_input_grad=full_input_grad, dy=dy).values():
        assert tensor is None or tensor.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_only_trainable_columns_get_a_gradient(name):
    layer = Layer(CASES[name])
    x, dy = inputs(layer.case)
    results = layer.run(staircase_linear, x, dy=dy)
    owners = layer.case.column_owners()
    trainable = (owners == layer.case.live_task) & (layer.case.task is None)
    assert (results["dx"][:, ~trainable] == 0).all()
    reached = trainable.any() and layer.case.live and layer.case.task is None
    assert not reached or (results["dx"][:, trainable] != 0).all()


def test_frozen_rows_cause_no_gradient_even_when_theirs_is_nan():
    layer = Layer(CASES["nested"])
    x, dy = inputs(layer.case)
    expected = layer.run(staircase_linear, x, dy=dy)
    dy[:, : sum(layer.case.frozen)] = float("nan")
    assert_same_results(layer.run(staircase_linear, x, dy=dy), expected)


def test_frozen_weights_get_no_gradient():
    layer = Layer(CASES["nested"])
    x, _ = inputs(layer.case)
    layer.frozen_weight.requires_grad_()
    layer.frozen_bias.requires_grad_()
    layer.run(staircase_linear, x.requires_grad_())
    assert layer.frozen_weight.grad is None and layer.frozen_bias.grad is None


def test_no_gradient_is_computed_for_what_does_not_ask():
    layer = Layer(CASES["nested"])
    x, _ = inputs(layer.case)
    y = staircase_linear(x, layer.weights(), layer.case.staircase())
    assert not y.requires_grad
    weight = layer.weight.requires_grad_()
    staircase_linear(x, layer.weights(), layer.case.staircase()).sum().backward()
    assert weight.grad is not None and x.grad is None and layer.bias.grad is None


@pytest.mark.parametrize("name", ["nested", "disjoint", "mixed by segment", "empty segments", "concatenated"])
def test_nothing_live_leaks_into_frozen_rows(name):
    """P3: NaN in every live weight, bias and column leaves frozen rows the same bits."""
    layer = Layer(CASES[name])
    case = layer.case
    x, _ = inputs(case)
    stairs = case.staircase()
    clean = staircase_linear(x, layer.weights(), stairs)
    x[:, case.column_owners() == case.live_task] = float("nan")
    layer.weight.fill_(float("nan"))
    layer.bias.fill_(float("nan"))
    poisoned = staircase_linear(x, layer.weights(), stairs)
    assert_same_bits("frozen rows", poisoned[:, : sum(case.frozen)], clean[:, : sum(case.frozen)])
    assert poisoned[:, sum(case.frozen) :].isnan().all()


def test_disjoint_rows_do_not_see_earlier_columns():
    layer = Layer(CASES["disjoint"])
    case = layer.case
    x, _ = inputs(case)
    clean = staircase_linear(x, layer.weights(), case.staircase())
    x[:, case.column_owners() < case.live_task] = float("nan")
    y = staircase_linear(x, layer.weights(), case.staircase())
    assert_same_bits("live rows", y[:, sum(case.frozen) :], clean[:, sum(case.frozen) :])


def test_an_empty_batch():
    layer = Layer(CASES["nested"])
    x, dy = inputs(layer.case, samples=0)
    results = layer.run(staircase_linear, x, dy=dy)
    assert results["y"].shape == (0, 12) and results["dx"].shape == x.shape
    assert not results["dweight"].any() and not results["dbias"].any()


def test_dense_weight_is_the_masked_weight():
    for case in CASES.values():
        layer = Layer(case)
        weight = layer.dense[: len(case.row_owners())][:, layer._present_columns()]
        given = dense_weight(layer.weight, layer.frozen_weight, case.staircase())
        assert torch.equal(given, weight.where(case.mask(), torch.zeros((), dtype=weight.dtype)))


def test_gradcheck():
    for name in ("nested", "mixed by segment", "concatenated"):
        layer = Layer(CASES[name])
        x, _ = inputs(layer.case, samples=2)
        tensors = [t.requires_grad_() for t in (x, layer.weight, layer.bias)]
        assert torch.autograd.gradcheck(partial(_with_frozen, layer), tensors)


def _with_frozen(layer, x, *live):
    weights = Weights(*live, layer.frozen_weight, layer.frozen_bias)
    return staircase_linear(x, weights, layer.case.staircase(), True)


def test_a_stack_of_layers_has_the_dense_masked_networks_gradients():
    """Leaving out gradients at frozen rows and columns changes none of the gradients that matter."""
    first = CASES["first layer, two tasks frozen"]
    second = replace(first, reads=(((2, 3), 4, 1),), frozen=(4, 2), live=5, nested=(True, False, True))
    third = replace(first, reads=(((4, 2), 5, 1),), frozen=(0, 0), live=3)
    layers = [Layer(case) for case in (first, second, third)]
    x = torch.randn(8, 6, dtype=torch.float64)

    given, y = [], x
    for layer in layers:
        given.append([t.detach().requires_grad_() for t in (layer.weight, layer.bias)])
        weights = Weights(*given[-1], layer.frozen_weight, layer.frozen_bias)
        y = staircase_linear(y, weights, layer.case.staircase())
        y = torch.tanh(y)
    y.square().sum().backward()

    dense, z = [], x
    for layer in layers:
        dense.append([t.clone().requires_grad_() for t in (layer.dense, layer.dense_bias)])
        z = torch.tanh(F.linear(z, dense[-1][0] * layer.case.mask(), dense[-1][1]))
    z.square().sum().backward()

    assert_close("output", y, z)
    for depth, layer in enumerate(layers):
        live = layer.case.row_owners() == layer.case.live_task
        reads = layer.case.mask()[live][0]
        assert_close(f"weight {depth}", given[depth][0].grad, dense[depth][0].grad[live][:, reads])
        assert_close(f"bias {depth}", given[depth][1].grad, dense[depth][1].grad[live])


def test_recall_has_the_same_bits_whatever_came_after():
    """P1: later segments lengthen the frozen weights and widen the network; a prefix's product does not notice."""
    generator = random.Random(1)
    for _ in range(100):
        case = random_case(generator, generator.choice([8, 64, 300]))
        layer = Layer(case, dtype=generator.choice(DTYPES))
        for task in range(case.live_task):
            columns, rows = len(case.column_owners(task)), len(case.row_owners(task))
            x = torch.randn(generator.choice([1, 2, 17, 64, 129]), columns, dtype=layer.weight.dtype)
            finished = case.staircase(task)
            size = sum(stair.rows * stair.columns for stair in finished.stairs)
            frozen_then = layer.frozen_weight[:size].clone(), layer.frozen_bias[:rows].clone()
            before = staircase_linear(x, Weights(layer.weight[:0], layer.bias[:0], *frozen_then), finished)
            poison = torch.full_like(layer.weight, float("nan")), torch.full_like(layer.bias, float("nan"))
            after = staircase_linear(x, Weights(*poison, layer.frozen_weight, layer.frozen_bias), finished)
            assert_same_bits(f"task {task} of {case}", after, before)


def test_equals_torch_bit_by_bit_when_nothing_is_frozen():
    generator = random.Random(2)
    for _ in range(40):
        k, rows, samples = (generator.randint(1, 300) for _ in range(3))
        layer = Layer(replace(CASES["nothing frozen"], reads=(k,), live=rows), dtype=torch.float32)
        x, _ = inputs(layer.case, samples, torch.float32)
        y = staircase_linear(x, layer.weights(), layer.case.staircase())
        assert_same_bits(f"{samples} x {k} x {rows}", y, F.linear(x, layer.weight, layer.bias))
