"""The CUDA kernels of segmented BatchNorm, their bindings and launcher: executed on a CPU, and on a GPU where one is.

The same sources are compiled by g++ with tests/csrc/cuda_on_cpu.h; `_cuda` itself runs only on a GPU.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cuda_on_cpu
import norm_promises
import pytest
import torch
from cuda_on_cpu import FORWARD, RANDOM, REVERSE
from kernel_cases import NormCase
from tolerances import assert_close, assert_same_bits

from eidetic_kernels.backends import cuda, extensions

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory")]  # slow to compile

on_cpu = pytest.mark.skipif(cuda_on_cpu.why_not() is not None, reason=str(cuda_on_cpu.why_not()))


@pytest.fixture(scope="session")
def emulated():
    """(the module, its device's settings)"""
    return cuda_on_cpu.load(cuda_on_cpu.build())


@pytest.fixture
def settings(emulated):
    """The pretended device, as new; :mod:`eidetic_kernels.backends.cuda` runs on it."""
    module, settings = emulated
    fresh = bytes(cuda_on_cpu.fresh())
    cuda_on_cpu.restore(settings, fresh)
    with cuda_on_cpu.in_place_of_cuda(module):
        yield settings
    cuda_on_cpu.restore(settings, fresh)


@pytest.fixture(params=[pytest.param("on a CPU", marks=on_cpu), "on a GPU"])
def device(request):
    """Where the tensors of ``eidetic_kernels.backends.cuda`` live."""
    if request.param == "on a GPU":
        reason = extensions.why_missing("_cuda")
        if reason is not None:
            pytest.skip(reason)
        return "cuda"
    request.getfixturevalue("settings")
    return "cpu"


@on_cpu
@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM])
def test_agrees_with_the_oracle_in_every_order_of_threads(settings, order):
    settings.order = order
    for case in norm_promises.cases(DTYPES, each=1, seed=order):
        settings.processors = 1 + 40 * (sum(case.channels) % 2)
        case.check(cuda)


def test_agrees_with_the_oracle(device):
    for case in norm_promises.cases(DTYPES, each=2):
        case.check(cuda, device)


@on_cpu
@pytest.mark.parametrize("processors", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_walks_of_several_steps(settings, dtype, processors):
    """More vectors or rows than a block has threads, of planes whose sizes the steps do not divide."""
    settings.processors = processors
    for shape in ((9, 13, 11), (9, 24, 23), (2, 40, 36), (40, 3), (1111,)):
        case = NormCase((3, 6), shape, dtype, "relu", residual=True, full_input_grad=True)
        case.check(cuda)


@on_cpu
def test_bits_do_not_depend_on_the_order_of_threads(settings):
    for case in norm_promises.cases(DTYPES, each=1, seed=5):
        results = {}
        for order in (FORWARD, REVERSE, RANDOM):
            settings.order = order
            results[order] = case.run(cuda, case.tensors())
        for name, expected in results[FORWARD].items():
            for order in (REVERSE, RANDOM):
                if expected is not None:
                    assert_same_bits(f"{case}, order {order}: {name}", results[order][name], expected)


@on_cpu
def test_frozen_bits_do_not_depend_on_the_device_s_size(settings):
    case = NormCase((5, 6), (9, 32, 32), activation="silu", full_input_grad=True)
    results = []
    for settings.processors in (1, 7, 132):
        results.append(case.run(cuda, case.tensors()))
        for name in ("y", "dx"):
            assert_same_bits(name, results[-1][name][:, :5], results[0][name][:, :5])
    assert not torch.equal(results[0]["dweight"], results[-1]["dweight"]), "nothing was split differently"


def test_layouts(device):
    norm_promises.check_layouts(cuda, device)


def test_frozen_bits(device):
    norm_promises.check_frozen_bits(cuda, device, DTYPES, count=25)


def test_frozen_gradients_are_zero(device):
    norm_promises.check_frozen_gradients_are_zero(cuda, device)


def test_large_means(device):
    norm_promises.check_large_means(cuda, device)


def test_special_values(device):
    norm_promises.check_special_values(cuda, device)


def test_what_is_not_needed(device):
    norm_promises.check_what_is_not_needed(cuda, device)


def test_no_samples(device):
    norm_promises.check_no_samples(cuda, device)


@on_cpu
def test_rows_beyond_32_bit_addresses(settings, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # it would commit 4 GiB
    reason = norm_promises.check_far_rows(cuda, torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_half_precision(device, dtype):
    case = NormCase((7, 9), (3, 4, 5), dtype, "relu")
    small, wide = case.tensors(device), case.tensors(device)
    for name, tensor in small.items():
        if tensor is not None and tensor.dtype == torch.float32:
            small[name], wide[name] = tensor.to(dtype), tensor.to(dtype).float()
    results, expected = case.run(cuda, small), case.run(cuda, wide)
    assert results["dweight"].dtype == results["running_var"].dtype == dtype
    for name in ("y", "dx"):
        assert_same_bits(name, results[name], expected[name])
    for name in ("running_mean", "running_var", "dweight", "dbias"):
        assert_same_bits(name, results[name], expected[name].to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.skipif(extensions.why_missing("_cuda") is not None, reason="the CUDA kernels cannot run here")
def test_runs_on_the_current_stream_and_repeats_its_bits():
    case = NormCase((37, 70), (64, 16, 16))
    with torch.cuda.stream(torch.cuda.Stream()):
        tensors = case.tensors("cuda")
        first, second = (
            case.run(cuda, tensors | {"running_mean": m, "running_var": v})
            for m, v in ((tensors["running_mean"].clone(), tensors["running_var"].clone()) for _ in range(2))
        )
    torch.cuda.synchronize()
    for name, expected in first.items():
        if expected is not None:
            assert_same_bits(name, second[name], expected)
    for name, expected in case.expected().items():
        if expected is not None and name in ("y", "running_var"):
            assert_close(name, first[name], expected)


# The launcher


@on_cpu
def test_device_and_stream_are_passed_on_and_the_device_is_put_back(settings, emulated):
    case = NormCase()
    with cuda_on_cpu.in_place_of_cuda(emulated[0], device=1, stream=0xABC0):
        case.check(cuda)
    assert settings.launches == 4
    assert (settings.launch_device, settings.launch_stream) == (1, 0xABC0)
    assert settings.device == 0


@on_cpu
@pytest.mark.parametrize("launch", [1, 2, 3, 4], ids=["moments", "forward", "sums", "backward"])
def test_a_failed_launch_is_an_error(settings, launch):
    settings.fail_launch, settings.launch_error = launch, 700
    with pytest.raises(RuntimeError, match="CUDA error 700"):
        NormCase().run(cuda, NormCase().tensors())
    assert settings.launches == launch, "nothing runs after a failure"
    NormCase().check(cuda)  # and the error is reported once


@on_cpu
def test_an_unknown_device_is_an_error(settings, emulated):
    with cuda_on_cpu.in_place_of_cuda(emulated[0], device=7), pytest.raises(RuntimeError, match="CUDA error 101"):
        NormCase().run(cuda, NormCase().tensors())
    assert settings.launches == 0 and settings.device == 0


@on_cpu
def test_no_driver_and_no_device_are_said_clearly(settings, emulated):
    module = emulated[0]
    settings.fail_runtime = 35
    assert module.device_count()[0] == 0 and "no NVIDIA driver" in module.device_count()[1]
    with pytest.raises(RuntimeError, match="CUDA error 35.*no NVIDIA driver"):
        NormCase().run(cuda, NormCase().tensors())
    settings.fail_runtime = 100
    assert "CUDA_VISIBLE_DEVICES" in module.device_count()[1]
    settings.fail_runtime = 0
    assert module.device_count() == (2, "")
    assert "EIDETIC_CUDA_ARCHS" in module.error_text(209) and module.error_text(0) == ""
    NormCase().check(cuda)


@on_cpu
def test_what_is_not_taken_is_said(settings):
    t = NormCase((3, 4), (5,)).tensors()
    inputs = [t["x"], None, t["weight"], t["bias"], t["running_mean"], t["frozen_scale"]]

    def reason(**changed):
        names = ("x", "residual", "weight", "bias", "running_mean", "frozen_scale")
        given = dict(zip(names, inputs)) | changed
        return cuda.segmented_batch_norm_supports(*given.values())

    assert reason() is None
    assert reason(x=t["x"].bfloat16()) is None
    assert "float64" in reason(x=t["x"].double())
    assert "5 dimensions" in reason(x=t["x"].view(5, 7, 1, 1, 1))
    assert "residual" in reason(residual=t["x"].half())
    assert "weight" in reason(weight=t["weight"].half())
    assert "float16" in reason(
        **{name: value.half() for name, value in zip(("weight", "bias", "running_mean", "frozen_scale"), inputs[2:])}
    )
    assert "contiguous" in reason(running_mean=torch.zeros(4, 2)[:, 0])
    assert "GPU" in reason(x=t["x"].to("meta"))


# The stand-in for a GPU


@on_cpu
def test_a_missing_barrier_shows_when_the_order_of_threads_changes(tmp_path):
    """The kernel reverses a block's values through shared memory, with a barrier between writing and reading or not."""
    source = tmp_path / "reverse.cpp"
    source.write_text(
        textwrap.dedent("""
        #include "cuda_on_cpu.h"
        __global__ void reverse(float* x, bool barrier) {
            __shared__ float shared[64];
            shared[threadIdx.x] = x[threadIdx.x];
            if (barrier) __syncthreads();
            x[threadIdx.x] = shared[63 - threadIdx.x];
        }
        int main() {
            for (bool barrier : {true, false}) {
                for (int order : {0, 1, 2026}) {
                    cuda_on_cpu::settings.order = order;
                    float x[64];
                    for (int i = 0; i < 64; ++i) x[i] = i;
                    EIDETIC_LAUNCH(reverse, dim3(1), dim3(64), nullptr, x, barrier);
                    bool right = true;
                    for (int i = 0; i < 64; ++i) right = right && x[i] == 63 - i;
                    std::printf("%d", right);
                }
            }
        }
    """)
    )

    program = tmp_path / "reverse"
    includes = [f"-I{cuda_on_cpu.ROOT / 'tests/csrc'}", "-isystem", str(cuda_on_cpu._cuda_headers())]
    subprocess.run(["g++", "-std=c++17", "-pthread", *includes, source, "-o", program], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "111000"


@on_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD")
def test_no_access_out_of_bounds_and_no_undefined_behaviour():
    """The kernels under AddressSanitizer and UBSan, in a process of their own."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("g++ has no libasan")

    script = textwrap.dedent("""
        import cuda_on_cpu, norm_promises, torch
        from eidetic_kernels.backends import cuda
        module, settings = cuda_on_cpu.load(cuda_on_cpu.build(sanitize=True))
        settings.order = cuda_on_cpu.RANDOM
        with cuda_on_cpu.in_place_of_cuda(module):
            for number, case in enumerate(norm_promises.cases((torch.float32, torch.bfloat16), each=1, seed=11)):
                settings.processors = 1 + 40 * (number % 2)
                case.run(cuda, case.tensors())
        print("clean", number)
    """)

    root = cuda_on_cpu.ROOT
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "tests/support"))),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "clean" in done.stdout, done.stdout + done.stderr[-4000:]
