"""The compiled CPU kernels of segmented BatchNorm, on every instruction set of this processor."""

import norm_promises
import pytest
import torch
from kernel_cases import NormCase, applied
from tolerances import assert_same_bits

from eidetic_kernels.backends import cpu, extensions
from eidetic_kernels.backends.arguments import Norm, NormGradients

MISSING = extensions.why_missing("_cpu")
DTYPES = (torch.float32,)
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]
SETS = ("avx512", "avx2", "portable")


@pytest.fixture(params=SETS)
def instruction_set(request):
    module = extensions.load("_cpu")
    if request.param not in module.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    module.use_instruction_set(request.param)
    yield request.param
    module.use_instruction_set(module.instruction_sets()[0])


def test_agrees_with_the_oracle(instruction_set):
    for case in norm_promises.cases(DTYPES, each=3, seed=SETS.index(instruction_set)):
        case.check(cpu)


def test_every_instruction_set_gives_the_same_bits():
    """A model that moves to another processor recalls the same bits."""
    module = extensions.load("_cpu")
    for case in norm_promises.cases(DTYPES, each=3, seed=7):
        expected = case.run(cpu, case.tensors())
        for name in module.instruction_sets()[1:]:
            module.use_instruction_set(name)
            results = case.run(cpu, case.tensors())
            module.use_instruction_set(module.instruction_sets()[0])
            for key, value in results.items():
                if value is not None:
                    assert_same_bits(f"{case}, {name}: {key}", value, expected[key])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "shape"), [((70, 130), (999,)), ((5, 11), (9, 37, 23)), ((0, 64), (8, 32, 32))])
def test_bits_do_not_depend_on_the_number_of_threads(channels, shape, channels_last):
    case = NormCase(channels, shape, activation="gelu", channels_last=channels_last and len(shape) > 1)
    results = {}
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results[threads] = case.run(cpu, case.tensors())
    torch.set_num_threads(1)
    for key, expected in results[1].items():
        for threads in (2, 5):
            if expected is not None:
                assert_same_bits(f"{threads} threads: {key}", results[threads][key], expected)
    case.check(cpu)


def test_layouts(instruction_set):
    norm_promises.check_layouts(cpu, "cpu")


def test_frozen_bits(instruction_set):
    norm_promises.check_frozen_bits(cpu, "cpu", DTYPES, count=60)


def test_frozen_gradients_are_zero():
    norm_promises.check_frozen_gradients_are_zero(cpu, "cpu")


def test_large_means(instruction_set):
    norm_promises.check_large_means(cpu, "cpu")


def test_special_values(instruction_set):
    norm_promises.check_special_values(cpu, "cpu")


def test_smooth_activations_are_accurate(instruction_set):
    """Exponential and error function are our own: compared with float64 at 200,001 points."""
    x = torch.linspace(-30, 30, 200_001).view(-1, 1)
    one, none = torch.ones(1), torch.empty(0)
    for activation, function in (("silu", torch.nn.functional.silu), ("gelu", torch.nn.functional.gelu)):
        reference = x.double().requires_grad_()
        expected = function(reference)
        expected.sum().backward()
        norm = Norm(none, none, none, none, one, one * 0, False, 0.0, 1e-5, activation)
        y, mean, rstd = cpu.segmented_batch_norm_forward(x, None, norm)
        wanted = NormGradients(full_input_grad=True, x=True, residual=False)
        dx = cpu.segmented_batch_norm_backward(torch.ones_like(x), x, None, applied(norm, mean, rstd), wanted)[0]
        for name, given, wanted in (("y", y, expected.detach()), ("dx", dx, reference.grad)):
            error = (given.double() - wanted).abs() / wanted.abs().clamp_min(0.5)
            assert error.max() < 2e-6, f"{activation}, {name}: {error.max():.2g} at x = {x[error.argmax()].item()}"


def test_what_is_not_needed():
    norm_promises.check_what_is_not_needed(cpu, "cpu")


def test_no_samples():
    norm_promises.check_no_samples(cpu, "cpu")


def test_what_is_not_taken_is_said():
    t = NormCase((3, 4), (5,)).tensors()
    rest = t["weight"], t["bias"], t["running_mean"], t["frozen_scale"]
    assert cpu.segmented_batch_norm_supports(t["x"], None, *rest) is None
    assert "float64; it takes float32" in cpu.segmented_batch_norm_supports(t["x"].double(), None, *rest)
    assert "bfloat16" in cpu.segmented_batch_norm_supports(t["x"].bfloat16(), None, *rest)
    assert "takes tensors on the CPU" in cpu.segmented_batch_norm_supports(t["x"].to("meta"), None, *rest)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="no instruction set mmx here; there are: .*portable"):
        extensions.load("_cpu").use_instruction_set("mmx")


def test_rows_beyond_32_bit_addresses(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # it would commit 8 GiB
    reason = norm_promises.check_far_rows(cpu, torch.float32)
    if reason is not None:
        pytest.skip(reason)
