"""Segmented BatchNorm: the op and its oracle against the definition written out, and what the contract promises."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import CHANNELS as CASE_CHANNELS
from kernel_cases import SHAPES as CASE_SHAPES
from kernel_cases import NormCase, norm_of
from staircases import DTYPES, assert_close, assert_same_bits, assert_same_results, inside_poison

from eidetic_kernels import backends, ops
from eidetic_kernels.ops import ACTIVATIONS, batch_norm, segmented_batch_norm, segmented_batch_norm_oracle

IMPLEMENTATIONS = {"op": segmented_batch_norm, "oracle": segmented_batch_norm_oracle}
EPS, MOMENTUM = 1e-3, 0.3
CHANNELS = {  # frozen, live
    "nothing frozen": (0, 5),
    "ragged": (7, 4),
    "all frozen": (6, 0),
    "one each": (1, 1),
    "one live": (0, 1),
    "none": (0, 0),
}
SHAPES = {"flat": (6,), "line": (4, 5), "image": (3, 4, 5)}  # samples, then space


@pytest.fixture(autouse=True)
def torch_backend():
    with backends.using("torch"):
        yield


class Norm:
    """Random input and parameters: scales that are not 1, shifts that are not 0, statistics in motion."""

    def __init__(self, channels, shape, affine=True, dtype=torch.float64, mean=0.0, std=1.0):
        self.frozen, self.live = channels
        self.x = torch.randn(shape[0], sum(channels), *shape[1:], dtype=torch.float64) * std + mean
        self.dy = torch.randn_like(self.x)
        self.weight = torch.randn(self.live, dtype=torch.float64) + 2 if affine else None
        self.bias = torch.randn(self.live, dtype=torch.float64) if affine else None
        self.mean, self.var = torch.randn(self.live, dtype=torch.float64), torch.rand(self.live, dtype=torch.float64)
        self.scale, self.shift = (torch.randn(self.frozen, dtype=torch.float64) for _ in range(2))
        for name, tensor in vars(self).items():
            if isinstance(tensor, torch.Tensor):
                setattr(self, name, tensor.to(dtype))

    def run(self, op, training, activation="none", full_input_grad=False, x=None, dy=None):
        leaves = [t if t is None else t.detach().requires_grad_() for t in (self.weight, self.bias)]
        x = (self.x if x is None else x).detach().requires_grad_()
        mean, var = self.mean.clone(), self.var.clone()
        norm = ops.Norm(*leaves, mean, var, self.scale, self.shift, training, MOMENTUM, EPS, activation)
        y = op(x, norm, None, full_input_grad)
        if y.requires_grad:
            y.backward(self.dy if dy is None else dy)
        grads = [None if leaf is None else leaf.grad for leaf in leaves]
        return {"y": y.detach(), "dx": x.grad, "dweight": grads[0], "dbias": grads[1], "mean": mean, "var": var}

    def by_hand(self, training, activation="none", full_input_grad=False):
        """Equation 2 of the paper written out, in float64 whatever the dtype."""
        double = {n: t.detach().double() for n, t in vars(self).items() if isinstance(t, torch.Tensor)}
        x = double["x"].clone().requires_grad_()
        leaves = {n: double[n].clone().requires_grad_() for n in ("weight", "bias") if n in double}
        dims, column = [d for d in range(x.dim()) if d != 1], (-1, *[1] * (x.dim() - 2))
        mean, var = double["mean"], double["var"]
        x_live, x_frozen = x[:, self.frozen :], x[:, : self.frozen]

        if not full_input_grad:
            x_frozen = x_frozen.detach()
        if training and self.live:
            count = x_live[:, 0].numel()
            batch_mean, batch_var = x_live.mean(dims), x_live.var(dims, unbiased=False)
            mean = (1 - MOMENTUM) * mean + MOMENTUM * batch_mean.detach()
            var = (1 - MOMENTUM) * var + MOMENTUM * batch_var.detach() * count / (count - 1)
        else:
            batch_mean, batch_var = mean, var

        y = (x_live - batch_mean.view(column)) / (batch_var.view(column) + EPS).sqrt()
        if leaves:
            y = y * leaves["weight"].view(column) + leaves["bias"].view(column)
        y = torch.cat([x_frozen * double["scale"].view(column) + double["shift"].view(column), y], 1)
        y = y.clamp_min(0) if activation == "relu" else y

        if y.requires_grad:
            y.backward(double["dy"])
        results = {"y": y.detach(), "dx": x.grad if x.grad is not None else torch.zeros_like(x)}
        results |= {f"d{name}": leaf.grad for name, leaf in leaves.items()}
        return results | {"mean": mean, "var": var}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_equals_the_definition(channels, shape, implementation, dtype):
    op = IMPLEMENTATIONS[implementation]
    for training, affine, activation, full_input_grad in itertools.product(
        (True, False), (True, False), ("none", "relu"), (True, False)
    ):
        norm = Norm(CHANNELS[channels], SHAPES[shape], affine, dtype)
        label = f"training={training}, affine={affine}, {activation}, full_input_grad={full_input_grad}: "
        results = norm.run(op, training, activation, full_input_grad)
        assert_same_results(results, norm.by_hand(training, activation, full_input_grad), label)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("mean", "std"), [(100.0, 10.0), (-50.0, 0.5), (0.0, 1e-4)])
def test_large_means_and_deviations(mean, std, implementation):
    for training in (True, False):
        norm = Norm((3, 4), (16, 3, 3), mean=mean, std=std)
        assert_same_results(norm.run(IMPLEMENTATIONS[implementation], training), norm.by_hand(training))


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_memory_formats_and_strided_inputs(channels, training, activation):
    norm = Norm(CHANNELS[channels], SHAPES["image"])
    expected = norm.by_hand(training, activation)
    last = {"memory_format": torch.channels_last}
    for x, dy in (
        (inside_poison(norm.x), inside_poison(norm.dy)),
        (norm.x.contiguous(**last), norm.dy.contiguous(**last)),
        (norm.x, norm.dy.contiguous(**last)),
        (norm.x.transpose(2, 3).contiguous().transpose(2, 3), norm.dy),
    ):
        assert_same_results(norm.run(segmented_batch_norm, training, activation, x=x, dy=dy), expected)
    norm.dy = norm.dy[:, :, :1, :1].expand(norm.x.shape)  # strides of 0
    assert_same_results(norm.run(segmented_batch_norm, training), norm.by_hand(training))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_outputs_are_fully_written(channels, shape, poisoned_memory):
    norm = Norm(CHANNELS[channels], SHAPES[shape])
    for training, full_input_grad in itertools.product((True, False), repeat=2):
        for tensor in norm.run(segmented_batch_norm, training, "relu", full_input_grad).values():
            assert tensor is None or tensor.isfinite().all()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_frozen_channels_get_no_gradient_unless_asked(channels, training):
    norm = Norm(CHANNELS[channels], SHAPES["image"])
    expected = norm.run(segmented_batch_norm, training)
    assert (expected["dx"][:, : norm.frozen] == 0).all()
    norm.dy[:, : norm.frozen] = float("nan")
    assert_same_results(norm.run(segmented_batch_norm, training), expected)
    norm.dy[:, : norm.frozen] = 1.0
    full_input_grad = norm.run(segmented_batch_norm, training, full_input_grad=True)["dx"][:, : norm.frozen]
    assert_close("full dx", full_input_grad, norm.scale.view(-1, 1, 1).expand(full_input_grad.shape))


def test_frozen_numbers_get_no_gradient():
    norm = Norm((3, 4), SHAPES["image"])
    norm.scale.requires_grad_()
    norm.shift.requires_grad_()
    norm.run(segmented_batch_norm, True, full_input_grad=True)
    assert norm.scale.grad is None and norm.shift.grad is None


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nothing_live_leaks_into_frozen_channels(training, activation):
    norm = Norm((3, 4), SHAPES["image"])
    clean = norm.run(segmented_batch_norm, training, activation)["y"]
    norm.x[:, 3:] = float("nan")
    for tensor in (norm.weight, norm.bias, norm.mean, norm.var):
        tensor.fill_(float("nan"))
    poisoned = norm.run(segmented_batch_norm, training, activation)["y"]
    assert_same_bits("frozen channels", poisoned[:, :3], clean[:, :3])
    assert poisoned[:, 3:].isnan().all(), "relu must let NaN pass"


def test_relu_lets_nan_pass_in_frozen_channels_too():
    norm = Norm((3, 4), SHAPES["flat"])
    norm.x[2, 1] = float("nan")
    assert norm.run(segmented_batch_norm, False, "relu")["y"].isnan().nonzero().tolist() == [[2, 1]]


def test_relu_passes_no_gradient_at_zero():
    norm = Norm((0, 1), SHAPES["flat"])
    norm.weight.zero_()
    norm.bias.zero_()
    results = norm.run(segmented_batch_norm, True, "relu")
    assert not results["y"].any() and not results["dbias"].any()


def test_evaluation_moves_no_statistics():
    norm = Norm((3, 4), SHAPES["image"])
    results = norm.run(segmented_batch_norm, False)
    assert_same_bits("mean", results["mean"], norm.mean)
    assert_same_bits("var", results["var"], norm.var)


def test_no_gradient_is_computed_for_what_does_not_ask():
    norm = Norm((3, 4), SHAPES["image"])
    given = ops.Norm(norm.weight, norm.bias, norm.mean, norm.var, norm.scale, norm.shift, True, MOMENTUM, EPS)
    assert not segmented_batch_norm(norm.x, given).requires_grad
    norm.bias.requires_grad_()
    segmented_batch_norm(norm.x, given).sum().backward()
    assert norm.bias.grad is not None and norm.weight.grad is None and norm.x.grad is None


def test_two_forwards_before_one_backward():
    """Running statistics move in the second pass; the first one's gradient must not notice."""
    norm = Norm((3, 4), SHAPES["image"])
    mean, var = norm.mean.clone(), norm.var.clone()
    weight = norm.weight.requires_grad_()
    given = ops.Norm(weight, norm.bias, mean, var, norm.scale, norm.shift, True, MOMENTUM, EPS)
    y = segmented_batch_norm(norm.x, given)
    segmented_batch_norm(norm.x * 2 + 1, given)
    y.backward(norm.dy)
    assert_close("dweight", weight.grad, norm.by_hand(True)["dweight"])


def test_gradcheck():
    for training, channels in itertools.product((True, False), ((3, 4), (0, 3), (3, 0))):
        norm = Norm(channels, (3, 2, 2))
        leaves = [t.requires_grad_() for t in (norm.x, norm.weight, norm.bias)]

        def function(x, weight, bias, norm=norm, training=training):
            mean, var = norm.mean.clone(), norm.var.clone()
            given = ops.Norm(weight, bias, mean, var, norm.scale, norm.shift, training, MOMENTUM, EPS)
            return segmented_batch_norm(x, given, full_input_grad=True)

        assert torch.autograd.gradcheck(function, leaves)


def test_a_channels_bits_do_not_depend_on_what_else_is_present():
    """P1: the frozen channels of a prefix are, bit by bit, the first channels of the whole; so are live ones alone."""
    generator = random.Random(1)
    for _ in range(150):
        channels = generator.randint(0, 300), generator.randint(1, 300)
        space = generator.choice([(), (3,), (5,), (2, 3), (4, 4)])
        norm = Norm(channels, (generator.choice([2, 3, 16, 17]), *space), dtype=generator.choice(DTYPES))
        training = generator.random() < 0.5
        whole = norm.run(segmented_batch_norm, training)["y"]
        prefix = generator.randint(0, norm.frozen)
        nothing = norm.weight[:0], norm.bias[:0], norm.mean[:0], norm.var[:0]
        for x in (norm.x[:, :prefix], norm.x[:, :prefix].contiguous()):
            given = ops.Norm(*nothing, norm.scale[:prefix], norm.shift[:prefix], False, 0.0, EPS)
            y = segmented_batch_norm(x, given)
            assert_same_bits(f"first {prefix} of {channels}, {list(x.shape)}", y, whole[:, :prefix])
        live = norm.x[:, norm.frozen :].contiguous()
        alone = F.batch_norm(live, norm.mean.clone(), norm.var.clone(), norm.weight, norm.bias, training, MOMENTUM, EPS)
        assert_same_bits(f"live of {channels}, {list(live.shape)}", whole[:, norm.frozen :], alone)


class Torch:
    """The torch backend as a module of kernels, for the cases that every backend is held to."""

    @staticmethod
    def segmented_batch_norm_forward(x, residual, norm):
        Torch.y, mean, rstd = batch_norm.forward(x, residual, norm)
        return Torch.y, mean, rstd

    @staticmethod
    def segmented_batch_norm_backward(dy, *arguments):
        dx, dresidual, dweight, dbias = batch_norm.backward(dy, Torch.y, *arguments)
        # In half precision torch rounds between one operation and the next, which sums of gradients feel.
        return dx, dresidual, *(None if g is None else g.to(dy.dtype) for g in (dweight, dbias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_residuals_equal_the_oracle(activation):
    # A value that half precision rounds across a kink has the derivative of the other side.
    half = () if activation in ("relu6", "hardswish") else (torch.bfloat16,)
    for dtype, training, residual, full_input_grad, affine in itertools.product(
        (torch.float32, torch.float64, *half), (True, False), (True, False), (True, False), (True, False)
    ):
        for channels, shape, last in (((7, 4), (3, 7, 5), False), ((7, 4), (3, 7, 5), True), ((3, 5), (9,), False)):
            case = NormCase(channels, shape, dtype, activation, training, affine, residual, full_input_grad, last)
            case.check(Torch)


@pytest.mark.parametrize("channels", CASE_CHANNELS)
def test_sizes_that_bite_equal_the_oracle(channels):
    for shape, activation, residual in itertools.product(CASE_SHAPES, ("relu", "gelu"), (True, False)):
        case = NormCase(CASE_CHANNELS[channels], CASE_SHAPES[shape], activation=activation, residual=residual)
        if not case.ill_posed:
            case.check(Torch)
    NormCase(CASE_CHANNELS[channels], (64, 3, 3), activation="silu", mean=1000.0, std=1.0).check(Torch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activated_channels_bits_do_not_depend_on_what_lies_beside_it(activation, dtype):
    """P1: vector instructions and what follows the last whole vector give exponentials different bits."""
    generator = random.Random(3)
    for _ in range(30):
        frozen, live = generator.randint(1, 70), generator.randint(0, 40)
        shape = (generator.choice([1, 3, 17]), *generator.choice([(), (3,), (5, 5)]))
        case = NormCase((frozen, live), shape, dtype, activation, False, residual=True)
        t = case.tensors()
        x, residual = (t[name].to(memory_format=torch.contiguous_format) for name in ("x", "residual"))
        norm = norm_of(t, False, activation)
        whole = segmented_batch_norm(x, norm, residual)
        kept = generator.randint(1, frozen)
        cut = norm._replace(frozen_scale=norm.frozen_scale[:kept], frozen_shift=norm.frozen_shift[:kept])
        prefix = segmented_batch_norm(x[:, :kept].contiguous(), cut, residual[:, :kept].contiguous())
        assert_same_bits(f"{kept} of {frozen} + {live}, {shape}", prefix, whole[:, :kept])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_go_through_an_activation_as_in_torch(activation):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 6.0, 3.0, -3.0, -0.0]).view(8, 1)
    values = values.expand(8, 4).contiguous()

    ones, zeros = torch.ones(2), torch.zeros(2)
    x = values.clone().requires_grad_()
    # mean 0 and variance 1 without eps, scale 1 and shift 0: live and frozen channels activate x itself
    norm = ops.Norm(ones, zeros, zeros, ones, ones, zeros, False, 0.0, 0.0, activation)
    y = segmented_batch_norm(x, norm, full_input_grad=True)

    expected = values.clone().requires_grad_()
    z = F.batch_norm(expected, torch.zeros(4), torch.ones(4), torch.ones(4), torch.zeros(4), eps=0.0)
    z = {
        "none": lambda z: z,
        "relu": F.relu,
        "relu6": F.relu6,
        "silu": F.silu,
        "gelu": F.gelu,
        "hardswish": F.hardswish,
    }[activation](z)

    y.backward(torch.ones_like(y)), z.backward(torch.ones_like(z))
    # Of infinity torch's gelu makes NaN with vector instructions, and infinity without.
    alike = ~values.isinf() | (activation != "gelu")
    torch.testing.assert_close(y[alike], z[alike], rtol=1e-6, atol=1e-6, equal_nan=True)
    # At NaN and infinity torch's own derivatives differ between vector instructions and single ones.
    finite = values.isfinite()
    torch.testing.assert_close(x.grad[finite], expected.grad[finite], rtol=1e-6, atol=1e-6)
