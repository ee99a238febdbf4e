"""Convolution and norm in one op: against the paper's dense masked layer and its norms, and the two ops in sequence, on
every backend of this machine that takes tensors on a CPU. (On a GPU: test_triton_conv2d.py, test_every_backend.py.)"""

import pytest
import torch
import torch.nn.functional as F
from convolutions import GEOMETRIES, PLAIN, inputs, product
from slow import slow
from staircases import CASES, Layer, assert_close, assert_same_bits, assert_same_results, inside_poison

from eidetic_kernels import backends, ops
from eidetic_kernels.backends.activations import FUNCTIONS

HERE = [name for name in backends.NAMES if backends.why_missing(name) is None and "cpu" in backends.devices(name)]
LAST = {"memory_format": torch.channels_last}
FROZEN_AND_LIVE = ["nested", "disjoint", "concatenated"]
# Triton's interpreter is slow, and test_triton_conv2d.py runs every case through it.
SOME = ["mixed by segment", "empty segments", "all frozen", "recall of the first"]
RUNS = [(backend, name) for backend in HERE for name in CASES if backend != "triton" or name in SOME]


@pytest.fixture(params=[*slow("triton"), *(name for name in HERE if name != "triton")] if "triton" in HERE else HERE)
def backend(request, monkeypatch):
    if request.param == "triton":
        from eidetic_kernels.backends.triton import conv2d, linear

        # The interpreter's time goes by the number of programs and steps.
        monkeypatch.setattr(conv2d, "choose_tile", lambda *_: linear.Tile(128, 16, 16, 4, 2))
    with backends.using(request.param):
        yield request.param


class Norm:
    """The numbers of a layer's BatchNorm, and how a call of the op goes with them."""

    def __init__(self, layer, activation, training, seed=3):
        generator = torch.Generator().manual_seed(seed)
        case, self.dtype, self.activation, self.training = layer.case, layer.dense.dtype, activation, training
        self.layer, self.live = layer, case.live

        def numbers(count, least=None):
            values = torch.randn(count, generator=generator, dtype=torch.float64)
            return (values if least is None else values.abs() + least).to(self.dtype)

        frozen = sum(case.frozen)
        self.scale, self.shift = numbers(frozen) + 2, numbers(frozen)
        self.weight, self.bias, self.mean, self.var = *(numbers(self.live) for _ in range(3)), numbers(self.live, 0.5)

    def run(self, op, x, geometry, residual=None, dy=None, full_input_grad=False, task="own", activation=None):
        """The op's output, its gradients and the statistics after it."""
        layer, staircase = self.layer, self.layer.case.staircase(task)
        leaves = {
            "dx": x,
            "dweight": layer.weight,
            "dbias": layer.bias,
            "dresidual": residual,
            "dnorm_weight": self.weight,
            "dnorm_bias": self.bias,
        }
        leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in leaves.items()}

        mean, var = self.mean.clone(), self.var.clone()
        frozen = staircase.frozen_rows
        weights = ops.Weights(leaves["dweight"], leaves["dbias"], layer.frozen_weight, layer.frozen_bias)
        affine = self.scale[:frozen], self.shift[:frozen]
        options = self.training, 0.1, 1e-5, activation or self.activation
        norm = ops.Norm(leaves["dnorm_weight"], leaves["dnorm_bias"], mean, var, *affine, *options)

        y = op(leaves["dx"], weights, staircase, norm, geometry, leaves["dresidual"], full_input_grad)
        if y.requires_grad:
            y.backward(torch.ones_like(y) if dy is None else dy)
        found = {name: None if leaf is None else leaf.grad for name, leaf in leaves.items()}
        return {"y": y.detach(), **found, "running_mean": mean, "running_var": var}

    def by_hand(self, x, geometry, residual=None, dy=None, full_input_grad=False):
        """The dense masked convolution, each segment's own normalisation, the addition and the activation."""
        layer, case = self.layer, self.layer.case
        rows, columns, mask = case.row_owners(), case.column_owners(), case.mask()
        weight = layer.dense[: len(rows)][:, layer._present_columns()].clone().requires_grad_()
        bias = None if layer.dense_bias is None else layer.dense_bias[: len(rows)].clone().requires_grad_()
        x, norm_weight, norm_bias = (t.detach().clone().requires_grad_() for t in (x, self.weight, self.bias))
        residual = None if residual is None else residual.detach().clone().requires_grad_()
        mean, var = self.mean.clone(), self.var.clone()
        z = product(geometry)(x, weight * mask.view(*mask.shape, 1, 1), bias)
        live = rows == case.live_task
        frozen = int((~live).sum())
        parts = [z[:, :frozen] * self.scale[:frozen].view(-1, 1, 1) + self.shift[:frozen].view(-1, 1, 1)]
        if live.any():
            norm = mean, var, norm_weight, norm_bias, self.training, 0.1, 1e-5
            parts.append(F.batch_norm(z[:, frozen:], *norm))
        y = torch.cat(parts, 1)
        y = FUNCTIONS[self.activation](y if residual is None else y + residual)
        dy = torch.ones_like(y) if dy is None else dy
        trained = [t for t in (weight, bias, norm_weight, norm_bias, x, residual) if t is not None]
        given = dy if full_input_grad else dy * live.view(-1, 1, 1)
        gradients = dict(zip(map(id, trained), torch.autograd.grad(y, trained, given, allow_unused=True)))

        def gradient(tensor):
            found = None if tensor is None else gradients[id(tensor)]
            return torch.zeros_like(tensor) if found is None and tensor is not None else found

        dx = gradient(x)
        if not full_input_grad:
            dx = dx * ((columns == case.live_task) & (case.task is None)).view(-1, 1, 1)
        learning = case.task is None
        reads = layer._live_reads(case.column_owners())
        dbias = None if bias is None else gradient(bias)[live] if learning else torch.zeros_like(layer.bias)
        return {
            "y": y.detach(),
            "dx": dx,
            "dresidual": gradient(residual),
            "dbias": dbias,
            "dweight": gradient(weight)[live][:, reads] if learning else torch.zeros_like(layer.weight),
            "dnorm_weight": gradient(norm_weight),
            "dnorm_bias": gradient(norm_bias),
            "running_mean": mean,
            "running_var": var,
        }


def two_ops(x, weights, staircase, norm, geometry, residual, full_input_grad):
    """The op's signature, by the two ops that it stands for."""
    z = ops.staircase_conv2d(x, weights, staircase, geometry, full_input_grad)
    return ops.segmented_batch_norm(z, norm, residual, full_input_grad)


def case_of(name, geometry=PLAIN, dtype=torch.float64, activation="silu", training=True, samples=2, size=(6, 7)):
    """Layer, norm, x, residual and dy. In training without a bias, whose gradient would be nothing but rounding."""
    layer = Layer(CASES[name], geometry[0], bias=not training, dtype=dtype)
    x, dy = inputs(layer.case, *geometry, samples, dtype, size)
    return layer, Norm(layer, activation, training), x, torch.randn_like(dy), dy


def dtype_of(backend):
    return torch.float64 if backend == "torch" else torch.float32


@pytest.mark.parametrize("full_input_grad", [False, True], ids=["live", "full"])
@pytest.mark.parametrize(("backend", "name"), RUNS, indirect=["backend"])
def test_equals_the_dense_masked_layer_and_its_norms(name, full_input_grad, poisoned_memory, backend):
    """P4, with memory that holds NaN until it is written."""
    for training, activation in ((True, "relu"), (False, "silu")):
        _, norm, x, residual, dy = case_of(name, PLAIN, dtype_of(backend), activation, training, size=(4, 3))
        for added in (residual, None) if backend != "triton" else (residual,):
            results = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], added, dy, full_input_grad)
            assert_same_results(results, norm.by_hand(x, PLAIN[1], added, dy, full_input_grad))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name, backend):
    kernel, geometry = GEOMETRIES[name]
    one_pixel = name == "as large as the image"  # statistics of so few values magnify rounding
    _, norm, x, residual, dy = case_of("concatenated", (kernel, geometry), dtype_of(backend), "gelu", not one_pixel)
    for full_input_grad in (False, True):
        results = norm.run(ops.staircase_conv2d_norm, x, geometry, residual, dy, full_input_grad)
        assert_same_results(results, norm.by_hand(x, geometry, residual, dy, full_input_grad))


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_activations_and_the_oracle(activation):
    for full_input_grad in (False, True):
        _, norm, x, residual, dy = case_of("mixed by segment", activation=activation)
        expected = norm.by_hand(x, PLAIN[1], residual, dy, full_input_grad)
        for op in (ops.staircase_conv2d_norm, ops.staircase_conv2d_norm_oracle):
            assert_same_results(norm.run(op, x, PLAIN[1], residual, dy, full_input_grad), expected)


@pytest.mark.parametrize("name", ["mixed by segment", "nothing frozen", "all frozen", "flattened blocks"])
def test_memory_formats_and_strided_inputs(name, backend):
    layer, norm, x, residual, dy = case_of(name, dtype=dtype_of(backend), size=(4, 3))
    expected = norm.by_hand(x, PLAIN[1], residual, dy)
    run = ops.staircase_conv2d_norm
    assert_same_results(norm.run(run, inside_poison(x), PLAIN[1], inside_poison(residual), inside_poison(dy)), expected)
    assert_same_results(norm.run(run, x, PLAIN[1], residual.contiguous(**LAST), dy.contiguous(**LAST)), expected)
    assert_same_results(norm.run(run, x.contiguous(**LAST), PLAIN[1], residual, dy), expected)
    layer.weight = layer.weight.contiguous(**LAST)
    results = norm.run(run, x, PLAIN[1], residual, dy)
    assert_same_results(results, expected)
    assert results["y"].is_contiguous(**LAST) or layer.weight.is_contiguous()


@pytest.mark.parametrize("layout", [torch.contiguous_format, *slow(torch.channels_last)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CASES)
def test_the_bits_of_the_two_ops_in_sequence(name, training, layout):
    """What a network was certified with, and what was converted, keeps its bits."""
    for backend in {"torch", "cpu"} & set(HERE):
        with backends.using(backend):
            for activation, bias in (("relu", True), ("none", False), ("hardswish", True)):
                layer = Layer(CASES[name], PLAIN[0], bias, torch.float32)
                x, dy = inputs(layer.case, *PLAIN, 2, torch.float32)
                x, norm, residual = x.contiguous(memory_format=layout), Norm(layer, activation, training), dy + 1

                for added in (None, residual):
                    for full_input_grad in (False, True):
                        fused, apart = (
                            norm.run(op, x, PLAIN[1], added, dy, full_input_grad)
                            for op in (ops.staircase_conv2d_norm, two_ops)
                        )
                        for key, tensor in apart.items():
                            if tensor is None:
                                assert fused[key] is None
                            elif key.startswith("d") and layer.case.live == 1 and layer.case.frozen:
                                # a single channel is summed in another order than one that lies beside others
                                assert_close(key, fused[key], tensor, least=1.0)
                            else:
                                assert_same_bits(f"{key}, {activation}, {backend}", fused[key], tensor)
                        assert fused["y"].stride() == apart["y"].stride()


@pytest.mark.parametrize("name", FROZEN_AND_LIVE)
def test_frozen_channels_keep_their_bits(name, backend):
    """P1 and P5: in training, in evaluation, recalled, and whatever lies beside them."""
    layer, norm, x, residual, _ = case_of(name, dtype=torch.float32, activation="gelu", training=False)
    case = layer.case
    whole = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual)["y"]
    norm.training = True
    trained = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual)["y"]
    frozen = sum(case.frozen)
    assert_same_bits("in training", trained[:, :frozen], whole[:, :frozen])
    assert not torch.equal(trained, whole)
    for task in range(case.live_task):
        rows, present = len(case.row_owners(task)), case.column_owners() <= task
        for layout in (torch.contiguous_format, torch.channels_last):
            prefix = x[:, present].contiguous(memory_format=layout), residual[:, :rows]
            y = norm.run(ops.staircase_conv2d_norm, prefix[0], PLAIN[1], prefix[1], task=task)["y"]
            if backend == "triton" or layout is torch.contiguous_format:  # the library's depend on how the input lies
                assert_same_bits(f"recall of {task}", y, whole[:, :rows])


@pytest.mark.parametrize("name", FROZEN_AND_LIVE)
def test_nothing_live_leaks_into_frozen_channels(name, backend):
    """P3."""
    layer, norm, x, residual, dy = case_of(name, dtype=torch.float32, training=False)
    case, frozen = layer.case, sum(layer.case.frozen)
    for training in (True, False):
        norm.training = training
        clean = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual)["y"]
        poisoned = x.clone(), residual.clone()
        poisoned[0][:, case.column_owners() == case.live_task] = float("nan")
        poisoned[1][:, frozen:] = float("nan")
        spoilt = Layer(case, PLAIN[0], dtype=torch.float32)
        spoilt.__dict__.update(vars(layer))
        other = Norm(spoilt, norm.activation, training)
        for tensor in ("weight", "bias"):
            setattr(spoilt, tensor, torch.full_like(getattr(layer, tensor), float("nan")))
        for tensor in ("weight", "bias", "mean", "var"):
            getattr(other, tensor).fill_(float("nan"))
        y = other.run(ops.staircase_conv2d_norm, poisoned[0], PLAIN[1], poisoned[1])["y"]
        assert_same_bits("frozen channels", y[:, :frozen], clean[:, :frozen])
        assert y[:, frozen:].isnan().all()


@pytest.mark.parametrize("activation", ["relu", "hardswish"])
def test_frozen_channels_cause_no_gradient_even_when_theirs_is_nan(activation, backend):
    layer, norm, x, residual, dy = case_of("nested", dtype=torch.float32, activation=activation)
    expected = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual, dy)
    frozen = sum(layer.case.frozen)
    dy[:, :frozen] = float("nan")
    given = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual, dy)
    for key, tensor in expected.items():
        assert tensor is None or torch.equal(given[key], tensor), key
    assert not given["dresidual"][:, :frozen].any() and given["dresidual"][:, frozen:].any()


def test_an_empty_batch(backend):
    _, norm, x, residual, dy = case_of("nested", dtype=torch.float32, training=False, samples=0)
    results = norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual, dy)
    assert results["y"].shape == dy.shape and results["dx"].shape == x.shape == results["dx"].shape
    assert not results["dweight"].any() and not results["dnorm_weight"].any()


def test_frozen_products_are_not_kept_for_the_backward_pass():
    """The memory that a layer with many finished tasks holds during training."""
    layer, norm, x, _, _ = case_of("nested", dtype=torch.float32, activation="silu")
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weights = ops.Weights(layer.weight.requires_grad_(), None, layer.frozen_weight, None)
        weight = norm.weight.requires_grad_()
        given = ops.Norm(weight, norm.bias, norm.mean, norm.var, norm.scale, norm.shift, True, 0.1, 1e-5, "silu")
        ops.staircase_conv2d_norm(x, weights, layer.case.staircase(), given, PLAIN[1])
    images = [t for t in kept if t.dim() == 4 and t.shape[2:] == x.shape[2:]]
    assert sorted(t.shape[1] for t in images) == sorted([layer.case.live, x.shape[1]])


def test_what_is_close_is_close_enough_to_notice():
    """The comparison itself: scale and shift of one frozen channel, exchanged, are seen."""
    layer, norm, x, residual, dy = case_of("nested")
    expected = norm.by_hand(x, PLAIN[1], residual, dy)["y"]
    norm.scale[0], norm.shift[0] = norm.shift[0].clone(), norm.scale[0].clone()
    with pytest.raises(AssertionError, match="y: "):
        assert_close("y", norm.run(ops.staircase_conv2d_norm, x, PLAIN[1], residual, dy)["y"], expected)
